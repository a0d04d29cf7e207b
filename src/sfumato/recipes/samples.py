"""Writing samples: one file an image, a grid to look at, and how to draw them again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import tomli_w

from sfumato.data.save import save_images
from sfumato.recipes.config import SamplerConfig
from sfumato.recipes.environment import describe
from sfumato.recipes.model import Model, RawImages
from sfumato.report.grid import image_grid, save_png

_SHOWN = 256


class SampleWriter:
    """Writes images as they come; `close` adds grid.png and sample.toml."""

    def __init__(
        self,
        folder: Path,
        model: Model,
        sampler: SamplerConfig,
        seed: int,
        label: str | None,
    ) -> None:
        self.folder, self.model, self.sampler = folder, model, sampler
        self.seed, self.label = seed, label
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
        save_png(image_grid(np.concatenate(self.shown)), grid)
        sampler = {key: value for key, value in asdict(self.sampler).items() if value is not None}
        device = str(next(self.model.network.parameters()).device)
        record = {
            "checkpoint": str(self.model.path),
            "weights": self.model.weights,
            "precision": self.model.precision,
            "images": self.count,
            "seed": self.seed,
            "class": self.label or "",
            "seconds": round(seconds, 3),
            "sampler": sampler,
            "environment": describe(device),
        }
        temporary = self.folder / "sample.toml.tmp"
        temporary.write_text(tomli_w.dumps(record), encoding="utf-8")
        temporary.replace(self.folder / "sample.toml")
        return grid
