"""What is measured: sets of images in chunks of a fixed size, stored ones and bands of others."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.images import Images, Subset, in_threads
from sfumato.data.pixels import PixelFormat, to_model
from sfumato.data.reader import Reader, chunks
from sfumato.errors import DataError
from sfumato.metrics.thinning import spread

CHUNK = 256
"""Images in a chunk: the unit of caching features and of sharing that work between processes."""


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
            "sets are compared at one shape and bit depth; bring them there with --size, "
            "--channels, --value-range or, where it is the alpha channel, --transparency keep"
        )
