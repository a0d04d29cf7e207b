"""Arrays, .npy, .npz, IDX and the built-in set, in every dtype and layout."""

from __future__ import annotations

import gzip
import hashlib
import struct

import numpy as np
import pytest

from sfumato.data.arrays import InMemory, as_nchw
from sfumato.data.reader import as_arrays
from sfumato.data.sources import open_images
from sfumato.errors import DataError

RNG = np.random.default_rng(1)
STACK = RNG.integers(0, 256, (5, 3, 8, 6), np.uint8)  # N, C, H, W
ARRAYS = {
    "uint8": STACK,
    "uint16": STACK.astype(np.uint16) * 257,
    "float16": (STACK / 256).astype(np.float16),
    "float32": (STACK / 255).astype(np.float32),
    "float64": STACK / 255.0,
}


@pytest.mark.parametrize("dtype", ARRAYS)
@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("kind", ["npy", "npz", "npz compressed", "array"])
def test_arrays_come_back_exactly(tmp_path, dtype, nhwc, kind):
    expected = ARRAYS[dtype]
    array = np.moveaxis(expected, 1, -1).copy() if nhwc else expected
    path = tmp_path / f"a.{kind[:3]}"
    if kind == "npy":
        np.save(path, array)
    elif kind == "npz":
        np.savez(path, x=array)
    elif kind == "npz compressed":
        np.savez_compressed(path, x=array, y=np.arange(5))
    images = InMemory(array) if kind == "array" else open_images(path)
    stored = "float32" if dtype.startswith("float") else dtype
    assert images.format.dtype == stored
    assert (images.format.low, images.format.high) == (
        0,
        {"uint8": 255, "uint16": 65535, "float32": 1}[stored],
    )
    assert images.resident == (kind != "npy")  # a .npy stays on disk
    np.testing.assert_array_equal(images.read([4, 0, 0]), expected[[4, 0, 0]].astype(stored))


def test_grey_and_multi_band_arrays():
    grey = STACK[:, 0]
    np.testing.assert_array_equal(InMemory(grey).read(range(5)), grey[:, None])
    bands = RNG.integers(0, 256, (2, 16, 16, 12), np.uint8)
    assert InMemory(bands).format.shape == (12, 16, 16)
    assert InMemory(bands.astype(">u2")).read([0]).dtype == np.dtype("uint16")


def test_signed_floats_and_stated_ranges():
    signed = STACK / 127.5 - 1
    assert (InMemory(signed).format.low, InMemory(signed).format.high) == (-1, 1)
    wide = InMemory(STACK.astype(np.float32), value_range=(0, 255))
    assert wide.format.describe() == "3 x 8 x 6 float32 in [0, 255]"
    assert InMemory(ARRAYS["uint16"] // 257, value_range=(0, 4095)).format.levels == 4096


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3, 8, 8), (3, 8, 8)),
        ((2, 8, 8, 3), (3, 8, 8)),
        ((2, 1, 28, 28), (1, 28, 28)),
        ((2, 32, 48, 13), (13, 32, 48)),
        ((2, 64, 65, 65), (64, 65, 65)),
    ],
)
def test_the_layout_is_inferred(shape, expected):
    assert as_nchw(np.zeros(shape), None, "a").shape[1:] == expected


@pytest.mark.parametrize("shape", [(2, 8, 8, 8), (2, 3, 9, 2), (2, 65, 80, 66), (2, 4, 4, 3)])
def test_an_unclear_layout_is_asked_for(shape):
    with pytest.raises(DataError, match=r"which axis.*--layout NHWC or --layout NCHW"):
        InMemory(np.zeros(shape, np.uint8))
    assert InMemory(np.zeros(shape, np.uint8), layout="NHWC").format.channels == shape[3]
    assert InMemory(np.zeros(shape, np.uint8), layout="NCHW").format.channels == shape[1]


def test_arrays_are_resized_and_recoloured_on_request():
    images = InMemory(np.repeat(STACK[:, :1], 3, 1), size=(4, 4), channels=1)
    assert images.read([0, 1]).shape == (2, 1, 4, 4)
    assert not images.resident  # resizing costs time: worth caching
    flat = InMemory(np.full((2, 9, 5), 7, np.uint16), size=(4, 4), channels=3)
    assert (flat.read([0, 1]) == 7).all()


def test_labels_of_arrays(tmp_path):
    labels = np.array([2, 0, 1, 1, 2], np.uint8)
    np.savez(tmp_path / "a.npz", images=STACK, labels=labels)
    np.save(tmp_path / "b.npy", STACK)
    np.save(tmp_path / "b_labels.npy", labels)
    for name in ("a.npz", "b.npy"):
        images = open_images(tmp_path / name, labels=True)
        assert images.labels.dtype == np.int64
        np.testing.assert_array_equal(images.labels, labels)
        assert images.classes == ("0", "1", "2")
        assert open_images(tmp_path / name).labels is None
    named = InMemory(STACK, labels, ("a", "b", "c", "d"))
    assert named.classes == ("a", "b", "c", "d")


def test_the_fingerprint_follows_values_and_options(tmp_path):
    other = STACK.copy()
    other[-1, -1, -1, -1] += 1
    prints = [
        InMemory(STACK).fingerprint,
        InMemory(other).fingerprint,
        InMemory(STACK, size=(4, 4)).fingerprint,
        InMemory(STACK.astype(np.uint16)).fingerprint,
    ]
    assert len(set(prints)) == 4
    np.save(tmp_path / "a.npy", STACK)
    assert open_images(tmp_path / "a.npy").fingerprint == prints[0]


IDX = {"uint8": (0x08, ">u1"), "float32": (0x0D, ">f4"), "float64": (0x0E, ">f8")}


def idx_bytes(array, code, dtype):
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(dtype).tobytes()


@pytest.mark.parametrize("dtype", IDX)
@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_idx_comes_back_exactly(tmp_path, dtype, gz, colour):
    stack = ARRAYS[dtype] if colour else ARRAYS[dtype][:, 0]
    labels = np.array([1, 0, 1, 2, 0], np.uint8)
    pack = gzip.compress if gz else bytes
    end = ".gz" if gz else ""
    axes = stack.ndim
    path = tmp_path / f"train-images-idx{axes}-ubyte{end}"
    path.write_bytes(pack(idx_bytes(stack, *IDX[dtype])))
    beside = tmp_path / "train-labels-idx1-ubyte.gz"
    beside.write_bytes(gzip.compress(idx_bytes(labels, 0x08, ">u1")))
    images = open_images(path, labels=True)
    expected = stack if colour else stack[:, None]
    kind = "float32" if dtype.startswith("float") else dtype
    np.testing.assert_array_equal(images.read(range(5)), expected.astype(kind))
    assert images.read([0]).dtype.isnative
    np.testing.assert_array_equal(images.labels, labels)


def test_the_built_in_set():
    train = open_images("fashion-mnist:train", labels=True)
    test = open_images("fashion-mnist:test", labels=True)
    assert (len(train), len(test)) == (8000, 2000)
    assert train.format.shape == (1, 28, 28)
    assert train.classes[0] == "T-shirt/top"
    assert train.classes[9] == "Ankle boot"
    held_out, labels = as_arrays(test)
    trained, _ = as_arrays(train)
    everything = np.concatenate([trained.reshape(2000, 4, 784), held_out.reshape(2000, 1, 784)], 1)
    raw = gzip.decompress((__import__("sfumato.data.builtin", fromlist=["x"])._IMAGES).read_bytes())
    assert hashlib.md5(everything.tobytes()).hexdigest() == hashlib.md5(raw[16:]).hexdigest()
    assert np.bincount(labels).min() > 170  # every class is held out about equally
    plain = open_images("fashion-mnist:test")
    assert plain.labels is None
    assert plain.fingerprint == test.fingerprint != train.fingerprint
    assert test.names(0) == "fashion-mnist[4]"
    resized = open_images("fashion-mnist:test", size=(32, 32), channels=3, labels=True)
    assert resized.format.shape == (3, 32, 32)
    np.testing.assert_array_equal(resized.labels, labels)


def test_a_path_of_that_name_wins_over_the_built_in_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "x.npy", STACK)
    (tmp_path / "x.npy").rename(tmp_path / "fashion-mnist")
    with pytest.raises(DataError, match="a file of another kind"):
        open_images("fashion-mnist")
