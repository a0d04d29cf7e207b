"""The endless, reproducible stream of training batches.

Which image comes when, and whether it is mirrored, is a pure function of (seed, number of images
handed out so far). So a run that resumes at a position sees the very batches it would have seen,
however they are decoded, cached or prefetched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from os import cpu_count
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.images import Images, in_threads
from sfumato.data.pairs import records, split
from sfumato.data.pixels import to_model
from sfumato.data.reader import Reader, chunks
from sfumato.errors import DataError
from sfumato.processes import share

CACHE_BYTES = 2 * 2**30
_ORDER, _MIRROR = 0, 1  # purposes of randomness


@dataclass(frozen=True)
class Batch:
    """x: float32 [B, C, H, W] in [-1, 1]; labels: int64 [B] or None; index: int64 [B] in it.

    condition: for pairs, the images that x is learned from, float32 [B, K, H, W] in [-1, 1].
    """

    x: Tensor
    labels: Tensor | None
    index: Tensor
    condition: Tensor | None = None


@lru_cache(maxsize=4)
def _epoch(count: int, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """A shuffle of `count` images and a fair coin for each, independent for every epoch."""
    order = np.random.default_rng((seed, _ORDER, epoch)).permutation(count)
    mirror = np.random.default_rng((seed, _MIRROR, epoch)).random(count) < 0.5
    return order, mirror


def stream(
    count: int, seed: int, start: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Image indices and mirror bits of positions start .. start + length - 1 of the stream.

    Position p is slot p % count of the shuffle of epoch p // count.
    """
    epochs = [_epoch(count, seed, e) for e in range(start // count, -(-(start + length) // count))]
    here = slice(start % count, start % count + length)
    order, mirror = (np.concatenate(parts)[here] for parts in zip(*epochs, strict=True))
    return order, mirror


class Batches(Iterator[Batch]):
    """An endless iterator of batches, exactly resumable from `position` (images handed out so far).

    Batches run across the borders of epochs. flip: mirror each image left to right with
    probability 1/2, of pairs both. labels: batches carry class labels. Decoding runs `prefetch`
    batches ahead in `workers` threads, until the set is in memory: decoded images are kept when all
    of them fit `cache_bytes`; beyond that memory holds only the batches in flight. pinned: put
    batches into memory that a GPU copies from by itself, always ahead. Process `rank` of `count`
    gets, and decodes, only its share of every batch; `position` counts whole batches.

    Raises DataError for an empty set, missing labels, or too many unreadable files. Close it, or
    use it in a `with` statement, to stop its threads.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        *,
        position: int = 0,
        flip: bool = False,
        labels: bool = False,
        workers: int | None = None,
        prefetch: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        pinned: bool = False,
        rank: int = 0,
        count: int = 1,
    ) -> None:
        if batch_size < 1 or seed < 0 or position < 0:
            raise ValueError(
                "expected batch_size >= 1, seed >= 0 and position >= 0, got "
                f"{batch_size}, {seed} and {position}"
            )
        if not 0 <= rank < count <= batch_size:
            raise ValueError(
                f"expected 0 <= rank < count <= batch_size, got rank {rank} of {count} for batches "
                f"of {batch_size}"
            )
        if labels and images.labels is None:
            raise DataError(
                f"{images.source}: class labels were asked for, but the set was opened without "
                "them; open it with labels=True"
            )
        self.batch_size, self.position = batch_size, position
        self._images, self._flip, self._labels = images, flip, labels
        self._reader = Reader(records(images), cache_bytes)
        self._seed, self._mine = seed, share(batch_size, rank, count)
        workers = workers or min(cpu_count() or 1, 8)
        self._ahead = prefetch or workers + 1
        self._pinned = pinned
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="sfumato-load")
        self._pending: deque[Future[Batch]] = deque()
        self._submitted = position  # start of the next batch to ask for
        self._closed = False

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files found unreadable so far."""
        return self._reader.skipped

    def __next__(self) -> Batch:
        """The next batch; errors of the decoding threads are raised here."""
        if self._closed:
            raise ValueError("this stream of batches is closed")
        self._submit()
        batch = self._pending[0].result() if self._pending else self._make(self.position)
        if self._pending:
            self._pending.popleft()
        self.position += self.batch_size
        self._submit()
        return batch

    def close(self) -> None:
        """Stop the threads and drop what was prefetched; `position` stays valid."""
        self._closed = True
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _submit(self) -> None:
        """Keep the threads ahead; once everything is in memory, they are not worth a switch."""
        if not self._pending:
            self._submitted = self.position
        while len(self._pending) < self._ahead and (self._pinned or not self._reader.instant):
            self._pending.append(self._pool.submit(self._make, self._submitted))
            self._submitted += self.batch_size

    def _make(self, start: int) -> Batch:
        first, length = start + self._mine.start, len(self._mine)
        index, mirror = stream(len(self._images), self._seed, first, length)
        raw, used = self._reader.read(index)
        pixels, inputs = split(self._images, raw)
        return self._finish(batch_of(self._images, pixels, inputs, used, self._labels), mirror)

    def _finish(self, batch: Batch, mirror: NDArray[np.bool_]) -> Batch:
        """Mirror the images that are to be, and put the batch where a GPU copies from."""
        if self._flip:
            chosen = torch.from_numpy(mirror)
            for x in (batch.x, batch.condition):
                if x is not None:
                    x[chosen] = x[chosen].flip(-1)
        if not self._pinned:
            return batch
        condition = None if batch.condition is None else batch.condition.pin_memory()
        return replace(batch, x=batch.x.pin_memory(), condition=condition)


def one_pass(images: Images, batch_size: int, *, labels: bool = False) -> Iterator[Batch]:
    """Every image once, in order, the last batch as short as it comes; for measuring."""
    reader = Reader(records(images), cache_bytes=0)

    def make(index: NDArray[np.int64]) -> Batch:
        raw, used = reader.read(index)
        return batch_of(images, *split(images, raw), used, labels)

    parts = chunks(len(images), batch_size)
    yield from map(make, parts) if images.resident else in_threads(make, parts, ahead=2)


def batch_of(
    images: Images,
    raw: NDArray[Any],
    inputs: NDArray[Any] | None,
    index: NDArray[np.int64],
    labels: bool,
) -> Batch:
    """A batch of raw images [B, C, H, W] of a set, those at `index`; of pairs, with their inputs.

    labels: with the classes of these images, where the set has them.
    """
    classes = images.labels[index] if labels and images.labels is not None else None
    return Batch(
        to_model(raw, images.format),
        None if classes is None else torch.from_numpy(classes),
        torch.from_numpy(index),
        None if images.inputs is None or inputs is None else to_model(inputs, images.inputs.format),
    )
