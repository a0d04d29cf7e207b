"""Shards without an index: one look at the headers of every one, remembered for the next time."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sfumato.data.decode import Alpha, Header, decode, read_header
from sfumato.data.files import Shaping, common_shape
from sfumato.data.images import UnreadableImageError, digest, in_threads
from sfumato.data.pixels import PixelFormat, float_range, pixel_format
from sfumato.data.shards.fetch import Fetch
from sfumato.data.shards.index import Shard
from sfumato.data.shards.places import Whereabouts
from sfumato.data.shards.store import expect_enough
from sfumato.data.shards.table import Members, ShardError, Table, read_table
from sfumato.errors import DataError
from sfumato.files import write_bytes

_LOOKED_AT = 256
_MOST_CLASSES = 1_000_000
_VERSION = 1


@dataclass(frozen=True)
class Looks:
    """What the first images of a set are: their headers, counted, and the span of float ones."""

    headers: tuple[tuple[Header, int, str], ...]
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, eq=False)
class Scan:
    """The shards with their counts; what their first images are; a label an image, -1 for none."""

    shards: tuple[Shard, ...]
    images: Looks
    inputs: Looks
    labels: NDArray[np.int64]
    complaints: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A short hash of what is known of the shards."""
        return digest([json.dumps([asdict(shard) for shard in self.shards]).encode()])

    def classes(self, where: str) -> tuple[str, ...]:
        """A name for each label: its number; DataError where images have none, or absurd ones."""
        missing = int((self.labels < 0).sum())
        if missing:
            raise DataError(
                f"{where}: class labels were expected in KEY.cls, or as cls, label or class in "
                f"KEY.json, but {missing:,} of {len(self.labels):,} images have none; "
                "train without --classes"
            )
        largest = int(self.labels.max())
        if largest >= _MOST_CLASSES:
            ends = np.cumsum([shard.images for shard in self.shards])
            shard = self.shards[int(np.searchsorted(ends, self.labels.argmax(), "right"))]
            raise DataError(
                f"{where}: expected class labels that count from 0, below {_MOST_CLASSES:,}, but "
                f"{shard.name} holds {largest:,} or more; number the classes 0, 1, 2, ... "
                "in KEY.cls or KEY.json, or train without --classes"
            )
        return tuple(map(str, range(largest + 1)))


def scan(where: Whereabouts, fetch: Fetch, alpha: Alpha, pairs: bool, cache: Path | None) -> Scan:
    """Count the images of every shard; remote shards are read once for it.

    Broken shards count as empty, too many are a DataError.
    """
    folder = cache or _cache_folder()
    stamps = [_stamp(where, name, fetch) for name in where.names]
    key = digest([repr((_VERSION, where, stamps, alpha, pairs)).encode()])
    remembered = _remembered(folder / f"{key}.npz") if None not in stamps else None
    if remembered is not None:
        return remembered

    def look(name: str) -> tuple[Table, int, list[tuple[Looks, Looks]]] | str:
        try:
            with _local(where, name, fetch) as path:
                table = read_table(path, pairs=pairs, labels=True)
                seen = [_looks(path, table, alpha)] if name in first else []
                return table, path.stat().st_size, seen
        except (ShardError, OSError) as error:
            return f"{name} ({error})"

    first = where.names[:4]
    shards: list[Shard] = []
    labels: list[NDArray[np.int64]] = []
    complaints: list[str] = []
    seen: list[tuple[Looks, Looks]] = []
    for name, found in zip(where.names, in_threads(look, where.names, ahead=4), strict=True):
        if isinstance(found, str):
            complaints.append(found)
            expect_enough(complaints, len(where.names), where.folder)
            continue
        table, length, looks = found
        shards.append(Shard(name, len(table), length))
        labels.append(np.zeros(0, np.int64) if table.labels is None else table.labels)
        seen += looks
    if not sum(shard.images for shard in shards):
        what = "KEY.input.png with KEY.target.png" if pairs else "files like KEY.png, .jpg or .npy"
        raise DataError(f"{where.folder}: expected {what} in the shards, found none")
    images, inputs = (_joined([looks[side] for looks in seen]) for side in (0, 1))
    result = Scan(tuple(shards), images, inputs, np.concatenate(labels), tuple(complaints))
    if not complaints:
        with suppress(OSError):  # what cannot be remembered is looked at again
            write_bytes(folder / f"{key}.npz", _packed(result))
    return result


def format_of(looks: Looks, shaping: Shaping, where: str) -> PixelFormat:
    """The format of all images, judging by the first; DataError where they need options."""
    headers = {
        f"{name}#{i}" if i else name: header
        for header, count, name in looks.headers
        for i in range(count)
    }
    if not headers:
        raise DataError(f"{where}: none of the first images can be read")
    shape, dtype = common_shape(headers, shaping, where)
    value_range = shaping.value_range
    if dtype == "float32" and value_range is None:
        value_range = float_range(looks.low, looks.high, f"{where}: the first images")
    return pixel_format(shape, dtype, value_range, alpha=shaping.alpha == "keep")


class _local:  # noqa: N801
    """A shard as a local file, for as long as it is looked at."""

    def __init__(self, where: Whereabouts, name: str, fetch: Fetch) -> None:
        self._where, self._name, self._fetch = where, name, fetch
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path:
        if not self._where.remote:
            return Path(self._where.of(self._name))
        self._folder = tempfile.TemporaryDirectory(prefix="sfumato-shards-")
        path = Path(self._folder.name) / "shard.tar"
        self._fetch.to_file(self._where.of(self._name), path)
        return path

    def __exit__(self, *error: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def _looks(path: Path, table: Table, alpha: Alpha) -> tuple[Looks, Looks]:
    nothing = Looks(())
    with path.open("rb") as stream:

        def of(members: Members) -> Looks:
            counts: dict[Header, tuple[int, str]] = {}
            low, high = np.inf, -np.inf
            for i in range(min(_LOOKED_AT, len(members.offset))):
                stream.seek(int(members.offset[i]))
                data, name = stream.read(int(members.length[i])), members.name(i)
                try:
                    header = read_header(io.BytesIO(data), name, alpha)
                    if header.dtype == "float32":
                        image = decode(io.BytesIO(data), name, alpha)
                        low, high = min(low, float(image.min())), max(high, float(image.max()))
                except UnreadableImageError:
                    continue
                count, known = counts.get(header, (0, name))
                counts[header] = (count + 1, known)
            headers = tuple((header, n, name) for header, (n, name) in counts.items())
            return Looks(headers, low, high) if low <= high else Looks(headers)

        return of(table.images), nothing if table.inputs is None else of(table.inputs)


def _joined(looks: list[Looks]) -> Looks:
    return Looks(
        tuple(header for look in looks for header in look.headers),
        min((look.low for look in looks), default=0.0),
        max((look.high for look in looks), default=0.0),
    )


def _stamp(where: Whereabouts, name: str, fetch: Fetch) -> str | None:
    """What changes when a file does; None where that cannot be told."""
    if where.remote:
        return fetch.stamp(where.of(name))
    try:
        status = Path(where.of(name)).stat()
    except OSError:
        return None
    return f"{status.st_size} {status.st_mtime_ns}"


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "sfumato" / "shards"


def _packed(scan: Scan) -> bytes:
    about = {
        "shards": [asdict(shard) for shard in scan.shards],
        "sides": [asdict(looks) for looks in (scan.images, scan.inputs)],
    }
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), labels=scan.labels)
    return buffer.getvalue()


def _remembered(path: Path) -> Scan | None:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            about = cast("Mapping[str, Any]", json.loads(str(content["about"])))
            labels = cast("NDArray[np.int64]", content["labels"])
        images, inputs = (
            Looks(
                tuple((Header(**header), n, name) for header, n, name in side["headers"]),
                side["low"],
                side["high"],
            )
            for side in about["sides"]
        )
        shards = tuple(Shard(**shard) for shard in about["shards"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return Scan(shards, images, inputs, labels)
