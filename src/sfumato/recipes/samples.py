"""Writing samples: one file an image, a grid to look at, and how to draw them again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from sfumato.data.pixels import to_model
from sfumato.data.save import save_images
from sfumato.errors import ConfigError
from sfumato.files import usable, write_text
from sfumato.processes import Processes
from sfumato.recipes.environment import describe
from sfumato.recipes.model import Model, RawImages
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.report.grid import image_grid, save_png

_SHOWN = 256


def refuse_used(folder: Path) -> None:
    """Raise ConfigError where a folder holds files, which new ones would mix with, or is none."""
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} already holds files: choose another --out, or empty it first")
    usable(folder)


class SampleWriter:
    """Writes images as they come to a new or empty folder; `close` adds grid.png and sample.toml.

    Several `processes` write their own images; the first adds the rest for all. ConfigError for a
    folder that holds files, or a sampler or class the model does not know.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        sampler: SamplerConfig,
        seed: int,
        label: str | None,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes()
        self.processes.from_first(lambda: refuse_used(folder))
        self.folder, self.model, self.sampler = folder, model, sampler
        self.seed, self.label = seed, label
        self.steps = len(model.grid(sampler)) - 1
        self.count = 0
        self.shown: dict[int, RawImages] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, images: RawImages, place: int | None = None) -> None:
        """Write raw images [n, C, H, W], named by their seed.

        `place`: where among all they begin; after those before if not given.
        """
        place = self.count if place is None else place
        save_images(images, self.model.format, self.folder, start=self.seed + place)
        if place < _SHOWN:
            self.shown[place] = images[: _SHOWN - place]
        self.count += len(images)

    def close(self, seconds: float) -> Path:
        """Write the grid and the record, once all are there; return the grid's path."""
        grid = self.folder / "grid.png"
        everyones = self.processes.all((self.count, self.shown))
        if not self.processes.first:
            return grid
        self.count = sum(count for count, _ in everyones)
        found = {place: images for _, theirs in everyones for place, images in theirs.items()}
        shown = to_model(
            np.concatenate([found[place] for place in sorted(found)]), self.model.format
        )
        save_png(image_grid(shown), grid)
        write_text(self.folder / "sample.toml", tomli_w.dumps(self._record(seconds)))
        return grid

    def _record(self, seconds: float) -> dict[str, Any]:
        """What draws these images again; `sampler.steps` were asked for, `steps` were walked."""
        sampler = {key: value for key, value in asdict(self.sampler).items() if value is not None}
        if self.sampler.grid == "all":
            sampler["steps"] = self.steps
        device, weaker = str(self.model.device), self.model.weaker
        seeds = range(self.seed, self.seed + self.count)
        classes = self.model.classes_for(seeds, self.label) or []
        return {
            "checkpoint": str(self.model.path),
            **({"autoguidance": str(weaker.path)} if weaker else {}),
            "weights": self.model.weights,
            "precision": self.model.precision,
            "images": self.count,
            "seed": self.seed,
            "class": self.label or "",
            "classes": [self.model.classes[index] for index in classes],
            "steps": self.steps,
            "seconds": round(seconds, 3),
            "sampler": sampler,
            "environment": describe(device),
        }


def shared(
    model: Model,
    seeds: range,
    processes: Processes,
    label: str | None,
    sampler: SamplerConfig,
) -> Iterator[tuple[int, RawImages]]:
    """Yield this process's images as (place among all, images), whole network batches in turn.

    One process draws what `Model.samples` draws; several the same pictures between them. Raises
    ConfigError, at the call, for what the model cannot do.
    """
    everything = model.samples(seeds, label=label, sampler=sampler)
    size = sampler.batch
    if processes.count == 1:
        return zip(itertools.count(0, size), everything, strict=False)
    return (
        (place, images)
        for place in _places(len(seeds), size, processes)
        for images in model.samples(seeds[place : place + size], label=label, sampler=sampler)
    )


def own_share(n: int, size: int, processes: Processes) -> int:
    """Return how many of n images `shared` leaves to this process, in batches of `size`."""
    return sum(min(size, n - place) for place in _places(n, size, processes))


def _places(n: int, size: int, processes: Processes) -> list[int]:
    """Where the batches of this process begin."""
    return [place for place in range(0, n, size) if processes.mine(place // size)]
