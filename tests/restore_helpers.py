"""Models small enough to restore with in a blink, and images for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from recipe_helpers import QUIET, pixels, small
from sfumato.cli import main
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig

SIZE = (8, 8)
FAST = ["--steps", "3", "--threads", "1", "--device", "cpu"]


def trained(folder: Path, kind: str) -> Path:
    """A run of two steps: "rgb", "flipped", "ladder", "spectral", "grey16", "float", "classes" or
    "pairs"."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = small("edm-tiny", skip="spectral" if kind == "spectral" else "scalar",
                   flip=kind == "flipped")  # fmt: skip
    options: dict[str, Any] = {"layout": "NHWC"}
    data = folder / "images.npy"
    if kind == "ladder":
        base = small("iddpm-tiny")
        process = replace(base.process, steps=40, betas="cosine")
        recipe = replace(base, process=process, sampler=replace(base.sampler, steps=3))
    if kind == "classes":
        data = folder / "images"
        options = {"classes": True}
        for i, image in enumerate(pixels((3, *SIZE))):
            path = data / ("oak", "beech")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    elif kind == "pairs":
        data = folder / "pairs"
        options = {"condition": "image"}
        data.mkdir()
        np.save(data / "input.npy", pixels((2, *SIZE), dtype="uint16"))
        np.save(data / "target.npy", pixels((3, *SIZE)))
    else:
        channels = {"grey16": 1, "float": 2}.get(kind, 3)
        dtype = {"grey16": "uint16", "float": "float32"}.get(kind, "uint8")
        np.save(data, pixels((channels, *SIZE), dtype=dtype))
        if kind == "float":
            options["value_range"] = (0.0, 1.0)
    run = Run.open(RunConfig(recipe, DataConfig(data=str(data), **options), QUIET), folder / "run")
    for _ in run.steps():
        pass
    return folder / "run"


def picture(
    path: Path, height: int = 8, width: int = 8, channels: int = 3, dtype: str = "uint8"
) -> np.ndarray[Any, Any]:
    """Write a smooth image unlike those that models saw; return it as [H, W, C]."""
    (image,) = pixels((channels, height, width), 1, dtype, seed=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, image.transpose(2, 0, 1))
    else:
        Image.fromarray(image.squeeze()).save(path)
    return image


def hole(path: Path, height: int = 8, width: int = 8) -> np.ndarray[Any, Any]:
    """Write a mask of a box in the middle; return it as bool [H, W]."""
    mask = np.zeros((height, width), bool)
    mask[2 : height - 2, 3 : width - 1] = True
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return mask


def restore(*arguments: object) -> int:
    return main(["restore", *map(str, arguments), *FAST])


def seen(path: Path) -> np.ndarray[Any, Any]:
    return np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
