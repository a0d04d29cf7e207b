"""The order of the stream: nothing twice, nothing missing, whoever reads; any position at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.data.shards.order import Order

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda c: sum(c) > 0)
# Processes, and the global batch.
SPLITS = st.sampled_from([(1, 6), (2, 6), (3, 6), (4, 8), (8, 8), (1, 1), (5, 20), (3, 7)])


def flat(order: Order, positions: np.ndarray) -> np.ndarray:
    places = order.places(positions)
    starts = np.cumsum(order.counts) - order.counts
    assert (places.inside < order.counts[places.shard]).all()
    return starts[places.shard] + places.inside


@settings(max_examples=150, deadline=None)
@given(COUNTS, st.integers(0, 5), st.integers(1, 20), SPLITS, st.integers(0, 3))
def test_every_epoch_holds_every_image_once_whoever_reads(counts, seed, lanes, split, skip):
    ranks, size = split
    order = Order(counts, seed, lanes)
    total, start = order.total, skip * size
    end = start + -(-3 * total // size) * size
    positions, images = [], []
    for begin in range(start, end, size):
        for rank in range(ranks):
            mine = order.batch(begin, size, rank, ranks)
            assert len(mine) in (size // ranks, size // ranks + 1)
            positions.append(mine)
            images.append(flat(order, mine))
    positions, images = np.concatenate(positions), np.concatenate(images)
    assert np.array_equal(np.sort(positions), np.arange(start, end))
    in_order = images[np.argsort(positions)]
    for epoch in range(-(-start // total), end // total):
        one = in_order[epoch * total - start : (epoch + 1) * total - start]
        assert np.array_equal(np.sort(one), np.arange(total))


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.integers(1, 20), SPLITS, st.integers(0, 500))
def test_processes_share_the_batch_that_one_sees(counts, lanes, split, begin):
    ranks, size = split
    order = Order(counts, 3, lanes)
    whole = order.batch(begin, size)
    parts = [order.batch(begin, size, rank, ranks) for rank in range(ranks)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_any_position_is_found_without_those_before():
    order, again = Order([7, 9, 4], 1, 3), Order([7, 9, 4], 1, 3)
    places = order.places(np.arange(500))
    for position in (0, 19, 20, 333):
        one = again.places(np.array([position]))
        for name in ("epoch", "shard", "inside", "mirror"):
            assert getattr(one, name)[0] == getattr(places, name)[position]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_that_divide_the_lanes_read_shards_of_their_own(ranks):
    """64 shards on 8 lanes: at a lane's borders two ranks may meet in a shard, nowhere else."""
    order, size = Order([50] * 64, 0, 8), 16
    opened = []
    for rank in range(ranks):
        mine = [order.batch(begin, size, rank, ranks) for begin in range(0, order.total, size)]
        opened.append(set(order.places(np.concatenate(mine)).shard.tolist()))
    assert sum(map(len, opened)) == 64
    assert max(map(len, opened)) == 64 // ranks


def test_few_shards_are_open_at_once_and_batches_mix_them():
    order = Order([100] * 200, 0, 16)
    seen = [
        len(np.unique(order.places(order.batch(begin, 64)).shard)) for begin in range(0, 3200, 64)
    ]
    assert np.median(seen) == 16
    assert min(seen) >= 8
    assert max(seen) <= 2 * 16


def test_seeds_epochs_and_mirrors_differ():
    order, other = Order([40, 60], 0), Order([40, 60], 1)
    first, second = flat(order, np.arange(100)), flat(order, np.arange(100, 200))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, flat(other, np.arange(100)))
    mirror = order.places(np.arange(20_000)).mirror
    assert abs(mirror.mean() - 0.5) < 5 * 0.5 / 20_000**0.5


def test_empty_shards_are_never_asked():
    order = Order([0, 5, 0, 7], 2, 4)
    assert set(order.places(np.arange(60)).shard.tolist()) == {1, 3}
    assert order.after(0, 1) == 3
    assert order.after(0, 3) == 1
    with pytest.raises(ValueError, match="shards with images"):
        Order([0, 0], 0)
