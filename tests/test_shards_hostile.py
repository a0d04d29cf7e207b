"""Tars that were made wrong, by mistake or on purpose, and servers and packers that stop midway."""

from __future__ import annotations

import errno
import http.client
import io
import os
import shutil
import ssl
import subprocess
import tarfile
import tracemalloc
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from sfumato.cli import main
from sfumato.data.arrays import InMemory
from sfumato.data.decode import decode, read_header
from sfumato.data.images import UnreadableImageError
from sfumato.data.reader import as_arrays
from sfumato.data.shards import store
from sfumato.data.shards.batches import ShardBatches
from sfumato.data.shards.fetch import Fetch
from sfumato.data.shards.opening import open_shards
from sfumato.data.shards.pack import Packing, ShardWriter
from sfumato.data.shards.table import ShardError, read_table
from sfumato.data.sources import open_images
from sfumato.errors import DataError
from shard_helpers import QUICK, packed, png, served, stack


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def images(count: int = 4) -> dict[str, bytes]:
    return {f"{i}.png": png(image) for i, image in enumerate(stack(count))}


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [("cls", b"9" * 20), ("cls", b"1" * 5000), ("cls", b"1000000"),
     ("json", b'{"label": 10000000000}'), ("json", b'{"cls": 99999999999999999999}')],
)  # fmt: skip
def test_absurd_labels_are_told_and_do_not_matter_without_classes(tmp_path, name, text):
    (tmp_path / "s").mkdir()
    labels = {f"{i}.cls": b"1" for i in range(3)} | {f"3.{name}": text}
    ordered = dict(sorted((images() | labels).items()))
    tar(tmp_path / "s" / "a.tar", ordered)
    assert len(open_shards(tmp_path / "s", cache=tmp_path / "cache")) == 4
    with pytest.raises(DataError, match=r"below 1,000,000, but a\.tar holds [0-9,]+ or more"):
        open_shards(tmp_path / "s", labels=True, cache=tmp_path / "cache")


def test_zeros_before_a_label_do_not_make_it_large(tmp_path):
    path = tar(tmp_path / "a.tar", {"0.png": png(stack(1)[0]), "0.cls": b"0" * 30 + b"7\n"})
    assert read_table(path, labels=True).labels.tolist() == [7]


def test_a_deeply_nested_json_is_no_label(tmp_path):
    deep = b'{"label": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    path = tar(tmp_path / "a.tar", {"0.png": png(stack(1)[0]), "0.json": deep})
    assert read_table(path, labels=True).labels.tolist() == [-1]


def test_a_deeply_nested_index_is_refused(tmp_path):
    folder = packed(tmp_path / "s")
    (folder / "index.json").write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(DataError, match="no readable JSON"):
        open_shards(folder)


# --- tars ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0.png", "0.cls", "0.json", "0.npy"])
def test_sparse_members_are_refused(tmp_path, name):
    """As GNU tar writes them, and as pax does: their bytes in the tar are not the file's."""
    if shutil.which("tar") is None:
        pytest.skip("no tar program here")
    with (tmp_path / name).open("wb") as stream:
        stream.seek(4_000_000)
        stream.write(b"1")
    for form in ("gnu", "posix"):
        path = tmp_path / f"{form}.tar"
        run = ["tar", "--sparse", f"--format={form}", "-C", str(tmp_path), "-cf", str(path), name]
        if subprocess.run(run, capture_output=True).returncode:
            pytest.skip("this tar program writes no sparse files")
        with tarfile.open(path) as written:
            assert written.next().issparse()
        with pytest.raises(ShardError, match=f"{name} is stored as a sparse file"):
            read_table(path, labels=True)


def test_endless_chains_of_long_names_are_no_whole_tar(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 0
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf() * 20_000)
    with pytest.raises(ShardError, match="no whole tar"):
        read_table(path)


def test_headers_that_ask_for_all_memory_are_no_whole_tar(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**60
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    with pytest.raises(ShardError, match="no whole tar"):
        read_table(path)


def npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("shape", "told"),
    [("(1, 1000000, 1000000)", "says 1,000,000,000,000 bytes of pixels, 12 follow"),
     ("-" * 9000 + "1", "a.npy")],
)  # fmt: skip
def test_arrays_that_claim_more_than_there_is_are_unreadable(shape, told):
    data = npy(shape, bytes(12))
    for read in (decode, read_header):
        with pytest.raises(UnreadableImageError, match=told):
            read(io.BytesIO(data), "a.npy", "drop")
    assert decode(io.BytesIO(npy("(3, 4)", bytes(12))), "a.npy", "drop").shape == (1, 3, 4)


def test_a_hostile_array_in_a_shard_is_skipped(tmp_path):
    (tmp_path / "s").mkdir()
    good = {f"{i:03d}.npy": npy("(1, 3, 4)", bytes([i] * 12)) for i in range(200)}
    good["007.npy"] = npy("(1, 1000000, 1000000)")
    tar(tmp_path / "s" / "a.tar", good)
    batches = ShardBatches(open_shards(tmp_path / "s", cache=tmp_path / "cache"), 10, 0)
    with batches:
        for _ in range(20):
            assert next(batches).x.shape == (10, 1, 3, 4)
    (complaint,) = batches.skipped
    assert complaint.startswith("a.tar: 007.npy (its header says")


def test_a_name_costs_the_same_in_a_shard_of_many(tmp_path):
    names = [f"some/folder/{i:06d}.png" for i in range(20_000)]
    table = read_table(tar(tmp_path / "a.tar", dict.fromkeys(names, b"")))
    assert [table.images.name(i) for i in (0, 1, 7_777, 19_999)] == [
        names[i] for i in (0, 1, 7_777, 19_999)
    ]
    tracemalloc.start()
    try:
        table.images.name(12_345)
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


# --- servers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [[503] * 3, [403], ["stall"] * 3])
def test_an_index_that_cannot_be_read_does_not_count_as_none(tmp_path, trouble):
    folder = packed(tmp_path / "s")
    with served(folder) as (url, server):
        named = url + "shard-0000{0..5}.tar"
        sound = open_shards(named, fetch=QUICK)
        for name in (named, url):
            server.trouble["index.json"] = list(trouble)
            with pytest.raises(DataError, match=r"index\.json: expected the index .* cannot be re"):
                open_shards(name, fetch=QUICK)
        assert open_shards(named, fetch=QUICK).fingerprint == sound.fingerprint
        for code in (404, 410):
            server.trouble["index.json"] = [code]
            assert len(open_shards(named, fetch=QUICK, cache=tmp_path / "cache")) == 53
        server.trouble["index.json"] = [410]
        with pytest.raises(DataError, match="are named one by one"):
            open_shards(url, fetch=QUICK)


def test_a_local_index_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    folder = packed(tmp_path / "s")

    def refused(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(DataError, match=r"expected the index .* Permission denied"):
        open_shards(str(folder / "shard-0000{0..5}.tar"))


class Answer(io.BytesIO):
    """What urlopen gives, whose reading fails as told."""

    status = 200

    def __init__(self, data: bytes, trouble: list[BaseException]) -> None:
        super().__init__(data)
        self.headers, self.trouble = {"Content-Length": str(len(data))}, trouble

    def read(self, size: int = -1) -> bytes:
        if self.trouble:
            raise self.trouble.pop(0)
        return super().read(size)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENETUNREACH, "Network is unreachable"), OSError(errno.EHOSTUNREACH, "No route"),
     ssl.SSLError("record layer failure"), http.client.IncompleteRead(b""),
     urllib.error.URLError("x"), ConnectionResetError()],
)  # fmt: skip
def test_every_failure_of_the_network_is_tried_five_times(tmp_path, monkeypatch, caplog, error):
    waits: list[float] = []
    trouble: list[BaseException] = [error] * 4
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Answer(b"whole", trouble))
    assert Fetch().read("http://host/a") == b"whole"
    assert waits == sorted(set(waits))
    assert len(waits) == 4
    assert 20 <= sum(waits) <= 60
    (note,) = caplog.messages  # At once, not when all is over.
    assert note.startswith("http://host/a: ")
    assert note.endswith(f"; trying again for {sum(waits):g} s")
    trouble += [error] * 5
    with pytest.raises(ShardError, match="after 5 tries"):
        Fetch().to_file("http://host/a", tmp_path / "a")


def test_a_full_disk_is_not_tried_again(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Answer(b"a", [full]))
    with pytest.raises(OSError, match="No space left"):
        Fetch().to_file("http://host/a", tmp_path / "a")


def test_a_shard_that_the_network_lost_comes_back(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(store.time, "monotonic", lambda: now[0])
    folder = packed(tmp_path / "s")
    with served(folder, _00002=[503] * 6) as (url, server):
        shards = open_shards(url, fetch=QUICK).store

        def asked() -> int:
            return sum(name == "shard-00002.tar" for name, _ in server.asked)

        def refused() -> None:
            with pytest.raises(ShardError, match="answers 503"), shards.opened(2):
                pass

        refused()
        refused()
        assert asked() == 3
        now[0] = 301.0
        refused()
        assert asked() == 6
        now[0] = 850.0  # the second wait is twice as long
        refused()
        assert asked() == 6
        now[0] = 902.0
        with shards.opened(2) as opened:
            assert len(opened.table) == 10
        assert shards.complaints == ()


@pytest.mark.parametrize("index", [True, False])
def test_names_in_urls_may_be_quoted(tmp_path, index):
    folder = packed(tmp_path / "a b" / "s%25", count=20)
    for path in sorted(folder.glob("*.tar")):
        path.rename(path.with_name(path.name.replace("shard-0000", "my shard-")))
    table = (folder / "index.json").read_text().replace("shard-0000", "my shard-")
    (folder / "index.json").write_text(table)
    if not index:
        (folder / "index.json").unlink()
    with served(tmp_path) as (url, _):
        base = url + "a%20b/s%2525/"
        names = [base + "my%20shard-{0..1}.tar"] + ([base] if index else [])
        for name in names:
            images = open_shards(name, fetch=QUICK, cache=tmp_path / "cache")
            assert np.array_equal(as_arrays(images)[0], np.moveaxis(stack(20), -1, 1))
    apart = tmp_path / "x"
    for place in ("p q", "r"):
        packed(apart / place, count=10)
    with served(apart) as (url, _):
        both = url + "{p%20q,r}/shard-00000.tar"
        assert len(open_shards(both, fetch=QUICK, cache=tmp_path / "cache")) == 20


# --- packing -------------------------------------------------------------------------------------


def test_an_interrupted_packing_is_refused_until_it_is_repeated(tmp_path, capsys):
    folder, array = tmp_path / "s", stack(40)
    source = InMemory(array, layout="NHWC")
    packing = Packing(most_images=10, shuffle=False)
    writing = ShardWriter(source, folder, packing).write()
    for _ in range(25):
        next(writing)
    writing.close()
    assert sorted(path.name for path in folder.glob("*.tar"))
    for path in (folder, folder / "shard-00000.tar", f"{folder}/shard-*.tar"):
        with pytest.raises(DataError, match=r"packing did not come to its end.*pack again"):
            open_shards(path)
    with pytest.raises(DataError, match="pack again"):
        open_images(folder)
    np.save(tmp_path / "a.npy", array)
    again = ["data", "pack", str(tmp_path / "a.npy"), "-o", str(folder)]
    assert main(again) == 2
    assert "--force to replace the shards" in capsys.readouterr().err
    assert main([*again, "--force"]) == 0
    assert len(open_images(folder)) == 40
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "shard-00000.tar"]


def test_packing_again_over_whole_shards_is_marked_from_its_beginning(tmp_path):
    folder = packed(tmp_path / "s")
    ShardWriter(InMemory(stack(8), layout="NHWC"), folder, force=True)
    with pytest.raises(DataError, match="pack again"):
        open_images(folder)


def test_an_interruption_before_the_first_shard_is_told_too(tmp_path):
    writing = ShardWriter(InMemory(stack(8), layout="NHWC"), tmp_path / "s").write()
    next(writing)
    writing.close()
    with pytest.raises(DataError, match="pack again"):
        open_images(tmp_path / "s")
