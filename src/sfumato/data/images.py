"""What every source of images offers: length, raw reading, labels, identity."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import cpu_count
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sfumato.data.pixels import PixelFormat
from sfumato.errors import DataError

Indices = Sequence[int] | NDArray[np.integer[Any]]
T = TypeVar("T")
R = TypeVar("R")

WORST_SHARE = 0.01  # unreadable images above this share of a set stop the work


class UnreadableImageError(DataError):
    """One image file that cannot be decoded; `index` is its place in the set, when known."""

    def __init__(self, message: str, index: int = -1) -> None:
        super().__init__(message)
        self.index = index


class Images(ABC):
    """A finite, indexed set of raw images of one `PixelFormat`.

    labels: int64 [N], or None when they were not asked for. classes: a name for each label.
    fingerprint: a short hash that changes when the set does. skipped: unreadable files left out.
    resident: whether `read` costs no decoding, so caching and prefetching would gain nothing.
    opened: the arguments with which `open_images` opens this set again; None for any other set.
    inputs: for pairs, the images that these are learned from, one for each, in the same order.
    """

    format: PixelFormat
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    fingerprint: str
    skipped: tuple[str, ...] = ()
    source: str
    resident: bool = False
    opened: Mapping[str, Any] | None = None
    inputs: Images | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Indices) -> NDArray[Any]:
        """Raw images [n, C, H, W] of `format.dtype`; UnreadableImageError names a broken file."""

    def representative(self) -> Images:
        """These images, or some that stand for them where reading any of all would cost much."""
        return self

    def stored(self, i: int) -> tuple[str, bytes] | None:
        """Name and bytes of the file that holds image i alone; None where there is no such file."""
        return None

    def names(self, i: int) -> str:
        """The name of image i, for messages and reports."""
        return f"{self.source}[{i}]"

    def describe(self) -> str:
        """One line: where from, how many, their format, classes, and what was skipped."""
        text = f"{self.source}: {len(self):,} images, {self.format.describe()}"
        if self.labels is not None:
            text += f", {len(self.classes)} classes"
        return text + left_out(self.skipped)


class Subset(Images):
    """Some images of another set, in the order of `indices`."""

    def __init__(self, images: Images, indices: Indices, source: str | None = None) -> None:
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.ndim != 1:
            raise ValueError(f"expected a flat list of indices, got shape {chosen.shape}")
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(images)):
            raise DataError(
                f"subset of {images.source}: expected indices in 0..{len(images) - 1}, "
                f"got {chosen.min()}..{chosen.max()}"
            )
        self._images, self._indices = images, chosen
        self.format = images.format
        self.labels = None if images.labels is None else images.labels[chosen]
        self.classes = images.classes
        self.skipped = images.skipped
        self.source = source or f"{images.source} (subset)"
        self.resident = images.resident
        if images.inputs is not None:
            self.inputs = Subset(images.inputs, chosen)
        self.fingerprint = digest([images.fingerprint.encode(), chosen.tobytes()])

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: Indices) -> NDArray[Any]:
        """Raw images [n, C, H, W]."""
        places = np.asarray(indices, dtype=np.int64)
        try:
            return self._images.read(self._indices[places])
        except UnreadableImageError as error:
            place = int(places[np.flatnonzero(self._indices[places] == error.index)[0]])
            raise UnreadableImageError(str(error), place) from error

    def stored(self, i: int) -> tuple[str, bytes] | None:
        """The file of this image in the whole set."""
        return self._images.stored(int(self._indices[i]))

    def names(self, i: int) -> str:
        """The name the whole set gives to this image."""
        return self._images.names(int(self._indices[i]))


def in_threads(work: Callable[[T], R], items: Iterable[T], ahead: int = 64) -> Iterator[R]:
    """`map(work, items)` on a few threads, in order, at most `ahead` results early."""
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(min(cpu_count() or 1, 8), "sfumato-read") as pool:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def first_of(complaints: Sequence[str], most: int) -> str:
    """The first `most` complaints as one text, which says where there are more."""
    return "; ".join(complaints[:most]) + ("; ..." if complaints[most:] else "")


def left_out(skipped: Sequence[str], what: str = "unreadable") -> str:
    """How many files are no use, and which, to end a description with; nothing if none."""
    if not skipped:
        return ""
    return f", {len(skipped)} {what} skipped: {first_of(skipped, 3)}"


def check_share(bad: Sequence[str], total: int, where: str) -> None:
    """DataError when more than 1 % of `total` images are unreadable; names up to five of them."""
    if len(bad) <= WORST_SHARE * total:
        return
    shown = first_of(bad, 5)
    if total == 1:
        raise DataError(f"{where} cannot be read: {shown}")
    raise DataError(
        f"{where}: {len(bad)} of {total:,} images cannot be read, more than the 1 % that is "
        f"skipped: {shown}. Repair or remove them"
    )


def digest(parts: Iterable[bytes]) -> str:
    """A 16-character hash of byte strings; where one ends and the next begins counts."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()
