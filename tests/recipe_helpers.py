"""Recipes small enough to train in a blink, and the images they train on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.arrays import InMemory
from sfumato.recipes.config import Recipe
from sfumato.recipes.presets import recipe
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import Bookkeeping, DataConfig, RunConfig

BATCH = 4
QUIET = Bookkeeping(
    report=False, tensorboard=False, log_every=1, sample_every=1000, save_every=3, threads=1
)


def small(name: str = "edm-tiny", steps: int = 2, **changes: Any) -> Recipe:
    """The named recipe with a network of width 8, `steps` training steps, 3 sampling steps."""
    base = recipe(name)
    network = replace(
        base.network, width=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.1
    )
    sampler = replace(base.sampler, batch=BATCH, steps=3)
    if sampler.grid == "all":
        sampler = replace(sampler, grid="uniform")
    base = replace(
        base,
        network=network,
        sampler=sampler,
        batch=BATCH,
        images=steps * BATCH,
        precision="float32",
        optimizer=replace(base.optimizer, ramp_images=0),
    )
    return replace(base, **changes)


def pixels(
    shape: tuple[int, int, int] = (1, 8, 8), count: int = 12, dtype: str = "uint8", seed: int = 0
) -> np.ndarray[Any, Any]:
    """Smooth random images [N, H, W, C] over the whole range of the dtype."""
    channels, height, width = shape
    values = np.random.default_rng(seed).random((count, height, width, channels)).cumsum(2)
    values /= values.max()
    if dtype == "float32":
        return values.astype(np.float32)
    return (values * np.iinfo(dtype).max).astype(dtype)


def in_memory(
    shape: tuple[int, int, int] = (1, 8, 8),
    dtype: str = "uint8",
    classes: int = 0,
    seed: int = 0,
) -> InMemory:
    labels = np.arange(12) % classes if classes else None
    return InMemory(pixels(shape, dtype=dtype, seed=seed), labels, layout="NHWC", source="test")


def array_file(folder: Path, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "images.npy"
    np.save(path, pixels(shape, seed=seed))
    return path


def open_run(
    folder: Path, data: Path, chosen: Recipe | None = None, *, resume: bool = False, **run: Any
) -> Run:
    """Open (or resume) a run on an array file, without report and TensorBoard."""
    config = RunConfig(
        chosen or small(steps=8),
        DataConfig(data=str(data), layout="NHWC"),
        replace(QUIET, **run),
    )
    return Run.open(config, folder, resume=resume)
