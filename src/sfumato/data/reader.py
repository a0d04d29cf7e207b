"""Reading a set that may hold broken files, with or without keeping it decoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.data.images import Images, UnreadableImageError, check_share, in_threads
from sfumato.errors import DataError


def chunks(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """0..count-1 in runs of at most `size`."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


class Reader:
    """Raw images by index, kept decoded while they fit `cache_bytes`, unreadable ones replaced.

    An unreadable file is replaced by the next readable image of the set, which again is a pure
    function of the index; above 1 % of the set DataError.
    """

    def __init__(self, images: Images, cache_bytes: int) -> None:
        if not len(images):
            raise DataError(f"{images.source}: expected at least one image, the set is empty")
        self._images = images
        self._cache: NDArray[Any] | None = None
        if not images.resident and len(images) * images.format.nbytes <= cache_bytes:
            self._cache = np.empty((len(images), *images.format.shape), images.format.dtype)
        # A byte an image would be much for a stream of billions, which is never cached.
        self._cached = np.zeros(0 if self._cache is None else len(images), np.bool_)
        self._replaced: dict[int, int] = {}
        self._broken: dict[int, str] = {}

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files found unreadable, on opening or since."""
        return (*self._images.skipped, *self._broken.values())

    @property
    def instant(self) -> bool:
        """Whether nothing is left to decode."""
        return self._images.resident or (self._cache is not None and bool(self._cached.all()))

    def read(self, index: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Raw [n, C, H, W] and the indices they are really of. Safe in several threads."""
        used = self._known(index)
        cache = self._cache
        if cache is None:
            return self._decode(used)
        missing = np.unique(used[~self._cached[used]])
        if len(missing):
            values, found = self._decode(missing)
            cache[found] = values
            self._cached[found] = True
            self._cached[missing] = True  # the broken among them are never looked up again
        used = self._known(used)
        return cache[used], used

    def _decode(self, index: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        while True:
            try:
                return self._images.read(index), index
            except UnreadableImageError as error:
                if error.index < 0:
                    raise
                self._replace(error.index, str(error))
                index = self._known(index)

    def _replace(self, broken: int, complaint: str) -> None:
        self._broken[broken] = complaint
        total = len(self._images) + len(self._images.skipped)
        check_share(self.skipped, total, self._images.source)
        self._replaced[broken] = (broken + 1) % len(self._images)

    def _known(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Follow the replacements found so far."""
        if not self._replaced:
            return index
        used = index.copy()
        for place, i in enumerate(used):
            while int(i) in self._replaced:
                i = self._replaced[int(i)]
            used[place] = i
        return used


def as_arrays(images: Images) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """The whole set as raw [N, C, H, W] and labels [N] (or None); it must fit memory."""
    reader = Reader(images, cache_bytes=0)
    out = np.empty((len(images), *images.format.shape), images.format.dtype)
    used = np.arange(len(images))

    def load(part: NDArray[np.int64]) -> None:
        out[part], used[part] = reader.read(part)

    for _ in in_threads(load, chunks(len(images), 64)):
        pass
    return out, None if images.labels is None else images.labels[used]
