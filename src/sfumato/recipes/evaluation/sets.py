"""What is measured: stored images, or images a model draws, in chunks of a fixed size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.images import Images, Subset
from sfumato.data.pixels import PixelFormat, from_model, to_model
from sfumato.data.reader import Reader
from sfumato.errors import DataError
from sfumato.recipes.config import SamplerConfig
from sfumato.recipes.evaluation.cache import Cache, Shelf
from sfumato.recipes.model import Model

CHUNK = 256
"""Images in a chunk: the unit of caching and of sharing work between processes."""


class ImageSet(Protocol):
    """A finite set of raw images, chunk by chunk, that says how it came to be."""

    name: str
    format: PixelFormat
    description: dict[str, Any]
    """Plain values; equal for equal images, so that work on them can be found again."""
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def chunk(self, number: int) -> NDArray[Any]:
        """Raw images [n, C, H, W]: those from number * CHUNK on, at most CHUNK of them."""
        ...

    def labels(self) -> NDArray[np.int64] | None:
        """Class of every image, where known."""
        ...


def chunk_count(images: ImageSet) -> int:
    """How many chunks a set has."""
    return -(-len(images) // CHUNK)


def pixels(images: ImageSet, number: int) -> Tensor:
    """One chunk in [-1, 1], float32."""
    return to_model(images.chunk(number), images.format)


def all_pixels(images: ImageSet, most: int) -> Tensor:
    """The images in [-1, 1], evenly thinned to at most `most` of them, float32."""
    wanted = np.asarray(spread(len(images), most))
    parts: list[Tensor] = []
    for number in range(chunk_count(images)):
        start = number * CHUNK
        rows = wanted[(wanted >= start) & (wanted < start + CHUNK)] - start
        if len(rows):
            parts.append(pixels(images, number)[torch.from_numpy(rows)])
    return torch.cat(parts)


def spread(total: int, count: int) -> list[int]:
    """`count` indices, or all, evenly spread over 0..total-1."""
    count = min(total, count)
    return [i * total // count for i in range(count)]


class Stored:
    """Images of a folder, archive or array; `most` above 0 takes that many, evenly spread."""

    def __init__(self, images: Images, name: str, most: int = 0) -> None:
        if most and most < len(images):
            images = Subset(images, spread(len(images), most), images.source)
        self.images, self.name = images, name
        self.format, self.classes = images.format, images.classes
        self.description = {
            "images": images.fingerprint,
            "n": len(images),
            "format": images.format.to_toml(),
        }
        self._reader = Reader(images, cache_bytes=0)

    def __len__(self) -> int:
        return len(self.images)

    def chunk(self, number: int) -> NDArray[Any]:
        """Raw images; an unreadable file is replaced by the next readable one."""
        stop = min((number + 1) * CHUNK, len(self))
        return self._reader.read(np.arange(number * CHUNK, stop))[0]

    def labels(self) -> NDArray[np.int64] | None:
        """The stored labels."""
        return self.images.labels


class Drawn:
    """Images drawn by a model, image i from seed `seed` + i, kept in the cache as they come.

    `unrounded` keeps them before they are rounded to pixels, for questions about rounding.
    """

    def __init__(
        self,
        model: Model,
        n: int,
        cache: Cache,
        *,
        seed: int = 0,
        label: str | None = None,
        sampler: SamplerConfig | None = None,
        unrounded: bool = False,
    ) -> None:
        if n < 1:
            raise DataError(f"expected at least one image to draw, not {n}")
        self.model, self.n, self.seed, self.label = model, n, seed, label
        self.sampler = sampler or model.recipe.sampler
        self.unrounded = unrounded
        self.tick: Callable[[int], object] = lambda drawn: None
        """Told how many images were just drawn."""
        self.name = "samples"
        self.format, self.classes = model.format, model.classes
        self.description = {
            "weights": model.fingerprint,
            "sampler": {k: repr(v) for k, v in vars(self.sampler).items()},
            "precision": model.precision,
            "device": model.device.type,
            "class": label or "",
            "seed": seed,
            "n": n,
        }
        # Without n: a longer set begins with the chunks of a shorter one.
        described = {k: v for k, v in self.description.items() if k != "n"}
        self._shelf: Shelf = cache.shelf("samples", {**described, "unrounded": unrounded})

    def __len__(self) -> int:
        return self.n

    @property
    def seeds(self) -> range:
        """The seed of every image."""
        return range(self.seed, self.seed + self.n)

    def chunk(self, number: int) -> NDArray[Any]:
        """Raw images, drawn now or before."""
        kept = self._kept(number)
        return from_model(torch.from_numpy(kept), self.format) if self.unrounded else kept

    def before_rounding(self, number: int) -> Tensor:
        """The model's own values [n, C, H, W] of one chunk; needs `unrounded`."""
        if not self.unrounded:
            raise ValueError("these samples were kept as pixels: draw them with unrounded=True")
        return torch.from_numpy(self._kept(number))

    def labels(self) -> NDArray[np.int64] | None:
        """The class each image was asked to be."""
        asked = self.model.labels_for(self.seeds, self.label)
        return None if asked is None else asked.argmax(1).numpy()

    def has(self, number: int) -> bool:
        """Whether a chunk is drawn already."""
        return self._shelf.has(number) and len(self._shelf.get(number)) >= len(self._seeds(number))

    def _seeds(self, number: int) -> range:
        return self.seeds[number * CHUNK : (number + 1) * CHUNK]

    def _kept(self, number: int) -> NDArray[Any]:
        seeds = self._seeds(number)
        if self.has(number):
            return self._shelf.get(number)[: len(seeds)]
        self._shelf.put(number, made := self._draw(seeds))
        return made

    def _draw(self, seeds: Sequence[int]) -> NDArray[Any]:
        parts: list[Tensor] = []
        for part in self.model.drawn(seeds, label=self.label, sampler=self.sampler):
            parts.append(part)
            self.tick(len(part))
        x = torch.cat(parts).float()
        return x.numpy() if self.unrounded else from_model(x, self.format)


class Band:
    """One channel of another set, as grey images."""

    def __init__(self, images: ImageSet, band: int) -> None:
        self.whole, self.band = images, band
        self.name = f"{images.name}, band {band + 1}"
        self.format = replace(images.format, channels=1)
        self.description = {**images.description, "band": band}
        self.classes = images.classes

    def __len__(self) -> int:
        return len(self.whole)

    def chunk(self, number: int) -> NDArray[Any]:
        """Raw images [n, 1, H, W]."""
        return self.whole.chunk(number)[:, self.band : self.band + 1]

    def labels(self) -> NDArray[np.int64] | None:
        """The labels of the whole."""
        return self.whole.labels()


def check_alike(a: ImageSet, b: ImageSet) -> None:
    """DataError where two sets cannot be compared: other shape or depth."""
    if a.format != b.format:
        raise DataError(
            f"the {a.name} are {a.format.describe()} and the {b.name} {b.format.describe()}: "
            "sets are compared at one shape and bit depth; bring them there with --size, --channels"
            " or --value-range"
        )
