"""Writing samples: one file an image, a grid to look at, and how to draw them again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from sfumato.data.pixels import to_model
from sfumato.data.save import save_images
from sfumato.errors import ConfigError
from sfumato.files import write_text
from sfumato.recipes.environment import describe
from sfumato.recipes.model import Model, RawImages
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.report.grid import image_grid, save_png

_SHOWN = 256


def refuse_used(folder: Path) -> None:
    """Raise ConfigError where a folder already holds files, which new images would mix with."""
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} already holds files: choose another --out, or empty it first")


class SampleWriter:
    """Writes images as they come to a new or empty folder; `close` adds grid.png and sample.toml.

    ConfigError for a folder that holds files, or a sampler or class the model does not know.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        sampler: SamplerConfig,
        seed: int,
        label: str | None,
    ) -> None:
        refuse_used(folder)
        self.folder, self.model, self.sampler = folder, model, sampler
        self.seed, self.label = seed, label
        self.steps = len(model.grid(sampler)) - 1
        self.count = 0
        self.shown: list[RawImages] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, images: RawImages) -> None:
        """Write raw images [n, C, H, W], named by their seed."""
        save_images(images, self.model.format, self.folder, start=self.seed + self.count)
        if self.count < _SHOWN:
            self.shown.append(images[: _SHOWN - self.count])
        self.count += len(images)

    def close(self, seconds: float) -> Path:
        """Write the grid and the record; return the grid's path."""
        grid = self.folder / "grid.png"
        shown = to_model(np.concatenate(self.shown), self.model.format)
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
