"""What goes wrong with shards: named, skipped, counted, and an error where it is too much."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from recipe_helpers import QUIET, small
from sfumato.cli import main
from sfumato.data.reader import as_arrays
from sfumato.data.shards.batches import ShardBatches
from sfumato.data.shards.fetch import Fetch
from sfumato.data.shards.opening import open_shards
from sfumato.data.shards.table import ShardError
from sfumato.data.sources import open_images
from sfumato.errors import DataError
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from shard_helpers import QUICK, packed, png, served, stack


def take(batches, count):
    with batches:
        return [next(batches) for _ in range(count)]


def indices(batches, count):
    return torch.cat([batch.index for batch in take(batches, count)])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-6000])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "told"),
    [(truncate, "bytes, it has"), (flip_a_bit, "SHA-256"), (remove, "No such file")],
)
def test_a_broken_shard_is_named_and_its_images_replaced(tmp_path, harm, told):
    folder = packed(tmp_path / "s", count=60)
    sound = indices(ShardBatches(open_shards(folder), 6, 1), 20)
    harm(folder / "shard-00003.tar")
    batches = ShardBatches(open_shards(folder), 6, 1)
    index = indices(batches, 20)
    (complaint,) = batches.skipped
    assert complaint.startswith("all 10 images of shard-00003.tar (")
    assert told in complaint
    lost = (sound >= 30) & (sound < 40)
    assert torch.equal(index[~lost], sound[~lost])
    assert not ((index >= 30) & (index < 40)).any()
    # What replaces them is a function of the position too.
    assert torch.equal(
        indices(ShardBatches(open_shards(folder), 6, 1, position=60), 10), index[60:]
    )
    pixels, _ = as_arrays(open_images(packed(tmp_path / "whole", count=60)))
    (batch,) = take(ShardBatches(open_shards(folder), 6, 1), 1)
    assert torch.equal(
        ((batch.x + 1) * 127.5).round().byte(), torch.from_numpy(pixels[batch.index])
    )


def test_a_shard_that_goes_away_while_it_is_read_is_named_and_skipped(tmp_path):
    folder = packed(tmp_path / "s", count=60)
    images = open_shards(folder)
    batches = ShardBatches(images, 6, 1)
    with batches:
        next(batches)
        for shard in range(6):  # all opened and checked
            with images.store.opened(shard):
                pass
        gone = folder / "shard-00003.tar"
        remove(gone)
        index = torch.cat([next(batches).index for _ in range(20)])
    assert any("all 10 images of shard-00003.tar" in told for told in batches.skipped)
    assert len(batches.skipped) == 1
    assert not ((index[-60:] >= 30) & (index[-60:] < 40)).any()


def test_too_many_broken_shards_are_an_error(tmp_path):
    folder = packed(tmp_path / "s")
    truncate(folder / "shard-00000.tar")
    assert "1 broken skipped" in open_shards(folder).describe()
    flip_a_bit(folder / "shard-00003.tar")
    images = open_shards(folder)
    assert "1 broken skipped: all 10 images of shard-00000.tar (" in images.describe()
    with pytest.raises(DataError, match=r"2 of 6 shards .* 1 may be skipped: .* Copy them again"):
        take(ShardBatches(images, 6, 0), 20)
    alone = packed(tmp_path / "alone", each=100)
    truncate(alone / "shard-00000.tar")
    with pytest.raises(DataError, match="1 of 1 shards cannot be used, and 0 may"):
        open_shards(alone)


def rewritten(folder: Path, change) -> None:
    """The first shard again with some members changed, its checksum taken from the index."""
    path = folder / "shard-00000.tar"
    with tarfile.open(path) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    table = json.loads((folder / "index.json").read_text())
    table["shards"][0] |= {"sha256": None, "bytes": None}
    (folder / "index.json").write_text(json.dumps(table))


def test_an_unreadable_image_is_named_and_replaced_by_its_neighbour(tmp_path):
    folder = packed(tmp_path / "s", count=200, each=100)
    sound = indices(ShardBatches(open_shards(folder), 10, 0), 40)
    rewritten(folder, lambda all_: [(n, d[:20] if n == "000000007.png" else d) for n, d in all_])
    batches = ShardBatches(open_shards(folder), 10, 0)
    index = indices(batches, 40)
    assert torch.equal(index, torch.where(sound == 7, 8, sound))
    (complaint,) = batches.skipped
    assert complaint.startswith("shard-00000.tar: 000000007.png (")


def test_too_many_unreadable_images_are_an_error(tmp_path):
    folder = packed(tmp_path / "s", count=200, each=100)
    broken = {f"{i:09d}.png" for i in range(10, 20)}
    rewritten(folder, lambda all_: [(n, d[:20] if n in broken else d) for n, d in all_])
    with pytest.raises(DataError, match="images cannot be read, more than the 1 %"):
        take(ShardBatches(open_shards(folder), 10, 0), 40)


def test_images_of_another_size_are_named(tmp_path):
    folder = packed(tmp_path / "s", count=200, each=100)
    large = png(stack(1, (9, 9, 3))[0])
    rewritten(folder, lambda all_: [(n, large if n == "000000007.png" else d) for n, d in all_])
    batches = ShardBatches(open_shards(folder), 10, 0)
    take(batches, 20)
    (complaint,) = batches.skipped
    assert "expected 3 x 5 x 4 uint8, got uint8 of shape (3, 9, 9)" in complaint


def test_a_shard_that_lacks_images_is_broken(tmp_path):
    folder = packed(tmp_path / "s")
    rewritten(folder, lambda all_: all_[:-2])
    batches = ShardBatches(open_shards(folder), 6, 0)
    take(batches, 10)
    assert "expected 10 images, it holds 9" in batches.skipped[0]


@pytest.mark.parametrize("cut", [-10_240, 2000, 1536, 0])
def test_truncated_tars_are_recognised_without_an_index(tmp_path, cut):
    """Within a file, between two, without the mark at the end, and empty."""
    folder = packed(tmp_path / "s")
    (folder / "index.json").unlink()
    path = folder / "shard-00002.tar"
    path.write_bytes(path.read_bytes()[:cut])
    images = open_shards(folder, cache=tmp_path / "cache")
    assert len(images) == 43
    assert "shard-00002.tar (no whole tar" in images.skipped[0]
    assert "shard-00002.tar" in ShardBatches(images, 6, 0).skipped[0]


def test_a_damaged_header_does_not_end_a_shard_quietly(tmp_path):
    folder = packed(tmp_path / "s")
    (folder / "index.json").unlink()
    path = folder / "shard-00002.tar"
    data = bytearray(path.read_bytes())
    data[2048:2148] = b"\xff" * 100
    path.write_bytes(bytes(data))
    assert "no whole tar" in open_shards(folder, cache=tmp_path / "cache").skipped[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "no readable JSON"), ('{"sfumato_shards": 99}', "version 1"),
     ('{"sfumato_shards": 1}', "is damaged")],
)  # fmt: skip
def test_a_damaged_index_is_refused(tmp_path, text, told):
    folder = packed(tmp_path / "s")
    (folder / "index.json").write_text(text)
    with pytest.raises(DataError, match=told):
        open_shards(folder)


def test_an_index_cannot_point_outside(tmp_path):
    folder = packed(tmp_path / "s")
    text = (folder / "index.json").read_text().replace("shard-00001", "../shard-00001")
    (folder / "index.json").write_text(text)
    with pytest.raises(DataError, match="damaged"):
        open_shards(folder)


def test_damaged_labels_are_refused(tmp_path):
    folder = packed(tmp_path / "s")
    flip_a_bit(folder / "labels.npy")
    with pytest.raises(DataError, match="SHA-256"):
        open_shards(folder, labels=True)


# --- behind a URL ------------------------------------------------------------------------------


def test_a_url_gives_the_batches_of_the_folder(tmp_path):
    folder = packed(tmp_path / "s")
    wanted = take(ShardBatches(open_shards(folder, labels=True), 6, 2, labels=True), 20)
    with served(folder) as (url, server):
        names = [url, url + "index.json", url + "shard-0000{0..5}.tar", url.rstrip("/")]
        for name in names:
            images = open_shards(name, labels=True, fetch=QUICK)
            assert images.fingerprint == open_shards(folder, labels=True).fingerprint or "{" in name
            got = take(ShardBatches(images, 6, 2, labels=True), 20)
            for a, b in zip(got, wanted, strict=True):
                assert torch.equal(a.x, b.x)
                assert torch.equal(a.labels, b.labels)
        asked = [name for name, _ in server.asked if name.endswith(".tar")]
        assert len(asked) == 6 * len(names)  # each shard once


def test_shards_of_others_behind_a_url_are_counted(tmp_path):
    folder = packed(tmp_path / "s")
    (folder / "index.json").unlink()
    with served(folder) as (url, server):
        images = open_shards(url + "shard-0000{0..5}.tar", labels=True, fetch=QUICK, cache=tmp_path)
        assert len(images) == 53
        assert np.array_equal(as_arrays(images)[0], np.moveaxis(stack(53), -1, 1))
        before = len(server.asked)
        open_shards(url + "shard-0000{0..5}.tar", fetch=QUICK, cache=tmp_path)
        assert [name for name, _ in server.asked[before:]] == ["index.json"]
        with pytest.raises(DataError, match="named one by one"):
            open_shards(url, fetch=QUICK)


@pytest.mark.parametrize(
    "trouble", [["break", "break"], ["break", "range"], ["stall"], [503, 429], [500, "break"]]
)
def test_a_server_that_breaks_off_is_asked_again(tmp_path, trouble):
    folder = packed(tmp_path / "s")
    with served(folder, _00002=trouble) as (url, server):
        images = open_shards(url, fetch=QUICK)
        assert np.array_equal(as_arrays(images)[0], np.moveaxis(stack(53), -1, 1))
        asked = [ranges for name, ranges in server.asked if name == "shard-00002.tar"]
        assert len(asked) == len(trouble) + ("range" not in trouble)
        if trouble[0] == "break":
            half = (folder / "shard-00002.tar").stat().st_size // 2
            assert asked[1] == f"bytes={half}-"


@pytest.mark.parametrize(
    ("trouble", "told", "tries"),
    [
        ([404], "answers 404", 1),
        (["break"] * 3, "broke off after .* after 3 tries", 3),
        (["stall"] * 3, "not answer in time, after 3 tries", 3),
        ([503] * 3, "answers 503", 3),
    ],
)
def test_a_shard_that_cannot_be_had_is_skipped(tmp_path, trouble, told, tries):
    folder = packed(tmp_path / "s")
    with served(folder, _00002=list(trouble)) as (url, server):
        batches = ShardBatches(open_shards(url, fetch=QUICK), 6, 0)
        index = indices(batches, 20)
        assert not ((index >= 20) & (index < 30)).any()
        assert len(batches.skipped) == 1
        assert re.search(told, batches.skipped[0])
        assert sum(name == "shard-00002.tar" for name, _ in server.asked) == tries


def test_a_server_that_is_gone_is_told(tmp_path):
    with served(tmp_path) as (url, _):
        pass
    with pytest.raises(DataError, match="refused"):
        open_shards(url, fetch=Fetch(tries=1))
    with pytest.raises(ShardError, match="after 2 tries"):
        Fetch(tries=2, pause=0).read(url)


def test_what_cannot_be_reached_is_not_to_be_packed_again(tmp_path):
    folder = packed(tmp_path / "s")
    with served(folder) as (url, _):
        images = open_shards(url, fetch=QUICK)
    with pytest.raises(DataError, match=r"refused.* has to be reached again first"):
        take(ShardBatches(images, 6, 0), 20)


def test_temporary_files_stay_within_their_bound(tmp_path, monkeypatch):
    folder = packed(tmp_path / "s", count=400, lanes=1)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with served(folder) as (url, _):
        images = open_shards(url, fetch=QUICK)
        images.store.disk_bytes = 10 * images.shard(0).bytes
        most = 0
        with ShardBatches(images, 4, 0, prefetch=1, workers=1) as batches:
            for _ in range(100):
                next(batches)
                most = max(most, len(list(tmp_path.glob("sfumato-shards-*/*.tar"))))
    assert 6 < most <= 12


# --- training ----------------------------------------------------------------------------------


def test_training_from_shards_goes_on_over_a_broken_one_and_resumes(tmp_path):
    folder = packed(tmp_path / "s", count=80)
    flip_a_bit(folder / "shard-00004.tar")
    data = DataConfig(data=str(folder), classes=True)

    def trained(name: str, *stops: int) -> tuple[list[float], list[str]]:
        said: list[str] = []
        losses: list[float] = []
        for number, until in enumerate(stops):
            config = RunConfig(small(steps=24), data, QUIET)
            run = Run.open(config, tmp_path / name, resume=number > 0, say=said.append)
            for record in run.steps():
                losses.append(record.loss)
                if record.step == until:
                    run.interrupt()
        return losses, said

    whole, said = trained("whole", 24)
    assert "shard-00004.tar" in (tmp_path / "whole" / "log.jsonl").read_text()
    assert any("all 10 images of shard-00004.tar" in text for text in said)
    assert any("sigma_data" in text for text in said)
    assert trained("parts", 10, 24)[0] == whole


def test_a_shard_that_is_not_there_is_named_and_noted(tmp_path):
    folder = packed(tmp_path / "s", count=80)
    remove(folder / "shard-00004.tar")
    said: list[str] = []
    config = RunConfig(small(steps=2), DataConfig(data=str(folder), classes=True), QUIET)
    for _ in Run.open(config, tmp_path / "run", say=said.append).steps():
        pass
    assert any("skipped: all 10 images of shard-00004.tar" in text for text in said)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert log.count("left out from the start: all 10 images of shard-00004.tar") == 1


def test_training_that_data_end_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "a.npy", stack(30))
    out, noted = tmp_path / "run", Run._note

    def fails(self: Run, record, batches, news) -> None:
        noted(self, record, batches, news)
        if record.step == last:
            raise DataError("the data are gone")

    monkeypatch.setattr(Run, "_note", fails)
    options = ["--network.width", "8", "--network.multipliers", "1", "--network.attention", "99"]
    options += ["--batch", "4", "--images", "40", "--threads", "1", "--save-every", "1"]
    options += ["--no-report", "--precision", "float32", "--sample-every", "1000"]
    options += ["--data", str(tmp_path / "a.npy"), "--out", str(out)]
    last = 4
    assert main(["train", "edm-tiny", *options]) == 1
    told = capsys.readouterr().err
    assert "the data are gone. The run is as it was at its newest checkpoint" in told
    assert f"sfumato train --resume {out}" in told
    last = 0
    assert main(["train", "--resume", str(out)]) == 0
    assert "trained on 40 images" in capsys.readouterr().out


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", stack(30))
    assert main(["data", "pack", "a.npy", "-o", "s", "--shard-images", "8"]) == 0
    assert "s: 30 images in 4 shards, 3 x 5 x 4 uint8" in capsys.readouterr().out
    assert main(["data", "pack", "a.npy", "-o", "s"]) == 2
    assert "--force to replace the shards" in capsys.readouterr().err
    assert main(["data", "pack", "a.npy"]) == 2
    assert "say where the shards go" in capsys.readouterr().err
    assert main(["info", "s"]) == 0
    assert "30 images in 4 shards" in capsys.readouterr().out
    assert main(["info", "s/shard-0000{0..1}.tar"]) == 0
    assert "16 images in 2 shards" in capsys.readouterr().out
    assert main(["info", "s/nothing-{0..1}.tar"]) == 1
    assert "no such shards" in capsys.readouterr().err
    assert main(["train", "edm-tiny", "--data", "gs://b/x.tar"]) == 1
    assert "gs://b/x.tar: expected http:// or https://" in capsys.readouterr().err
    assert main(["data", "--help"]) == 0
    assert "pack" in capsys.readouterr().out
