"""What is known of a set of shards before one is opened: `index.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any, cast

import numpy as np

from sfumato.data.decode import Alpha
from sfumato.data.images import digest
from sfumato.data.pixels import PixelFormat
from sfumato.data.shards.order import LANES
from sfumato.errors import DataError

INDEX = "index.json"
LABELS = "labels.npy"
INCOMPLETE = "packing-incomplete.txt"
MARK, VERSION = "sfumato_shards", 1


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, how many images it holds, its length, its SHA-256 where known."""

    name: str
    images: int
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class ShardIndex:
    """Shards of images of one format.

    classes: their names, empty without labels; `labels` then is the shard-like entry of the file
    that holds them all, int64 [images], in the order of the shards. inputs: the format of the
    images that these are learned from, of pairs. lanes: see `order`.
    """

    shards: tuple[Shard, ...]
    format: PixelFormat
    alpha: Alpha = "drop"
    classes: tuple[str, ...] = ()
    labels: Shard | None = None
    inputs: PixelFormat | None = None
    lanes: int = LANES
    first: tuple[int, ...] = ()
    """Places of each shard's first image in `labels`; the running sum of images if empty."""

    @property
    def images(self) -> int:
        """Images of all shards."""
        return sum(shard.images for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """A short hash of what the images are, not of where they are."""
        return digest([json.dumps(self.to_json(), sort_keys=True).encode()])

    def label_places(self) -> tuple[int, ...]:
        """Where each shard's labels begin in the file of labels."""
        counts = [shard.images for shard in self.shards]
        return self.first or tuple(int(n) for n in np.cumsum([0, *counts[:-1]]))

    def only(self, names: Sequence[str]) -> ShardIndex | None:
        """The same for some of the shards; None where one of them is not among these."""
        place = {shard.name: i for i, shard in enumerate(self.shards)}
        if not set(names) <= set(place):
            return None
        chosen, first = [place[name] for name in names], self.label_places()
        return replace(
            self,
            shards=tuple(self.shards[i] for i in chosen),
            first=tuple(first[i] for i in chosen),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back exactly."""
        out: dict[str, Any] = {
            MARK: VERSION,
            "images": self.images,
            "format": self.format.to_toml(),
            "alpha": self.alpha,
            "classes": list(self.classes),
            "labels": None if self.labels is None else asdict(self.labels),
            "inputs": None if self.inputs is None else self.inputs.to_toml(),
            "lanes": self.lanes,
            "shards": [asdict(shard) for shard in self.shards],
        }
        return out | ({"first": list(self.first)} if self.first else {})


def read_index(data: bytes, where: str) -> ShardIndex | None:
    """The index in the bytes of a JSON file; None for JSON of another kind.

    Raises DataError where it is damaged or of a later version.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is no readable JSON ({error}); the copy may be incomplete: copy it again, or "
            "remove it to have the shards counted instead"
        ) from error
    if not isinstance(content, dict) or MARK not in content:
        return None
    table = cast("dict[str, Any]", content)
    if table[MARK] != VERSION:
        raise DataError(
            f"{where}: expected version {VERSION} of sfumato's shards, got "
            f"{table['sfumato_shards']!r}; use the Sfumato that wrote it, or pack again"
        )
    try:
        index = _from_table(table)
    except (KeyError, TypeError, ValueError, OverflowError, DataError) as error:
        raise DataError(
            f"{where}: expected shards with name, images, bytes and sha256, and their format, but "
            f"it is damaged ({type(error).__name__}: {error}); pack again"
        ) from error
    if index.images != table["images"]:
        raise DataError(
            f"{where}: it says {table['images']} images, its shards add up to {index.images}; "
            "it is damaged: pack again"
        )
    return index


def _from_table(table: Mapping[str, Any]) -> ShardIndex:
    def entry(value: Mapping[str, Any]) -> Shard:
        name, length, sha = str(value["name"]), value["bytes"], value["sha256"]
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or int(value["images"]) < 0:
            raise ValueError(f"shard {value!r}")
        return Shard(name, int(value["images"]), None if length is None else int(length), sha)

    def maybe(value: Any, read: Callable[[Any], Any]) -> Any:
        return None if value is None else read(value)

    if table["alpha"] not in ("drop", "keep") or int(table["lanes"]) < 1 or not table["shards"]:
        raise ValueError("alpha, lanes or shards")
    return ShardIndex(
        tuple(map(entry, table["shards"])),
        PixelFormat.from_toml(table["format"]),
        table["alpha"],
        tuple(map(str, table["classes"])),
        maybe(table["labels"], entry),
        maybe(table["inputs"], PixelFormat.from_toml),
        int(table["lanes"]),
        tuple(map(int, table.get("first", ()))),
    )
