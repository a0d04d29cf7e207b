"""Shards of our own and of others: the images that went in, in batches that resume exactly."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

import sfumato
from sfumato.data.arrays import InMemory
from sfumato.data.loader import one_pass
from sfumato.data.pixels import to_model
from sfumato.data.reader import as_arrays
from sfumato.data.shards.batches import ShardBatches
from sfumato.data.shards.fetch import Fetch
from sfumato.data.shards.images import ShardImages
from sfumato.data.shards.opening import open_shards
from sfumato.data.shards.pack import Packing, ShardWriter
from sfumato.data.sources import open_images
from sfumato.errors import ConfigError, DataError
from shard_helpers import packed, png, stack


def take(batches, count):
    with batches:
        return [next(batches) for _ in range(count)]


@contextmanager
def tracing() -> Iterator[Callable[[], int]]:
    """Peak bytes allocated inside, told afterwards."""
    tracemalloc.start()
    found: list[int] = []
    try:
        yield lambda: found[0]
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def _far_away(text: str) -> ShardImages:
    """Shards with this index that nobody will ever open."""

    class Somewhere(Fetch):
        def read(self, url: str) -> bytes:
            return text.encode()

    return open_shards("http://somewhere/", fetch=Somewhere())


def nchw(count=53):
    return np.moveaxis(stack(count), -1, 1)


def test_what_is_packed_comes_back(tmp_path):
    images = open_images(packed(tmp_path / "s"), labels=True)
    assert isinstance(images, ShardImages)
    assert len(images) == 53
    assert images.counts.tolist() == [10, 10, 10, 10, 10, 3]
    pixels, labels = as_arrays(images)
    assert np.array_equal(pixels, nchw())
    assert np.array_equal(labels, np.arange(53) % 4)
    assert images.classes == ("0", "1", "2", "3")
    assert "53 images in 6 shards, 3 x 5 x 4 uint8, 4 classes" in images.describe()


def test_shuffled_shards_hold_the_same_images_with_their_labels(tmp_path):
    images = open_images(packed(tmp_path / "s", shuffle=True), labels=True)
    pixels, labels = as_arrays(images)
    place = pixels.reshape(53, -1)[:, 0]  # NHWC's first value is NCHW's too
    assert not np.array_equal(place, np.arange(53))
    assert np.array_equal(pixels, nchw()[place])
    assert np.array_equal(labels, place % 4)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("position", [0, 8, 56, 200])
def test_batches_resume_and_split_exactly(tmp_path, position, count):
    """Every part of the stream, by any number of processes, is the whole stream's, to the bit."""
    folder = packed(tmp_path / "s")
    whole = take(ShardBatches(open_shards(folder, labels=True), 8, 7, flip=True, labels=True), 32)
    wanted = whole[position // 8 : position // 8 + 4]
    parts = [
        take(
            ShardBatches(
                open_shards(folder, labels=True),
                8,
                7,
                position=position,
                flip=True,
                labels=True,
                rank=rank,
                count=count,
                workers=1 + rank % 2,
            ),
            4,
        )
        for rank in range(count)
    ]
    for i, batch in enumerate(wanted):
        for name in ("x", "labels", "index"):
            joined = torch.cat([getattr(part[i], name) for part in parts])
            assert torch.equal(joined, getattr(batch, name))


def test_batches_hold_the_images_and_labels_they_name(tmp_path):
    images = open_shards(packed(tmp_path / "s"), labels=True)
    batches = ShardBatches(images, 8, 0, labels=True)
    found = take(batches, 14)
    assert batches.position == 14 * 8
    index = torch.cat([batch.index for batch in found])
    assert torch.equal(torch.cat([b.x for b in found]), to_model(nchw(), images.format)[index])
    assert torch.equal(torch.cat([b.labels for b in found]), index % 4)
    assert sorted(index[:53].tolist()) != index[:53].tolist()


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    images = open_shards(packed(tmp_path / "s"))
    with pytest.raises(ValueError, match="rank < count <= batch_size"):
        ShardBatches(images, 2, 0, rank=0, count=3)
    with pytest.raises(DataError, match="opened without"):
        ShardBatches(images, 8, 0, labels=True)


def test_the_webdataset_library_reads_what_we_pack(tmp_path):
    folder = packed(tmp_path / "s", shuffle=True)
    paths = sorted(str(path) for path in folder.glob("*.tar"))
    read = webdataset.WebDataset(paths, shardshuffle=False).decode("rgb8").to_tuple("png", "cls")
    pixels, labels = zip(*read, strict=True)
    ours, classes = as_arrays(open_images(folder, labels=True))
    assert np.array_equal(np.moveaxis(np.stack(pixels), -1, 1), ours)
    assert list(labels) == classes.tolist()


def webp(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "WEBP", quality=80)
    return out.getvalue()


def written(folder: Path, count: int = 12, kind: str = "png", **more) -> Path:
    """Shards by the webdataset library."""
    folder.mkdir()
    for shard in range(3):
        with webdataset.TarWriter(str(folder / f"part-{shard:03d}.tar")) as writer:
            for i in range(shard * count, (shard + 1) * count):
                image = stack(3 * count)[i]
                value = np.moveaxis(image, -1, 0) if kind == "npy" else image
                value = webp(image) if kind == "webp" else value
                labels = {name: make(i) for name, make in more.items()}
                writer.write({"__key__": f"some/{i:04d}", kind: value} | labels)
    return folder


@pytest.mark.parametrize("label", [{"cls": lambda i: i % 3}, {"json": lambda i: {"label": i % 3}}])
@pytest.mark.parametrize("kind", ["png", "npy"])
def test_we_read_what_the_webdataset_library_writes(tmp_path, kind, label):
    folder = written(tmp_path / "s", kind=kind, **label)
    images = open_shards(folder, labels=True, cache=tmp_path / "cache")
    pixels, labels = as_arrays(images)
    assert np.array_equal(pixels, nchw(36))
    assert np.array_equal(labels, np.arange(36) % 3)
    assert images.classes == ("0", "1", "2")
    index = torch.cat([batch.index for batch in take(ShardBatches(images, 6, 0), 6)])
    assert sorted(index.tolist()) == list(range(36))


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_lossy_files_decode_to_what_pillow_says(tmp_path, kind):
    folder = written(tmp_path / "s", kind=kind)
    pixels, _ = as_arrays(open_shards(folder, cache=tmp_path / "cache"))
    with tarfile.open(folder / "part-001.tar") as tar:
        raw = tar.extractfile(f"some/0015.{kind}").read()
    assert np.array_equal(pixels[15], np.moveaxis(np.asarray(Image.open(io.BytesIO(raw))), -1, 0))


def test_the_scan_is_remembered_until_a_shard_changes(tmp_path, monkeypatch):
    folder, cache = written(tmp_path / "s"), tmp_path / "cache"
    first = open_shards(folder, cache=cache)
    monkeypatch.setattr("sfumato.data.shards.scan.read_table", None)
    again = open_shards(folder, cache=cache)
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.counts, first.counts)
    with webdataset.TarWriter(str(folder / "part-000.tar")) as writer:
        writer.write({"__key__": "x", "png": stack()[0]})
    with pytest.raises(TypeError):
        open_shards(folder, cache=cache)
    monkeypatch.undo()
    assert open_shards(folder, cache=cache).counts.tolist() == [1, 12, 12]


def test_mixed_sizes_need_a_size(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "a.tar")) as writer:
        for i in range(8):
            writer.write({"__key__": f"{i}", "png": stack(8, (6 + i % 2, 8, 3))[i]})
    with pytest.raises(DataError, match="choose one size with --size"):
        open_shards(folder, cache=tmp_path)
    images = open_shards(folder, size=(4, 4), cache=tmp_path)
    assert take(ShardBatches(images, 8, 0), 1)[0].x.shape == (8, 3, 4, 4)


def test_missing_labels_are_told(tmp_path):
    with pytest.raises(DataError, match="36 of 36 images have none"):
        open_shards(written(tmp_path / "s"), labels=True, cache=tmp_path)
    images = InMemory(stack(8), layout="NHWC")
    list(ShardWriter(images, tmp_path / "p").write())
    with pytest.raises(DataError, match="packed without"):
        open_images(tmp_path / "p", labels=True)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 4, 5), "uint16"), ((3, 4, 5), "uint16"), ((2, 4, 5), "uint8"), ((4, 4, 5), "uint8"),
     ((5, 4, 6), "uint16"), ((3, 4, 5), "float32")],
)  # fmt: skip
def test_every_depth_and_channel_count_is_kept(tmp_path, shape, dtype):
    rng = np.random.default_rng(1)
    values = rng.random((9, *shape))
    array = values.astype(dtype) if dtype == "float32" else (values * 255 * 250).astype(dtype)
    images = InMemory(array, layout="NCHW")
    list(ShardWriter(images, tmp_path / "s", Packing(shuffle=False, most_images=4)).write())
    again = open_images(tmp_path / "s")
    assert again.format == images.format
    assert np.array_equal(as_arrays(again)[0], array)


def test_small_files_are_kept_and_others_stored_without_loss(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    for i in range(3):
        Image.fromarray(smooth + i).save(folder / f"{i}.jpg", quality=90)
    Image.fromarray(smooth).save(folder / "3.bmp")
    source = open_images(folder)
    for keep, kinds in ((True, ["jpg"] * 3 + ["png"]), (False, ["png"] * 4)):
        out = tmp_path / str(keep)
        list(ShardWriter(source, out, Packing(keep=keep, shuffle=False)).write())
        with tarfile.open(out / "shard-00000.tar") as tar:
            names = tar.getnames()
            first = tar.extractfile(names[0]).read()
        assert [name.rpartition(".")[2] for name in names] == kinds
        assert (first == (folder / "0.jpg").read_bytes()) == keep
        assert np.array_equal(as_arrays(open_images(out))[0], as_arrays(source)[0])
    # Cropped images are no longer their files.
    list(ShardWriter(open_images(folder, size=(32, 32)), tmp_path / "c").write())
    with tarfile.open(tmp_path / "c" / "shard-00000.tar") as tar:
        assert all(name.endswith(".png") for name in tar.getnames())


def test_packing_again_gives_the_same_bytes(tmp_path):
    a, b = packed(tmp_path / "a", shuffle=True), packed(tmp_path / "b", shuffle=True)
    for path in a.iterdir():
        assert path.read_bytes() == (b / path.name).read_bytes()
    index = json.loads((a / "index.json").read_text())
    assert index["images"] == 53
    assert [shard["images"] for shard in index["shards"]] == [10, 10, 10, 10, 10, 3]


def test_shards_end_before_they_are_too_large(tmp_path):
    images = InMemory(stack(40), layout="NHWC")
    list(ShardWriter(images, tmp_path, Packing(most_bytes=20_000, most_images=0)).write())
    sizes = [path.stat().st_size for path in tmp_path.glob("*.tar")]
    assert len(sizes) > 1
    # A tar is padded to blocks of 10,240 bytes.
    assert max(sizes) <= 20_000 + 2 * 10_240


def test_a_folder_in_use_is_refused(tmp_path):
    folder = packed(tmp_path / "s")
    images = InMemory(stack(8), layout="NHWC")
    with pytest.raises(ConfigError, match="--force to replace"):
        ShardWriter(images, folder)
    list(ShardWriter(images, folder, force=True).write())
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "shard-00000.tar"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="already holds files"):
        ShardWriter(images, folder, force=True)


def test_some_of_the_shards_by_pattern(tmp_path, monkeypatch):
    folder = packed(tmp_path / "s")
    test = open_images(str(folder / "shard-0000{4..5}.tar"), labels=True)
    assert np.array_equal(as_arrays(test)[0], nchw()[40:])
    assert np.array_equal(test.labels, np.arange(40, 53) % 4)
    assert len(open_images(str(folder / "shard-*[02].tar"))) == 20
    assert len(open_images(str(folder / "shard-0000{0,3}.tar"))) == 20
    assert len(open_images(folder / "shard-00001.tar")) == 10
    monkeypatch.chdir(tmp_path)
    assert open_images("s/shard-0000{0..2}.tar").opened["path"].startswith(str(tmp_path))
    for bad, told in [
        ("s/shard-{0..2.tar", "no such"),
        ("s/shard-{5..2}.tar", "counts down"),
        ("s/shard-{a}.tar", "expected as"),
        ("s/none-{0..2}.tar", "no such shards"),
        ("s/shard-0000{0,0}.tar", "twice"),
        ("s/shard-{0..2}.tar.gz", "unpack them"),
    ]:
        with pytest.raises(DataError, match=told):
            open_images(bad)


def test_pairs_are_packed_and_streamed(tmp_path):
    for side, values in (("input", stack(20)[..., :1]), ("target", stack(20))):
        (tmp_path / "p" / side).mkdir(parents=True)
        for i, image in enumerate(values):
            (tmp_path / "p" / side / f"{i:02d}.png").write_bytes(png(image.squeeze()))
    pairs = sfumato.open_pairs(tmp_path / "p")
    list(ShardWriter(pairs, tmp_path / "s", Packing(most_images=6)).write())
    again = sfumato.open_pairs(tmp_path / "s")
    assert "20 pairs in 4 shards, 1 x 5 x 4 uint8 to 3 x 5 x 4 uint8" in again.describe()
    for batch in [*take(ShardBatches(again, 5, 0), 4), *one_pass(again, 7)]:
        assert torch.equal(batch.condition, batch.x[:, :1])
    assert len(open_images(tmp_path / "s")) == 20
    with pytest.raises(DataError, match="hold single images"):
        sfumato.open_pairs(packed(tmp_path / "single"))


def test_few_shards_stand_for_many(tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.data.shards.images.ENOUGH_IMAGES", 25)
    monkeypatch.setattr("sfumato.data.shards.images.ENOUGH_SHARDS", 2)
    images = open_shards(packed(tmp_path / "s", count=200), labels=True)
    some = images.representative()
    assert len(some) == 30
    assert len(images.store._entries) == 3  # nothing else was opened
    pixels, labels = as_arrays(some)
    assert np.array_equal(labels, pixels.reshape(30, -1)[:, 0] % 4)
    assert images.representative().fingerprint == some.fingerprint


def test_memory_stays_flat_over_a_long_stream(tmp_path):
    """20,000 images of 3 kB in 100 shards, three times: the last 50,000 add next to nothing."""
    code = """
import resource, sys, tracemalloc
import numpy as np
from pathlib import Path
from sfumato.data.arrays import InMemory
from sfumato.data.shards.batches import ShardBatches
from sfumato.data.shards.opening import open_shards
from sfumato.data.shards.pack import Packing, ShardWriter

folder = Path(sys.argv[1])
array = np.zeros((20_000, 16, 64, 3), np.uint8)
array[:, 0, 0, 0] = np.arange(20_000) % 251
for _ in ShardWriter(InMemory(array, layout="NHWC"), folder, Packing(most_images=200)).write():
    pass
del array
tracemalloc.start()
batches = ShardBatches(open_shards(folder), 100, 0, workers=1)
peaks = []
for part in range(6):
    tracemalloc.reset_peak()
    for _ in range(100):
        next(batches)
    peaks.append(tracemalloc.get_traced_memory()[1])
print(*peaks)
batches.close()
"""
    run = [sys.executable, "-c", code, str(tmp_path)]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    peaks = [int(word) for word in out.split()]
    # All images would be 60 MB raw; in flight are a few batches and some forty tables.
    assert max(peaks) < 12e6, peaks
    assert max(peaks[3:]) < 1.15 * max(peaks[:3]), peaks


def test_other_programs_index_and_stray_tars(tmp_path):
    folder = packed(tmp_path / "s")
    (folder / "index.json").write_text("[]")
    assert len(open_shards(folder, cache=tmp_path / "cache")) == 53
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(stack(1)[0]))
    (tmp_path / "photos" / "old.tar").write_bytes(b"")
    assert len(open_images(tmp_path / "photos")) == 1
    with pytest.raises(DataError, match="expected http"):
        open_images("s3://bucket/{000..099}.tar")


def test_a_billion_images_cost_what_their_shards_cost(tmp_path):
    """An index of 20,000 shards opens and finds its way without anything as long as the images."""
    folder = packed(tmp_path / "s")
    index = json.loads((folder / "index.json").read_text())
    one = index["shards"][0]
    shards = [{**one, "name": f"{i}.tar", "images": 50_000} for i in range(20_000)]
    text = json.dumps(index | {"shards": shards, "images": 10**9, "labels": None, "lanes": 4})
    with tracing() as peak:
        images = _far_away(text)
        batches = ShardBatches(images, 64, 0, position=10**12)
        places = batches._order.places(batches._order.batch(10**12, 64))
        batches.close()
    assert len(images) == 10**9
    assert len(np.unique(places.shard)) <= 8
    assert peak() < 1e8


def test_lanes_of_the_index_make_the_order(tmp_path):
    orders = []
    for lanes in (1, 5):
        images = open_shards(packed(tmp_path / str(lanes), lanes=lanes))
        assert images.lanes == lanes
        orders.append(torch.cat([b.index for b in itertools.islice(ShardBatches(images, 5, 0), 4)]))
    assert not torch.equal(*orders)
