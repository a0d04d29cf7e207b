"""Recipes small enough to train in a blink, and the images they train on."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.data.arrays import InMemory
from sfumato.recipes.config import Recipe
from sfumato.recipes.presets import recipe
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import Bookkeeping, DataConfig, RunConfig
from sfumato.training.checkpoint import load_checkpoint
from sfumato.training.history import latest_checkpoint

BATCH = 4
TIMED = ("images_per_second", "waited_share", "seconds")
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


def break_losses(run: Run, calls: set[int], **plan: int) -> None:
    """Let the loss of these calls, counted from 1, be NaN."""
    loss, count = run.plan.objective.loss, itertools.count(1)

    class Broken:
        def loss(self, *arguments: Any) -> Any:
            losses = loss(*arguments)
            broken = next(count) in calls
            return replace(losses, value=losses.value * float("nan")) if broken else losses

    run.plan = replace(run.plan, objective=Broken(), **plan)  # type: ignore[arg-type]


def with_voice(folder: Path, data: Path, said: list[str]) -> Run:
    config = RunConfig(small(steps=8), DataConfig(data=str(data), layout="NHWC"), QUIET)
    return Run.open(config, folder, say=said.append)


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMED} for line in lines]


def assert_same_run(folder: Path, whole: Path) -> None:
    """Weights, average, optimizer and logged losses must be equal to the bit."""
    ours = load_checkpoint(latest_checkpoint(folder).path, training=True)
    theirs = load_checkpoint(latest_checkpoint(whole).path, training=True)
    assert (ours.step, ours.images, ours.position) == (theirs.step, theirs.images, theirs.position)
    for part in ("network", "ema", "optimizer"):
        a, b = getattr(ours, part), getattr(theirs, part)
        assert a.keys() == b.keys()
        different = [name for name in a if not torch.equal(a[name], b[name])]
        assert not different, f"{part}: {different}"
    assert log_of(folder) == log_of(whole)


# A run of its own process or command line, long enough to be interrupted.
LONG = 60
OPTIONS = (
    "--network.width 8 --network.multipliers 1 2 --network.attention "
    "--batch 4 --precision float32 --optimizer.ramp-images 0 --sampler.steps 2 --sampler.batch 36 "
    "--layout NHWC --threads 1 --no-report --no-tensorboard --log-every 1 --save-every 5 "
    f"--images {LONG * 4} --sample-every {10 * LONG}"
).split()


def options_for(images: int) -> list[str]:
    return [str(images) if item == str(LONG * 4) else item for item in OPTIONS]
