"""What is measured: stored images, or images a model draws, in chunks of a fixed size."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.images import Images, Subset, in_threads
from sfumato.data.pixels import PixelFormat, from_model, to_model
from sfumato.data.reader import Reader, chunks
from sfumato.errors import DataError
from sfumato.metrics.thinning import spread
from sfumato.recipes.environment import describe
from sfumato.recipes.evaluation.cache import Cache, Shelf
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import SamplerConfig

CHUNK = 256
"""Images in a chunk: the unit of caching features and of sharing that work between processes."""
PIECE = 64
"""Images drawn between two looks at the clock, about: the unit of drawing."""


class ImageSet(Protocol):
    """A finite set of raw images, chunk by chunk, that says how it came to be."""

    name: str
    format: PixelFormat
    classes: tuple[str, ...]

    @property
    def description(self) -> dict[str, Any]:
        """Plain values; equal for equal images, so that work on them can be found again."""
        ...

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
    """The images in [-1, 1], thinned to at most `most` of them, float32."""
    wanted = spread(len(images), most)
    parts: list[Tensor] = []
    for number in range(chunk_count(images)):
        start = number * CHUNK
        rows = wanted[(wanted >= start) & (wanted < start + CHUNK)] - start
        if len(rows):
            parts.append(pixels(images, number)[torch.from_numpy(rows)])
    return torch.cat(parts)


class Stored:
    """Images of a folder, archive or array; `most` above 0 takes that many, a fair pick."""

    def __init__(self, images: Images, name: str, most: int = 0) -> None:
        if most and most < len(images):
            images = Subset(images, spread(len(images), most), images.source)
        self.images, self.name = images, name
        self.format, self.classes = images.format, images.classes
        self._reader = Reader(images, cache_bytes=0)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def _read_once(self) -> tuple[str, NDArray[np.int64]]:
        """A hash of all pixels, and which image stands in each place, from reading everything."""
        digest = hashlib.blake2b(digest_size=16)
        used: list[NDArray[np.int64]] = []

        def load(index: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
            return self._reader.read(index)

        for raw, index in in_threads(load, chunks(len(self), 64), ahead=4):
            digest.update(np.ascontiguousarray(raw).data)
            used.append(index)
        return digest.hexdigest(), np.concatenate(used)

    @property
    def description(self) -> dict[str, Any]:
        """The images by their content: names and dates of files do not matter."""
        return {
            "images": self._read_once[0],
            "n": len(self),
            "format": self.format.to_toml(),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The image in each place, by the name of its file or its place in its array."""
        return tuple(self.images.names(int(index)) for index in self._read_once[1])

    @property
    def broken(self) -> tuple[str, ...]:
        """Files that cannot be read, in whose place stands the next one that can."""
        _ = self._read_once
        return self._reader.skipped

    def chunk(self, number: int) -> NDArray[Any]:
        """Raw images; an unreadable file is replaced by the next readable one."""
        stop = min((number + 1) * CHUNK, len(self))
        return self._reader.read(np.arange(number * CHUNK, stop))[0]

    def labels(self) -> NDArray[np.int64] | None:
        """The stored labels, of the images really read."""
        known = self.images.labels
        return None if known is None else known[self._read_once[1]]

    def stems(self) -> list[str] | None:
        """The file name of every image without folder and ending; None for those of an array."""
        names = [self.images.names(i) for i in range(len(self))]
        if any(name.endswith("]") for name in names):  # array.npy[7] is no file's
            return None
        return [PurePosixPath(name).stem for name in names]


class Drawn:
    """Images drawn by a model, image i from seed `seed` + i, kept in the cache as they come.

    They are kept before they are rounded to pixels, for questions about rounding.
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
    ) -> None:
        if n < 1:
            raise DataError(f"expected at least one image to draw, not {n}")
        self.model, self.n, self.seed, self.label = model, n, seed, label
        self.sampler = sampler or model.recipe.sampler
        self.tick: Callable[[int], object] = lambda drawn: None
        """Told how many images were just drawn."""
        self.name = "samples"
        self.format, self.classes = model.format, model.classes
        recipe, weaker = model.recipe, model.weaker
        machine = describe(str(model.device))
        self.description = {
            "weights": model.fingerprint or _hash_of(model),
            "model": {
                "process": repr(recipe.process),
                "predicts": recipe.predicts,
                "variance": recipe.variance,
                "network": repr(recipe.network),
            },
            "format": model.format.to_toml(),
            **({"weaker": weaker.fingerprint or _hash_of(weaker)} if weaker else {}),
            "sampler": {k: repr(v) for k, v in vars(self.sampler).items()},
            "precision": model.precision,
            "device": model.device.type,
            "made by": {
                "sfumato": machine["sfumato"],
                "torch": machine["torch"],
                "hardware": machine["device"].partition("(")[2].rstrip(")"),
            },
            "class": label or "",
            "seed": seed,
            "n": n,
        }
        # Whole network batches, as a part of one costs as much as all of it.
        self._size = max(PIECE // self.sampler.batch, 1) * self.sampler.batch
        # Without n: a longer set begins with the pieces of a shorter one.
        described = {k: v for k, v in self.description.items() if k != "n"}
        self._shelf: Shelf = cache.shelf("drawn", {**described, "piece": self._size})
        self._clock: Shelf = cache.shelf("seconds", {**described, "piece": self._size})

    def __len__(self) -> int:
        return self.n

    @property
    def seeds(self) -> range:
        """The seed of every image."""
        return range(self.seed, self.seed + self.n)

    @property
    def pieces(self) -> int:
        """How many pieces the images are drawn in."""
        return -(-self.n // self._size)

    def chunk(self, number: int) -> NDArray[Any]:
        """Raw images, drawn now or before."""
        return from_model(self.before_rounding(number), self.format)

    def before_rounding(self, number: int) -> Tensor:
        """The model's own values [n, C, H, W] of one chunk, float32."""
        start = number * CHUNK
        stop = min(start + CHUNK, self.n)
        first = start // self._size
        parts = [self.piece(i) for i in range(first, -(-stop // self._size))]
        whole = np.concatenate(parts)
        return torch.from_numpy(whole[start - first * self._size : stop - first * self._size])

    def labels(self) -> NDArray[np.int64] | None:
        """The class each image was asked to be."""
        asked = self.model.labels_for(self.seeds, self.label)
        return None if asked is None else asked.argmax(1).numpy()

    def has(self, piece: int) -> bool:
        """Whether a piece is drawn already."""
        return self._shelf.has(piece) and len(self._shelf.get(piece)) >= len(self._seeds(piece))

    def piece(self, number: int) -> NDArray[np.float32]:
        """One piece as the model gave it [n, C, H, W], drawn now or before."""
        seeds = self._seeds(number)
        if self.has(number):
            return self._shelf.get(number)[: len(seeds)]
        start = time.perf_counter()
        made = self._draw(seeds)
        batches = -(-len(seeds) // self.sampler.batch)
        seconds = (time.perf_counter() - start) / (batches * self.sampler.batch)
        self._shelf.put(number, made)
        self._clock.put(number, np.asarray(seconds))
        return made

    @property
    def seconds_per_image(self) -> float | None:
        """How long drawing an image took, padding counted as images; None where nobody timed it."""
        known = [self._clock.get(i) for i in range(self.pieces) if self._clock.has(i)]
        return float(np.mean(known)) if known else None

    def _seeds(self, piece: int) -> range:
        return self.seeds[piece * self._size : (piece + 1) * self._size]

    def _draw(self, seeds: Sequence[int]) -> NDArray[np.float32]:
        parts: list[Tensor] = []
        for part in self.model.drawn(seeds, label=self.label, sampler=self.sampler):
            parts.append(part)
            self.tick(len(part))
        return torch.cat(parts).float().numpy()


def _hash_of(model: Model) -> str:
    """A fingerprint of weights in memory."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(model.network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Band:
    """One channel of another set, as grey images."""

    def __init__(self, images: ImageSet, band: int) -> None:
        self.whole, self.band = images, band
        self.name = f"{images.name}, band {band + 1}"
        self.place = f"band {band + 1} of {images.format.channels} by itself"
        self.format = replace(images.format, channels=1)
        self.classes = images.classes

    @property
    def description(self) -> dict[str, Any]:
        """The whole, and which band of it."""
        return {**self.whole.description, "band": self.band}

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
