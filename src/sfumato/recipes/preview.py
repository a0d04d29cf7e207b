"""What looks at the model from time to time while it trains: grids of samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from sfumato.data.pixels import to_model
from sfumato.recipes.config import Recipe
from sfumato.recipes.model import Model
from sfumato.recipes.progress import Every
from sfumato.recipes.run_log import RunLog
from sfumato.recipes.sampler_config import SamplerConfig, plain
from sfumato.report.grid import image_grid, save_png

_COUNT = 36
_LONGEST = 25
_SHORT = 18


class Watcher(Protocol):
    """Something a run does with its model from time to time; failing at it must not end the run."""

    every: Every

    def look(self, model: Model, step: int) -> None:
        """Do it; raises OSError or ValueError where that is not possible."""
        ...


class Preview:
    """Draws a grid of 36 images, seeds 0 to 35: the same every time, so that progress is seen."""

    def __init__(self, folder: Path, recipe: Recipe, log: RunLog, every: Every) -> None:
        self.folder, self.log, self.every = folder / "samples", log, every
        self.sampler = preview_sampler(recipe)

    def look(self, model: Model, step: int) -> None:
        """Write samples/training-<images>.png, for TensorBoard too."""
        raw = model.sample(_COUNT, sampler=self.sampler)
        grid = image_grid(to_model(raw, model.format))
        save_png(grid, self.folder / f"training-{model.images_seen:09d}.png")
        self.log.picture(grid, step)


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
