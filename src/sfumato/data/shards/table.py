"""Where the images of one tar shard lie in it: one pass over its headers."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sfumato.data.decode import ARRAY, SUFFIXES
from sfumato.errors import DataError

INPUT, TARGET = "input", "target"
CLASS = "cls"
_JSON = "json"
_JSON_KEYS = ("cls", "label", "class")
_PARTS = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_BLOCK = 512
_LARGEST = 2**63 - 1
_WANTED = (*SUFFIXES, ARRAY)


class ShardError(DataError):
    """A shard that cannot be had or read as a whole."""


@dataclass(frozen=True, eq=False)
class Members:
    """One file an image: offsets and lengths [n] in bytes, and their names.

    The names are one string, as a list of them would be many times as large; `ends` [n] says where
    each ends in it.
    """

    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    joined: str
    ends: NDArray[np.int64]

    def name(self, i: int) -> str:
        """The name of member i."""
        return self.joined[int(self.ends[i - 1]) if i else 0 : int(self.ends[i])]


@dataclass(frozen=True, eq=False)
class Table:
    """The images of a shard, of pairs their inputs, and the labels [n] where they were asked for.

    A sample without its label counts as -1.
    """

    images: Members
    inputs: Members | None
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.images.offset)


def read_table(path: Path, *, pairs: bool = False, labels: bool = False) -> Table:
    """Find the images in a tar by WebDataset's rule; ShardError where it is cut short or none.

    Neighbouring files that share their name up to its first dot are one sample. Its image is the
    file that ends in an image's suffix: KEY.png before KEY.target.png before any other; with
    `pairs` KEY.target.png, learned from KEY.input.png. Labels are in KEY.cls or KEY.json.
    """
    images: list[tarfile.TarInfo] = []
    inputs: list[tarfile.TarInfo] = []
    numbers: list[int] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for sample in _samples(tar):
                kinds = {kind: info for kind, info in sample.items() if _suffix(kind) in _WANTED}
                image, given = _choose(kinds, pairs)
                if image is None or (pairs and given is None):
                    continue
                images.append(image)
                if given is not None and pairs:
                    inputs.append(given)
                if labels:
                    numbers.append(_label(tar, sample))
            end = tar.offset
        _expect_end(path, end)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise ShardError(f"no whole tar: {error}") from error
    except (RecursionError, MemoryError) as error:
        told = str(error) or "its headers ask for more memory than there is"
        raise ShardError(f"no whole tar: {told}") from error
    return Table(
        _members(images),
        _members(inputs) if pairs else None,
        np.array(numbers, np.int64) if labels else None,
    )


def _expect_end(path: Path, end: int) -> None:
    """Raise ReadError unless an archive's end mark is where the last file ends."""
    with path.open("rb") as stream:
        stream.seek(end)
        block = stream.read(_BLOCK)
    if len(block) < _BLOCK:
        raise tarfile.ReadError("it is cut short")
    if any(block):
        raise tarfile.ReadError(f"no file's header at byte {end}, where one should be")


def _samples(tar: tarfile.TarFile) -> Iterator[dict[str, tarfile.TarInfo]]:
    """Files by what follows their key, sample by sample."""
    key, sample = "", dict[str, tarfile.TarInfo]()
    while (info := tar.next()) is not None:
        cast("Any", tar).members = []  # or it would keep them all
        parts = _PARTS.fullmatch(info.name)
        if not info.isreg() or parts is None:
            continue
        if parts[1] != key and sample:
            yield sample
            sample = {}
        key, kind = parts[1], parts[2].lower()
        if info.issparse() and (kind in (CLASS, _JSON) or _suffix(kind) in _WANTED):
            raise tarfile.ReadError(
                f"{info.name} is stored as a sparse file; pack it as a plain one"
            )
        sample[kind] = info
    if sample:
        yield sample


def _suffix(kind: str) -> str:
    return "." + kind.rpartition(".")[2]


def _choose(
    kinds: dict[str, tarfile.TarInfo], pairs: bool
) -> tuple[tarfile.TarInfo | None, tarfile.TarInfo | None]:
    """The image of a sample, and its input if there is one."""
    plain = [info for kind, info in kinds.items() if "." not in kind]
    target = [info for kind, info in kinds.items() if kind.startswith(f"{TARGET}.")]
    given = [info for kind, info in kinds.items() if kind.startswith(f"{INPUT}.")]
    found = target if pairs else [*plain, *target, *kinds.values()]
    return (found[0] if found else None), (given[0] if given else None)


def _label(tar: tarfile.TarFile, sample: dict[str, tarfile.TarInfo]) -> int:
    """The class of a sample, -1 where it has none; what no int64 holds counts as the largest."""
    if CLASS in sample:
        text = _content(tar, sample[CLASS]).strip()
        return _bounded(text)
    if _JSON in sample:
        try:
            content = json.loads(_content(tar, sample[_JSON]))
        except (ValueError, RecursionError):
            return -1
        table = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
        found = [table[key] for key in _JSON_KEYS if type(table.get(key)) is int]
        return min(found[0], _LARGEST) if found and found[0] >= 0 else -1
    return -1


def _bounded(text: bytes) -> int:
    """A class as digits; only so many of them are read as can matter."""
    digits = text.lstrip(b"0") or b"0"
    if not text.isdigit():
        return -1
    return min(int(digits), _LARGEST) if len(digits) < 20 else _LARGEST


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(info)
    return b"" if stream is None else stream.read()


def _members(found: list[tarfile.TarInfo]) -> Members:
    names = [info.name.replace("\n", "?") for info in found]
    return Members(
        np.array([info.offset_data for info in found], np.int64),
        np.array([info.size for info in found], np.int64),
        "".join(names),
        np.cumsum([len(name) for name in names], dtype=np.int64),
    )
