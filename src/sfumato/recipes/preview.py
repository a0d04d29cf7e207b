"""Sample grids during training: the same seeds every time, so that progress is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sfumato.recipes.config import Recipe, SamplerConfig
from sfumato.recipes.model import Model
from sfumato.report.grid import UInt8, image_grid, save_png

_COUNT = 36


class Preview:
    """Draws a grid of 36 images, seeds 0 to 35, each time the run's progress passes a mark."""

    def __init__(self, folder: Path, recipe: Recipe, every: float) -> None:
        self.folder = folder / "samples"
        self.sampler = preview_sampler(recipe)
        self.every = every
        self._next: float | None = None

    def due(self, share: float) -> bool:
        """Whether `share` of the run passed the next mark (a resumed run starts at its own)."""
        if self._next is None:
            self._next = (int(share / self.every) + 1) * self.every
        if share < self._next:
            return False
        self._next = (int(share / self.every) + 1) * self.every
        return True

    def draw(self, model: Model, images_seen: int) -> UInt8:
        """Write samples/training-<images>.png and return its pixels."""
        self.folder.mkdir(exist_ok=True)
        grid = image_grid(model.sample(_COUNT, sampler=self.sampler))
        save_png(grid, self.folder / f"training-{images_seen:09d}.png")
        return grid


def preview_sampler(recipe: Recipe) -> SamplerConfig:
    """Return the recipe's sampler, shortened to at most 25 deterministic steps on a ladder."""
    sampler = replace(recipe.sampler, batch=_COUNT)
    if sampler.grid == "all" or sampler.steps > 25:
        on_ladder = recipe.process.kind in ("ladder", "ncsn")
        grid = "uniform" if on_ladder else sampler.grid
        solver = "ddim" if on_ladder else sampler.solver
        return replace(sampler, solver=solver, grid=grid, steps=18, eta=0.0, churn=0.0)
    return sampler
