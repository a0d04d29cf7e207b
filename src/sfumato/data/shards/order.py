"""Which image of which shard stands at each position of an endless stream: a pure function.

Every epoch shuffles the list of shards and, for itself, the images of each shard. Laid end to end
that is one long row of all images. L readers, the lanes, start at equal distances along the row and
walk side by side; position p of an epoch is the next image of lane p mod L. So a batch mixes
L shards at least, nobody keeps a buffer, any position is found without reading what came before,
and a process that takes certain lanes opens only these lanes' shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LANES = 16
_SHARDS, _INSIDE, _MIRROR = 2, 3, 4  # purposes of randomness; 0 and 1 are the loader's
_EPOCHS_KEPT, _SHARDS_KEPT = 3, 128

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Places:
    """Where positions of the stream are: four arrays [n]: epoch, shard, image in it, mirrored."""

    epoch: Ints
    shard: Ints
    inside: Ints
    mirror: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Row:
    """One epoch's shards in their order, and where each begins: `begins` [shards + 1]."""

    shards: Ints
    begins: Ints
    rank: Ints  # the place of each shard in `shards`


class Order:
    """The stream over shards of `counts` images each, at least one of them not empty."""

    def __init__(self, counts: Sequence[int] | Ints, seed: int, lanes: int = LANES) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        if lanes < 1 or seed < 0 or not self.counts.sum() or self.counts.min() < 0:
            raise ValueError(
                "expected lanes >= 1, seed >= 0 and shards with images, got "
                f"{lanes} lanes, seed {seed} and {self.counts.sum()} images"
            )
        self.seed, self.lanes, self.total = seed, lanes, int(self.counts.sum())
        lengths = (self.total - np.arange(lanes) + lanes - 1) // lanes
        self._lane_begins = np.concatenate([[0], np.cumsum(lengths)])
        self._row = lru_cache(_EPOCHS_KEPT)(self._make_row)
        self._shuffled = lru_cache(_SHARDS_KEPT)(self._shuffle)

    def places(self, positions: Ints) -> Places:
        """Where these positions of the stream are, whatever their order."""
        epoch, place = np.divmod(positions, self.total)
        step, lane = np.divmod(place, self.lanes)
        along = self._lane_begins[lane] + step
        shard = np.empty_like(positions)
        inside = np.empty_like(positions)
        mirror = np.empty(len(positions), np.bool_)
        for e in np.unique(epoch):
            here = epoch == e
            row = self._row(int(e))
            at = np.searchsorted(row.begins, along[here], "right") - 1
            shard[here] = row.shards[at]
            inside[here] = along[here] - row.begins[at]
        for e, s in {(int(e), int(s)) for e, s in zip(epoch, shard, strict=True)}:
            here = (epoch == e) & (shard == s)
            order, coins = self._shuffled(e, s)
            inside[here], mirror[here] = order[inside[here]], coins[inside[here]]
        return Places(epoch, shard, inside, mirror)

    def batch(self, start: int, size: int, rank: int = 0, count: int = 1) -> Ints:
        """Positions of one process's part of the global batch start .. start + size - 1.

        The batch is sorted by lane, and process `rank` of `count` takes the rank-th equal run of
        it: where count divides the lanes, and they the batch, no lane is read by two processes.
        """
        positions = np.arange(start, start + size, dtype=np.int64)
        by_lane = positions[np.argsort(positions % self.lanes, kind="stable")]
        return by_lane[rank * size // count : (rank + 1) * size // count]

    def after(self, epoch: int, shard: int) -> int:
        """The shard that follows in an epoch's order; after the last the first; none is empty."""
        row = self._row(epoch)
        at = int(row.rank[shard])
        while True:
            at = (at + 1) % len(row.shards)
            if self.counts[row.shards[at]]:
                return int(row.shards[at])

    def _make_row(self, epoch: int) -> _Row:
        shards = np.random.default_rng((self.seed, _SHARDS, epoch)).permutation(len(self.counts))
        begins = np.concatenate([[0], np.cumsum(self.counts[shards])])
        rank = np.empty_like(shards)
        rank[shards] = np.arange(len(shards))
        return _Row(shards, begins, rank)

    def _shuffle(self, epoch: int, shard: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """A shuffle of one shard's images in one epoch, and a fair coin for each."""
        count = int(self.counts[shard])
        order = np.random.default_rng((self.seed, _INSIDE, epoch, shard)).permutation(count)
        coins = np.random.default_rng((self.seed, _MIRROR, epoch, shard)).random(count) < 0.5
        return order.astype(np.int32), coins
