"""What looks at the model from time to time while it trains: grids of samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sfumato.data.images import Images
from sfumato.data.pixels import to_model
from sfumato.recipes import build
from sfumato.recipes.config import Recipe
from sfumato.recipes.model import Model
from sfumato.recipes.paired import answers, picked
from sfumato.recipes.progress import Every
from sfumato.recipes.run_log import RunLog
from sfumato.recipes.sampler_config import SamplerConfig, plain
from sfumato.report.grid import UInt8, display_pixels, image_grid, save_png

_COUNT = 36
_PAIRS = 12
_LONGEST = 25
_SHORT = 18


class Watcher(Protocol):
    """Something a run does with its model from time to time; failing at it must not end the run."""

    every: Every

    def look(self, model: Model, step: int) -> None:
        """Do it; raises OSError or ValueError where that is not possible."""
        ...


class Preview:
    """Draws a grid of 36 images, seeds 0 to 35: the same every time, so that progress is seen.

    Of a model that starts from images, 12 of `source`: input, target and sample side by side.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        log: RunLog,
        every: Every,
        source: Images | None = None,
    ) -> None:
        self.folder, self.log, self.every = folder / "samples", log, every
        self.sampler, self.source = preview_sampler(recipe), source

    def look(self, model: Model, step: int) -> None:
        """Write samples/training-<images>.png, for TensorBoard too."""
        if model.condition is None or self.source is None:
            raw = model.sample(_COUNT, sampler=self.sampler)
            grid = image_grid(to_model(raw, model.format))
        else:
            inputs, targets = picked(self.source, _PAIRS)
            sampler = replace(self.sampler, batch=len(inputs))
            drawn = next(answers(model, inputs, range(len(inputs)), sampler))
            grid = _side_by_side(inputs, targets, drawn)
        save_png(grid, self.folder / f"training-{model.images_seen:09d}.png")
        self.log.picture(grid, step)


def _side_by_side(*columns: Tensor) -> UInt8:
    """A grid of sets [n, C, H, W] in [-1, 1] of any channels: the first of each, the second, ..."""
    shown = [display_pixels(column) for column in columns]
    most = max(pixels.shape[3] for pixels in shown)
    rows = [np.broadcast_to(pixels, (*pixels.shape[:3], most)) for pixels in shown]
    mixed = np.stack(rows, 1).reshape(-1, *rows[0].shape[1:])
    return image_grid(mixed.transpose(0, 3, 1, 2), columns=3 * len(columns))


def preview_sampler(recipe: Recipe) -> SamplerConfig:
    """Return the recipe's sampler, shortened to 18 deterministic steps where it has more than 25.

    On a ladder these are DDIM's, over as many of its levels as there are.
    """
    process, sampler = recipe.process, replace(recipe.sampler, batch=_COUNT)
    if (process.steps if sampler.grid == "all" else sampler.steps) <= _LONGEST:
        return sampler
    short = replace(sampler, steps=_SHORT, eta=0.0, churn=0.0)
    if process.kind not in ("ladder", "ncsn"):
        return short
    return replace(
        plain(short, "ddim"),
        grid="uniform",
        steps=min(_SHORT, process.steps),
        sigma_min=None,
        sigma_max=None,
    )


def check_samplers(model: Model) -> None:
    """Raise ConfigError now for what would fail when the first samples are drawn."""
    start = None if model.condition is None else torch.zeros(1, *model.condition.shape)
    for sampler in (model.recipe.sampler, preview_sampler(model.recipe)):
        build.grid_of(sampler, build.adapt(model.recipe, model.network))
        model.bound([0], sampler=sampler, images=start)
