"""The stream of batches: exact resuming, full coverage, flat memory, decoding ahead."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data import files
from sfumato.data.arrays import InMemory
from sfumato.data.images import Images, Subset, UnreadableImageError
from sfumato.data.loader import Batches, one_pass
from sfumato.data.pixels import pixel_format, to_model
from sfumato.data.reader import as_arrays
from sfumato.data.sources import open_images
from sfumato.errors import DataError

RNG = np.random.default_rng(4)
STACK = RNG.integers(0, 256, (13, 3, 4, 6), np.uint8)
LABELS = np.arange(13) % 4
PATIENCE = 30
"""Seconds until what ought to happen in other threads counts as never."""


class Slow(Images):
    """Images that take time to decode, some of them broken; counts what is decoded."""

    def __init__(self, array, seconds=0.0, broken=()):
        self.format = pixel_format(array.shape[1:], "uint8", None)
        self.source, self.fingerprint = "slow", "0"
        self.labels, self.classes = np.arange(len(array)), ("x",) * len(array)
        self.array, self.seconds, self.broken = array, seconds, set(broken)
        self.decoded = 0
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()

    def __len__(self):
        return len(self.array)

    def read(self, indices):
        with self.lock:
            self.at_once += len(indices)
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.decoded += len(indices)
        time.sleep(self.seconds * len(indices))
        with self.lock:
            self.at_once -= len(indices)
        for i in indices:
            if int(i) in self.broken:
                raise UnreadableImageError(f"img{i} (broken)", int(i))
        return self.array[np.asarray(indices)]


class Gated(Slow):
    """Images that are decoded only as far as they are let; leaving it lets all."""

    def __init__(self, array):
        super().__init__(array)
        self.changed, self.allowed = threading.Condition(), 0

    def let(self, count):
        with self.changed:
            self.allowed += count
            self.changed.notify_all()

    def read(self, indices):
        with self.changed:
            assert self.changed.wait_for(lambda: self.allowed >= len(indices), PATIENCE)
            self.allowed -= len(indices)
        return super().read(indices)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.let(10**6)


def until(true):
    """Wait for what other threads bring about."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def take(batches, count):
    with batches:
        return [next(batches) for _ in range(count)]


def joined(batches):
    return (
        torch.cat([b.x for b in batches]),
        torch.cat([b.index for b in batches]),
        torch.cat([b.labels for b in batches]),
    )


def modes(tmp_path):
    """The same images in memory, as files cached in memory, and as files decoded every time."""
    for i, image in enumerate(STACK):
        (tmp_path / str(LABELS[i])).mkdir(exist_ok=True)
        Image.fromarray(np.moveaxis(image, 0, -1)).save(tmp_path / str(LABELS[i]) / f"{i}.png")
    folder = open_images(tmp_path, labels=True)
    order = [int(folder.names(i).split("/")[1][:-4]) for i in range(13)]
    return [
        (InMemory(STACK[order], LABELS[order]), {}),
        (folder, {}),
        (folder, {"cache_bytes": 0}),
        (folder, {"cache_bytes": 0, "workers": 1, "prefetch": 1}),
    ]


@pytest.mark.parametrize("position", [0, 5, 13, 40])
def test_resuming_continues_the_same_stream_to_the_bit(tmp_path, position):
    """Pixels, labels, indices, flips: in every mode, at any position, with any prefetching."""
    reference = None
    for images, options in modes(tmp_path):
        whole = take(Batches(images, 5, seed=7, flip=True, labels=True, **options), 14)
        x, index, labels = joined(whole)
        again = take(Batches(images, 5, 7, position=position, flip=True, labels=True, **options), 5)
        x2, index2, labels2 = joined(again)
        assert torch.equal(x2, x[position : position + 25])
        assert torch.equal(index2, index[position : position + 25])
        assert torch.equal(labels2, labels[position : position + 25])
        if reference is not None:
            assert torch.equal(x, reference)
        reference = x


def test_batches_hold_the_images_they_name():
    x, index, labels = joined(take(Batches(InMemory(STACK, LABELS), 4, 0, labels=True), 10))
    raw = to_model(STACK, InMemory(STACK).format)
    assert torch.equal(x, raw[index])
    assert torch.equal(labels, torch.from_numpy(LABELS)[index])
    assert x.dtype == torch.float32
    assert labels.dtype == index.dtype == torch.int64


def test_every_epoch_is_a_new_permutation():
    _, index, _ = joined(take(Batches(InMemory(STACK, LABELS), 6, 1, labels=True), 13))
    epochs = index.reshape(6, 13)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(13))
    assert len({tuple(e.tolist()) for e in epochs}) == 6
    other = joined(take(Batches(InMemory(STACK, LABELS), 6, 2, labels=True), 13))[1]
    assert not torch.equal(index, other)


def test_each_image_is_flipped_about_half_of_the_time():
    images = InMemory(STACK, LABELS)
    raw = to_model(STACK, images.format)
    x, index, _ = joined(take(Batches(images, 50, 3, flip=True, labels=True), 40))
    kept = (x == raw[index]).flatten(1).all(1)
    turned = (x == raw[index].flip(-1)).flatten(1).all(1)
    assert (kept ^ turned).all()
    rate = turned.double().mean()
    assert abs(rate - 0.5) < 5 * 0.5 / 2000**0.5
    # Not tied to the image: every image is seen both ways.
    assert all(0 < turned[index == i].double().mean() < 1 for i in range(13))


def test_a_batch_larger_than_the_set_wraps():
    (batch,) = take(Batches(InMemory(STACK[:3]), 8, 0), 1)
    counts = batch.index.bincount()
    assert batch.x.shape == (8, 3, 4, 6)
    assert sorted(counts.tolist()) == [2, 3, 3]
    assert batch.labels is None


def test_position_counts_only_what_was_handed_out():
    slow = Slow(STACK)
    with Batches(slow, 4, 0, prefetch=3, cache_bytes=0) as batches:
        next(batches)
        next(batches)
        until(lambda: slow.decoded > 8)
        assert batches.position == 8


def test_a_set_that_fits_is_decoded_once():
    slow = Slow(STACK)
    take(Batches(slow, 4, 0, workers=1), 20)
    assert slow.decoded == 13
    slow = Slow(STACK)
    take(Batches(slow, 4, 0, workers=1, cache_bytes=STACK.nbytes - 1), 20)
    assert slow.decoded >= 80


def test_memory_stays_flat_when_the_set_does_not_fit():
    """Decoding stays a few batches ahead of a slow consumer, and nothing decoded is retained."""
    slow = Slow(RNG.integers(0, 256, (400, 1, 4, 4), np.uint8))
    handed_out = []
    with Batches(slow, 10, 0, prefetch=3, workers=2, cache_bytes=0) as batches:
        for step in range(1, 31):
            handed_out.append(weakref.ref(next(batches).x))
            time.sleep(0.002)
            assert slow.decoded <= 10 * (step + 3)
    assert slow.most_at_once <= 20
    gc.collect()
    assert not any(x() is not None for x in handed_out)


def test_what_is_decoded_ahead_is_not_waited_for_and_the_rest_is():
    gated = Gated(RNG.integers(0, 256, (400, 1, 2, 2), np.uint8))
    gated.let(5 * 4)
    with (
        ThreadPoolExecutor(1) as consumer,
        Batches(gated, 4, 0, workers=2, prefetch=4, cache_bytes=0) as batches,
        gated,
    ):
        next(batches)
        until(lambda: gated.decoded == 5 * 4)  # while nobody asks
        # Four batches are there: nothing has to be decoded, and nothing can be.
        for _ in range(4):
            consumer.submit(next, batches).result(PATIENCE)
        late = consumer.submit(next, batches)
        with pytest.raises(TimeoutError):
            late.result(0.1)
        assert batches.position == 5 * 4
        gated.let(10**6)
        assert len(late.result(PATIENCE).x) == 4
        assert batches.position == 6 * 4


def test_threads_decode_at_once():
    meeting, reads = threading.Barrier(2), itertools.count()

    class Meeting(Slow):
        """The first two reads wait for each other."""

        def read(self, indices):
            if next(reads) < 2:
                meeting.wait(PATIENCE)
            return super().read(indices)

    images = Meeting(RNG.integers(0, 256, (400, 1, 2, 2), np.uint8))
    take(Batches(images, 4, 0, workers=2, prefetch=4, cache_bytes=0), 3)
    assert not meeting.broken


def test_images_in_memory_use_no_threads():
    before = threading.active_count()
    with Batches(InMemory(STACK), 4, 0) as batches:
        next(batches)
        assert threading.active_count() == before
    slow = Slow(STACK)
    with Batches(slow, 4, 0) as batches:
        for _ in range(30):
            next(batches)
        assert not batches._pending


def test_errors_of_the_threads_arrive_in_the_consumer():
    class Failing(Slow):
        def read(self, indices):
            raise RuntimeError("decoder on fire")

    with Batches(Failing(STACK), 4, 0) as batches, pytest.raises(RuntimeError, match="on fire"):
        next(batches)
    assert not any(t.name.startswith("sfumato-load") for t in threading.enumerate())


def test_closing_ends_the_threads_and_the_stream():
    batches = Batches(Slow(STACK, 0.001), 4, 0, cache_bytes=0)
    next(batches)
    batches.close()
    batches.close()
    assert not any(t.name.startswith("sfumato-load") for t in threading.enumerate())
    with pytest.raises(ValueError, match="closed"):
        next(batches)


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_a_file_found_broken_later_is_replaced_by_its_successor(cache_bytes):
    array = np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(300, 1, 1, 1)
    broken = (17, 18, 299)
    healthy = take(Batches(Slow(array), 7, 5, cache_bytes=cache_bytes), 100)
    slow = Slow(array, broken=broken)
    batches = Batches(slow, 7, 5, labels=True, cache_bytes=cache_bytes)
    x, index, labels = joined(take(batches, 100))
    expected = torch.cat([b.index for b in healthy])
    for bad, good in ((17, 19), (18, 19), (299, 0)):
        expected[expected == bad] = good
    assert torch.equal(index, expected)
    assert torch.equal(labels, expected)
    assert torch.equal(x, to_model(array, slow.format)[expected])
    assert sorted(batches.skipped) == ["img17 (broken)", "img18 (broken)", "img299 (broken)"]


def test_too_many_broken_files_stop_the_training():
    slow = Slow(np.zeros((300, 1, 1, 1), np.uint8), broken=(1, 2, 3, 4))
    with pytest.raises(DataError, match=r"4 of 300 images.*more than the 1 %.*img\d \(broken\)"):
        take(Batches(slow, 50, 0), 6)


def test_a_large_folder_is_not_verified_on_opening_but_while_reading(tmp_path, monkeypatch):
    for i in range(100):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.bmp")
    data = (tmp_path / "40.bmp").read_bytes()
    (tmp_path / "40.bmp").write_bytes(data[:-20])
    monkeypatch.setattr(files, "VERIFY_FILES", 10)
    images = open_images(tmp_path)
    assert len(images) == 100
    array, _ = as_arrays(images)
    assert array[40].max() == 41
    with pytest.raises(DataError, match="1 of 30 images"):  # more than 1 %
        take(Batches(Subset(images, range(30, 60)), 5, 0), 8)
    with Batches(images, 5, 0) as batches:
        seen = torch.cat([next(batches).index for _ in range(20)])
    assert 40 not in seen
    assert (seen == 41).sum() == 2
    assert batches.skipped[0].startswith("40.bmp")


def test_one_pass_visits_everything_in_order():
    for images in (InMemory(STACK, LABELS), Slow(STACK)):
        parts = list(one_pass(images, 5, labels=True))
        x, index, _ = joined(parts)
        assert [len(p.x) for p in parts] == [5, 5, 3]
        assert index.tolist() == list(range(13))
        assert torch.equal(x, to_model(STACK, images.format))


def test_arguments_that_make_no_sense():
    images = InMemory(STACK)
    with pytest.raises(DataError, match="empty"):
        Batches(Subset(images, []), 4, 0)
    with pytest.raises(DataError, match="labels=True"):
        Batches(images, 4, 0, labels=True)
    for options in ({"batch_size": 0, "seed": 0}, {"batch_size": 1, "seed": -1}):
        with pytest.raises(ValueError, match="batch_size >= 1, seed >= 0"):
            Batches(images, **options)
    with pytest.raises(ValueError, match="position >= 0"):
        Batches(images, 1, 0, position=-1)
