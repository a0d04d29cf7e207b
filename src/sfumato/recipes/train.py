"""Training from Python, on images in memory or opened there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sfumato.data.images import Images
from sfumato.processes import joined
from sfumato.recipes.config import Recipe
from sfumato.recipes.environment import pick_device
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import Bookkeeping, RunConfig
from sfumato.recipes.run_data import data_config
from sfumato.training.loop import Record


def train(
    recipe: Recipe,
    images: Images,
    folder: str | Path,
    *,
    minutes: float = 0.0,
    test: Images | None = None,
    resume: bool = False,
    report: bool = True,
    say: Callable[[str], None] | None = None,
) -> Iterator[Record]:
    """Train on images to a run folder, yielding a record a step; classes are learned if labelled.

    Ends after recipe.images images, or `minutes` minutes if that comes first, and then writes
    report.html. Closing the iterator saves a checkpoint, from which resume=True goes on, as
    `sfumato train --resume` does for images of `open_images`. `say` is told what is worth knowing,
    such as print. In a script that torchrun started, all its processes train together. Raises
    ConfigError where the folder is taken.
    """
    bookkeeping = Bookkeeping(minutes=minutes, report=report)
    config = RunConfig(recipe, data_config(images, test), bookkeeping)
    with joined(device=pick_device(bookkeeping.device)) as processes:
        run = Run.open(
            config,
            Path(folder),
            resume=resume,
            images=images,
            test=test,
            say=say,
            processes=processes,
        )
        yield from run.steps()
        if report:
            run.write_report()
