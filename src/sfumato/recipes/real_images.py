"""Real images to measure against: a fair pick, in bounded memory, broken files told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.images import Images, in_threads
from sfumato.data.pixels import to_model
from sfumato.data.reader import Reader
from sfumato.metrics.thinning import spread

MOST = 10_000
MOST_BYTES = 512 * 2**20

_BATCH = 256


class RealImages:
    """A set of real images for measuring.

    `x` [n, C, H, W], float32 in [-1, 1], and `labels` [n] or None are those held in memory: at most
    10,000 and `most_bytes`; `stream` reads more, batch by batch. An unreadable file is replaced by
    the next readable one and named in `broken`; more than 1 % of them are a DataError. `tick` is
    told how many more are in memory.
    """

    def __init__(
        self,
        images: Images,
        most_bytes: int = MOST_BYTES,
        *,
        tick: Callable[[int], object] = lambda read: None,
    ) -> None:
        self.images = images
        self._reader = Reader(images, cache_bytes=0)
        index = spread(len(images), held(images.format.shape, MOST, most_bytes))
        parts: list[Tensor] = []
        used: list[NDArray[np.int64]] = []
        for x, rows in self._read(index):
            parts.append(x)
            used.append(rows)
            tick(len(x))
        self.x = torch.cat(parts)
        labels = images.labels
        self.labels = None if labels is None else torch.from_numpy(labels[np.concatenate(used)])

    def __len__(self) -> int:
        """All images of the set, held or not."""
        return len(self.images)

    @property
    def broken(self) -> tuple[str, ...]:
        """Files found unreadable so far, on opening or since."""
        return self._reader.skipped

    def stream(self, most: int = MOST) -> Iterator[Tensor]:
        """Yield batches of at most `most` images, a fair pick in order, in [-1, 1]."""
        if min(most, len(self)) == len(self.x):
            yield from self.x.split(_BATCH)
            return
        for x, _ in self._read(spread(len(self), most)):
            yield x

    def _read(self, index: NDArray[np.int64]) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Batches, and which images they really are."""

        def make(part: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
            raw, used = self._reader.read(part)
            return to_model(raw, self.images.format), used

        parts = [index[start : start + _BATCH] for start in range(0, len(index), _BATCH)]
        yield from map(make, parts) if self.images.resident else in_threads(make, parts, ahead=2)


def held(shape: Sequence[int], most: int = MOST, most_bytes: int = MOST_BYTES) -> int:
    """Return how many images [C, H, W] may lie in memory as float32: `most`, or what fits."""
    return min(most, max(16, most_bytes // (4 * math.prod(shape))))
