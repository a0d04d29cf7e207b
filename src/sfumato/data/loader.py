"""The endless, reproducible stream of training batches.

Which image comes when, and whether it is mirrored, is a pure function of (seed, number of images
handed out so far). So a run that resumes at a position sees the very batches it would have seen,
however they are decoded, cached or prefetched.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.images import Images, UnreadableImageError, check_share, chunks
from sfumato.data.pixels import to_model
from sfumato.errors import DataError

CACHE_BYTES = 2 * 2**30
_ORDER, _MIRROR = 0, 1  # purposes of randomness


@dataclass(frozen=True)
class Batch:
    """x: float32 [B, C, H, W] in [-1, 1]; labels: int64 [B] or None; index: int64 [B] in the set."""

    x: Tensor
    labels: Tensor | None
    index: Tensor


@dataclass(frozen=True)
class Order:
    """An independent shuffle of `count` images per epoch; position p is slot p % count of it."""

    count: int
    seed: int

    def at(self, start: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Image indices and mirror bits (a fair coin) of positions start .. start + length - 1."""
        index, mirror = np.empty(length, np.int64), np.empty(length, np.bool_)
        done = 0
        while done < length:
            epoch, slot = divmod(start + done, self.count)
            take = min(length - done, self.count - slot)
            part = slice(slot, slot + take)
            index[done : done + take] = self._rng(_ORDER, epoch).permutation(self.count)[part]
            mirror[done : done + take] = self._rng(_MIRROR, epoch).random(self.count)[part] < 0.5
            done += take
        return index, mirror

    def _rng(self, purpose: int, epoch: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, purpose, epoch))


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
        self._cached = np.zeros(len(images), np.bool_)
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


class Batches(Iterator[Batch]):
    """An endless iterator of batches, exactly resumable from `position` (images handed out so far).

    Batches run across the borders of epochs. flip: mirror each image left to right with
    probability 1/2. labels: batches carry class labels. Decoding runs `prefetch` batches ahead in
    `workers` threads, until the set is in memory: decoded images are kept when all of them fit
    `cache_bytes`; beyond that memory holds only the batches in flight. `waited` and `busy` are the
    seconds spent in here and in the consumer since the first batch.

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
    ) -> None:
        if batch_size < 1 or seed < 0 or position < 0:
            raise ValueError(
                "expected batch_size >= 1, seed >= 0 and position >= 0, got "
                f"{batch_size}, {seed} and {position}"
            )
        if labels and images.labels is None:
            raise DataError(
                f"{images.source}: class labels were asked for, but the set was opened without "
                "them; open it with labels=True"
            )
        self.batch_size, self.position = batch_size, position
        self.waited, self.busy = 0.0, 0.0
        self._images, self._flip, self._labels = images, flip, labels
        self._reader = Reader(images, cache_bytes)
        self._order = Order(len(images), seed)
        workers = workers or min(cpu_count() or 1, 8)
        self._ahead = prefetch or workers + 1
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="sfumato-load")
        self._pending: deque[Future[Batch]] = deque()
        self._submitted = position  # start of the next batch to ask for
        self._left: float | None = None  # when the consumer last took a batch
        self._closed = False

    @property
    def epoch(self) -> float:
        """Passes over the set so far, with its fraction."""
        return self.position / len(self._images)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files found unreadable so far."""
        return self._reader.skipped

    @property
    def waited_share(self) -> float:
        """Share of the time since the first batch that the consumer waited for data, 0 to 1."""
        total = self.waited + self.busy
        return self.waited / total if total else 0.0

    def __next__(self) -> Batch:
        """The next batch; errors of the decoding threads are raised here."""
        if self._closed:
            raise ValueError("this stream of batches is closed")
        asked = time.perf_counter()
        if self._left is not None:
            self.busy += asked - self._left
        self._submit()
        batch = self._pending[0].result() if self._pending else self._make(self.position)
        if self._pending:
            self._pending.popleft()
        self.position += self.batch_size
        self._submit()
        first = self._left is None
        self._left = time.perf_counter()
        if not first:  # nothing could have been prepared before the first batch
            self.waited += self._left - asked
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
        while len(self._pending) < self._ahead and not self._reader.instant:
            self._pending.append(self._pool.submit(self._make, self._submitted))
            self._submitted += self.batch_size

    def _make(self, start: int) -> Batch:
        index, mirror = self._order.at(start, self.batch_size)
        raw, used = self._reader.read(index)
        x = to_model(raw, self._images.format)
        if self._flip:
            x[torch.from_numpy(mirror)] = x[torch.from_numpy(mirror)].flip(-1)
        return _batch(self._images, x, used, self._labels)


def one_pass(images: Images, batch_size: int, *, labels: bool = False) -> Iterator[Batch]:
    """Every image once, in order, the last batch as short as it comes; for measuring."""
    reader = Reader(images, cache_bytes=0)
    for index in chunks(len(images), batch_size):
        raw, used = reader.read(index)
        yield _batch(images, to_model(raw, images.format), used, labels)


def _batch(images: Images, x: Tensor, index: NDArray[np.int64], labels: bool) -> Batch:
    chosen = (
        torch.from_numpy(images.labels[index]) if labels and images.labels is not None else None
    )
    return Batch(x, chosen, torch.from_numpy(index))
