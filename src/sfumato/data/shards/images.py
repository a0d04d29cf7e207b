"""Shards as one set of equal images: any of them can be read, and some stand for all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sfumato.data.decode import decode
from sfumato.data.files import Shaping
from sfumato.data.images import Images, Indices, Subset, UnreadableImageError, left_out
from sfumato.data.pixels import PixelFormat
from sfumato.data.shaping import channels_convertible, to_channels, to_size
from sfumato.data.shards.index import Shard
from sfumato.data.shards.store import Opened, Store
from sfumato.data.shards.table import Members, ShardError

ENOUGH_IMAGES, ENOUGH_SHARDS = 10_000, 4
_PICK = 7_450_386_220  # no seed that somebody would shuffle their images with


@dataclass(frozen=True)
class Side:
    """What the images of one side of a set become: format, and how they are brought to it."""

    format: PixelFormat
    shaping: Shaping
    given: bool = False
    """Whether these are the inputs of pairs."""

    def members(self, opened: Opened) -> Members:
        """Where they are in a shard."""
        table = opened.table
        if not self.given:
            return table.images
        if table.inputs is None:
            raise ValueError("expected a shard of pairs, got one of images alone")
        return table.inputs

    def image(self, stream: BinaryIO, opened: Opened, i: int) -> NDArray[Any]:
        """Image i of a shard, raw [C, H, W]; UnreadableImageError where it cannot be."""
        members, want = self.members(opened), self.format
        name = members.name(i)
        stream.seek(int(members.offset[i]))
        data = stream.read(int(members.length[i]))
        image = decode(io.BytesIO(data), name, self.shaping.alpha)
        if self.shaping.size is not None:
            image = to_size(image, self.shaping.size, self.shaping.fit, name)
        if channels_convertible(len(image), want.channels, self.shaping.alpha == "keep"):
            image = to_channels(image, want.channels)
        if image.shape != want.shape or str(image.dtype) != want.dtype:
            raise UnreadableImageError(
                f"{name} (expected {want.describe()}, got {image.dtype} of shape {image.shape}; "
                "--size and --channels bring images to one shape)"
            )
        if want.levels != 1 << want.bits and (image.min() < want.low or image.max() > want.high):
            raise UnreadableImageError(
                f"{name} (expected values in [{want.low:g}, {want.high:g}], it spans "
                f"[{image.min():g}, {image.max():g}]; --value-range LOW HIGH says other ones)"
            )
        return image


class ShardImages(Images):
    """Images of tar shards; see `open_shards`.

    counts: images of each shard, int64 [shards]; starts: the index of the first of each. Reading
    in order costs one pass over the shards, picking at random opens every shard that is hit.
    """

    def __init__(
        self,
        store: Store,
        side: Side,
        source: str,
        fingerprint: str,
        *,
        lanes: int,
        labels: NDArray[np.int64] | None = None,
        classes: Sequence[str] = (),
        inputs: Side | None = None,
    ) -> None:
        self.store, self.side, self.lanes = store, side, lanes
        self.format, self.source, self.fingerprint = side.format, source, fingerprint
        self.counts = np.array([shard.images for shard in store.shards], np.int64)
        self.starts = np.cumsum(self.counts) - self.counts
        self.labels, self.classes = labels, tuple(classes)
        self.skipped = store.complaints
        self.input_side = inputs
        if inputs is not None:
            self.inputs = ShardImages(store, inputs, source, fingerprint, lanes=lanes)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def names(self, i: int) -> str:
        """Shard and place in it."""
        shard, inside = self.locate(np.array([i]))
        return f"{self.shard(int(shard[0])).name}[{int(inside[0])}]"

    def shard(self, number: int) -> Shard:
        """One shard's name, length and checksum."""
        return self.store.shards[number]

    def locate(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards of images, and their places in them."""
        ends = self.starts + self.counts
        shard = np.searchsorted(ends, index, "right").astype(np.int64)
        return shard, index - self.starts[shard]

    def read(self, indices: Indices) -> NDArray[Any]:
        """Raw images [n, C, H, W]."""
        index = np.asarray(indices, dtype=np.int64)
        out = np.empty((len(index), *self.format.shape), self.format.dtype)
        shards, inside = self.locate(index)
        for number in np.unique(shards):
            here = np.flatnonzero(shards == number)
            try:
                with self.store.opened(int(number)) as opened, opened.path.open("rb") as stream:
                    for place in here[np.argsort(inside[here])]:
                        out[place] = self._read_one(stream, opened, int(inside[place]), number)
            except ShardError as error:
                raise UnreadableImageError(str(error), int(index[here[0]])) from error
        return out

    def representative(self) -> Images:
        """Images of a few shards, picked at random but always the same, broken ones left out."""
        chosen: list[int] = []
        for number in np.random.default_rng(_PICK).permutation(len(self.counts)):
            if len(chosen) >= ENOUGH_SHARDS and self.counts[chosen].sum() >= ENOUGH_IMAGES:
                break
            try:
                with self.store.opened(int(number)):
                    chosen.append(int(number))
            except ShardError:
                continue
        if len(chosen) == len(self.counts):
            return self
        parts = [np.arange(self.counts[n]) + self.starts[n] for n in sorted(chosen)]
        some = Subset(self, np.concatenate(parts), self.source)
        some.skipped = self.store.complaints
        return some

    def describe(self) -> str:
        """One line: where from, how many, in how many shards, their format, and what is broken."""
        many = len(self.counts)
        text = f"{self.source}: {len(self):,} "
        text += "images" if self.inputs is None else "pairs"
        text += f" in {many:,} shard" + ("s, " if many != 1 else ", ")
        if self.inputs is not None:
            text += f"{self.inputs.format.describe()} to "
        text += self.format.describe()
        if self.labels is not None:
            text += f", {len(self.classes)} classes"
        return text + left_out(self.store.complaints, "broken")

    def _read_one(self, stream: BinaryIO, opened: Opened, inside: int, number: int) -> NDArray[Any]:
        try:
            return self.side.image(stream, opened, inside)
        except UnreadableImageError as error:
            index = int(self.starts[number]) + inside
            raise UnreadableImageError(f"{self.shard(number).name}: {error}", index) from error
