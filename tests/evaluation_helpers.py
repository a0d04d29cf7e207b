"""Small sets, features that numpy can repeat, and a run: what tests of evaluations share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from recipe_helpers import QUIET, array_file, open_run, pixels, small
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig

NHWC = DataConfig(layout="NHWC")


class Pooled(nn.Module):
    """2 x 2 means of every channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def pooled_features(folder: Path) -> Path:
    """A TorchScript file of `Pooled`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pooled.pt"
    torch.jit.script(Pooled()).save(str(path))
    return path


def trained(folder: Path) -> Path:
    """A run of four steps on twelve grey images of 8 x 8."""
    made = open_run(folder / "run", array_file(folder), small(steps=4))
    for _ in made.steps():
        pass
    return folder / "run"


def trained_on_classes(folder: Path, images: Path) -> Path:
    """A run of four steps on a folder with a sub-folder for each class."""
    config = RunConfig(
        small(steps=4), DataConfig(data=str(images), test=str(images), classes=True), QUIET
    )
    made = Run.open(config, folder / "run")
    for _ in made.steps():
        pass
    return folder / "run"


def pair(folder: Path, count: int = 60, shape: tuple[int, int, int] = (3, 8, 8)) -> list[str]:
    """Two array files of other images."""
    paths = []
    for seed, name in enumerate(("a", "b")):
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "images.npy", pixels(shape, count=count, seed=seed))
        paths.append(str(folder / name / "images.npy"))
    return paths


def image_folder(
    folder: Path, values: np.ndarray[Any, Any], names: list[str] | None = None, kind: str = "bmp"
) -> str:
    """Grey images [N, H, W] as files; BMP files of one size have one length."""
    folder.mkdir(parents=True)
    for index, image in enumerate(values.astype(np.uint8)):
        name = names[index] if names else f"{index:04d}"
        path = folder / f"{name}.{kind}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return str(folder)


def rows_of(outcome: Any) -> dict[str, float]:
    return {row.metric: row.value for row in outcome.evaluation.rows}
