"""Training batches from shards: in order of need, resumable anywhere, shared between processes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.data.images import UnreadableImageError, check_share
from sfumato.data.loader import Batch, Batches, batch_of
from sfumato.data.shards.images import ShardImages
from sfumato.data.shards.order import Order
from sfumato.data.shards.table import ShardError
from sfumato.errors import DataError

_EARLY = 0.25  # of a shard: so much of the one before is left when the next is opened


class ShardBatches(Batches):
    """The stream of `order`, batch by batch, exactly resumable from `position`, flat in memory.

    Process `rank` of `count` gives its share of every global batch of `batch_size` images, whose
    images do not depend on `count`; `position` counts the images of global batches. The other
    options are those of `Batches`. A broken shard is replaced by the next in the epoch's order, an
    unreadable image by the next in its shard; both are named in `skipped`. Raises DataError for
    more than 1 % of either (one shard is always forgiven where there are others).
    """

    def __init__(
        self,
        images: ShardImages,
        batch_size: int,
        seed: int,
        *,
        position: int = 0,
        flip: bool = False,
        labels: bool = False,
        workers: int | None = None,
        prefetch: int | None = None,
        pinned: bool = False,
        rank: int = 0,
        count: int = 1,
    ) -> None:
        if not len(images):
            raise DataError(f"{images.source}: expected at least one image, the shards are empty")
        super().__init__(
            images,
            batch_size,
            seed,
            position=position,
            flip=flip,
            labels=labels,
            workers=workers,
            prefetch=prefetch,
            cache_bytes=0,
            pinned=pinned,
            rank=rank,
            count=count,
        )
        self._shards, self._rank, self._count = images, rank, count
        self._order = Order(images.counts, seed, images.lanes)
        typical = images.counts[images.counts > 0].mean()
        reach = max(batch_size * (self._ahead + 1), int(images.lanes * typical * _EARLY))
        self._reach = -(-reach // batch_size) * batch_size
        self._lock = threading.Lock()
        self._broken: dict[int, str] = {}
        self._told = list(images.skipped)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Shards and images found unreadable so far, new ones last."""
        with self._lock:
            found = (*self._shards.store.complaints, *self._broken.values())
            self._told += [complaint for complaint in found if complaint not in self._told]
            return tuple(self._told)

    def _make(self, start: int) -> Batch:
        mine = self._order.batch(start, self.batch_size, self._rank, self._count)
        places = self._order.places(mine)
        images, given = self._shards, self._shards.input_side
        raw = np.empty((len(mine), *images.format.shape), images.format.dtype)
        inputs = (
            None
            if given is None
            else np.empty((len(mine), *given.format.shape), given.format.dtype)
        )
        later = self._order.batch(start + self._reach, self.batch_size, self._rank, self._count)
        self._shards.store.ahead(map(int, np.unique(self._order.places(later).shard)))
        shard, inside = places.shard.copy(), places.inside.copy()
        todo = np.ones(len(mine), np.bool_)
        while todo.any():
            for number in np.unique(shard[todo]):
                here = np.flatnonzero(todo & (shard == number))
                try:
                    self._read(int(number), here, inside, raw, inputs)
                    todo[here] = False
                except ShardError:
                    for place in here:
                        shard[place] = self._order.after(int(places.epoch[place]), int(number))
                    inside[here] %= images.counts[shard[here]]
        index = images.starts[shard] + inside
        return self._finish(batch_of(images, raw, inputs, index, self._labels), places.mirror)

    def _read(
        self,
        number: int,
        here: NDArray[np.int64],
        inside: NDArray[np.int64],
        raw: NDArray[Any],
        inputs: NDArray[Any] | None,
    ) -> None:
        """Fill the places `here` from one shard; `inside` moves on from unreadable images."""
        images = self._shards
        first, count = int(images.starts[number]), int(images.counts[number])
        with images.store.opened(number) as opened, opened.path.open("rb") as stream:
            for place in here[np.argsort(inside[here])]:
                for _ in range(count):
                    i = int(inside[place])
                    if first + i not in self._broken:
                        try:
                            raw[place] = images.side.image(stream, opened, i)
                            if inputs is not None and images.input_side is not None:
                                inputs[place] = images.input_side.image(stream, opened, i)
                            break
                        except UnreadableImageError as error:
                            self._note(first + i, f"{images.shard(number).name}: {error}")
                    inside[place] = (i + 1) % count
                else:
                    raise DataError(
                        f"{images.source}: no image of {images.shard(number).name} can be read: "
                        f"{self._broken[first]}"
                    )

    def _note(self, index: int, complaint: str) -> None:
        with self._lock:
            self._broken[index] = complaint
            found = tuple(self._broken.values())
        check_share(found, len(self._shards), self._shards.source)
