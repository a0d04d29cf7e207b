"""Writing tar shards that any WebDataset reader reads, and the index beside them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sfumato.data.decode import Alpha, decode
from sfumato.data.images import Images, UnreadableImageError, check_share, in_threads
from sfumato.data.save import default_suffix, encode_image
from sfumato.data.shards.index import INCOMPLETE, INDEX, LABELS, Shard, ShardIndex
from sfumato.data.shards.order import LANES
from sfumato.data.shards.places import TAR
from sfumato.data.shards.table import CLASS, INPUT, TARGET
from sfumato.errors import ConfigError, DataError
from sfumato.files import write_bytes, write_text

_KEPT = (".png", ".jpg", ".jpeg", ".webp", ".npy")
_PREFIX = "shard-"
_MIB = 2**20


@dataclass(frozen=True)
class Packing:
    """How images become shards.

    most_bytes, most_images: a shard ends before either is exceeded (0: no bound). keep: files of an
    image that are PNG, JPEG or WebP, no larger than its pixels, are stored as they are; all others
    are stored without loss. shuffle: in a random but fixed order, so that any shard stands for all.
    lanes: see `order`.
    """

    most_bytes: int = 64 * _MIB
    most_images: int = 10_000
    keep: bool = True
    shuffle: bool = True
    seed: int = 0
    lanes: int = LANES

    def __post_init__(self) -> None:
        """Refuse what packs nothing."""
        if self.most_bytes < 0 or self.most_images < 0 or self.seed < 0 or self.lanes < 1:
            raise ConfigError(
                "shard sizes and seed must be 0 or more and lanes 1 or more, got "
                f"{self.most_bytes} bytes, {self.most_images} images, seed {self.seed} and "
                f"{self.lanes} lanes"
            )


@dataclass(frozen=True, eq=False)
class _Sample:
    """The files of one image, by what follows its key, and its label."""

    files: tuple[tuple[str, bytes], ...]
    label: int

    @property
    def size(self) -> int:
        return sum(512 + -(-len(data) // 512) * 512 for _, data in self.files)


class ShardWriter:
    """Writes a set of images to a new or empty folder: shard-00000.tar ..., index.json, labels.npy.

    Every shard appears whole or not at all, the index last; until then a file in the folder says
    that it is incomplete, and no verb takes it. Unreadable files are left out and named in
    `skipped`, above 1 % DataError. `force` replaces what an earlier call wrote. Raises ConfigError
    for a folder of other files.
    """

    def __init__(
        self,
        images: Images,
        folder: str | Path,
        packing: Packing | None = None,
        *,
        force: bool = False,
    ) -> None:
        if not len(images):
            raise DataError(f"{images.source}: expected at least one image, the set is empty")
        self.images, self.folder, self.packing = images, Path(folder), packing or Packing()
        self.skipped = images.skipped
        self._alpha: Alpha = _alpha(images)
        if images.inputs is not None and self._alpha != _alpha(images.inputs):
            raise DataError(
                f"{images.source}: of pairs either both sides have transparency or none, got "
                f"{images.inputs.format.describe()} to {images.format.describe()}; use --alpha drop"
            )
        _make_room(self.folder, force)

    def write(self) -> Iterator[int]:
        """Write everything, yielding 1 for every image that is in, 0 for one that is not."""
        _mark(self.folder)
        order = np.arange(len(self.images))
        if self.packing.shuffle:
            order = np.random.default_rng(self.packing.seed).permutation(order)
        shards: list[Shard] = []
        labels: list[int] = []
        open_samples: list[_Sample] = []
        size = 0
        skipped = list(self.skipped)
        for sample in in_threads(self._sample, map(int, order)):
            if isinstance(sample, str):
                skipped.append(sample)
                self.skipped = tuple(skipped)
                check_share(skipped, len(order), self.images.source)
                yield 0
                continue
            if open_samples and self._full(size + sample.size, len(open_samples) + 1):
                shards.append(self._shard(len(shards), open_samples, len(labels)))
                labels += [one.label for one in open_samples]
                open_samples, size = [], 0
            open_samples.append(sample)
            size += sample.size
            yield 1
        shards.append(self._shard(len(shards), open_samples, len(labels)))
        labels += [one.label for one in open_samples]
        self._finish(shards, labels)

    def _full(self, size: int, count: int) -> bool:
        packing = self.packing
        return bool(
            (packing.most_bytes and size > packing.most_bytes)
            or (packing.most_images and count > packing.most_images)
        )

    def _sample(self, i: int) -> _Sample | str:
        """The files of image i, or why it cannot be read."""
        images, given = self.images, self.images.inputs
        kind = "" if given is None else TARGET
        try:
            files = [self._file(images, i, kind)]
            if given is not None:
                files.append(self._file(given, i, INPUT))
        except UnreadableImageError as error:
            return str(error)
        label = -1
        if images.labels is not None:
            label = int(images.labels[i])
            files.append((CLASS, str(label).encode()))
        return _Sample(tuple(files), label)

    def _file(self, images: Images, i: int, kind: str) -> tuple[str, bytes]:
        """What follows the key, and the bytes, of one image."""
        try:
            raw = images.read([i])[0]
        except UnreadableImageError as error:
            raise UnreadableImageError(str(error), i) from error
        dot = "." if kind else ""
        if self.packing.keep and (stored := images.stored(i)) is not None:
            name, data = stored
            suffix = Path(name).suffix.lower()
            if suffix in _KEPT and len(data) <= raw.nbytes + 1024:
                # Kept only where it says the same by itself as it does under this set's options.
                try:
                    again = decode(io.BytesIO(data), name, self._alpha)
                except DataError:
                    again = None
                if again is not None and again.dtype == raw.dtype and np.array_equal(again, raw):
                    return f"{kind}{dot}{suffix[1:]}", data
        suffix = default_suffix(images.format)
        suffix = suffix if suffix == ".png" else ".npy"
        return f"{kind}{dot}{suffix[1:]}", encode_image(raw, images.format, f"image{suffix}")

    def _shard(self, number: int, samples: Sequence[_Sample], first: int) -> Shard:
        """Write one shard; all of it is in memory, which `most_bytes` bounds."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for i, sample in enumerate(samples):
                for kind, data in sample.files:
                    info = tarfile.TarInfo(f"{first + i:09d}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        name, data = f"{_PREFIX}{number:05d}{TAR}", buffer.getvalue()
        write_bytes(self.folder / name, data)
        return Shard(name, len(samples), len(data), hashlib.sha256(data).hexdigest())

    def _finish(self, shards: Sequence[Shard], labels: Sequence[int]) -> None:
        images = self.images
        index = ShardIndex(
            tuple(shards),
            images.format,
            self._alpha,
            images.classes,
            inputs=None if images.inputs is None else images.inputs.format,
            lanes=self.packing.lanes,
        )
        if images.labels is not None:
            buffer = io.BytesIO()
            np.save(buffer, np.array(labels, np.int64))
            data = buffer.getvalue()
            write_bytes(self.folder / LABELS, data)
            sha = hashlib.sha256(data).hexdigest()
            index = replace(index, labels=Shard(LABELS, len(labels), len(data), sha))
        write_text(self.folder / INDEX, json.dumps(index.to_json(), indent=1))
        (self.folder / INCOMPLETE).unlink(missing_ok=True)


def _alpha(images: Images) -> Alpha:
    """How what is written must be decoded: two and four channels of a PNG are alpha."""
    alpha = images.format.channels in (2, 4) and default_suffix(images.format) == ".png"
    return "keep" if alpha else "drop"


def _make_room(folder: Path, force: bool) -> None:
    """Make sure that nothing is in the way of new shards; only what is ours is ever removed."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    found = [entry.name for entry in folder.iterdir()]
    ours = [
        name
        for name in found
        if name in (INDEX, LABELS, INCOMPLETE) or (name.startswith(_PREFIX) and name.endswith(TAR))
    ]
    if not force or len(ours) < len(found):
        hint = ", or --force to replace the shards" if len(ours) == len(found) else ""
        raise ConfigError(f"{folder} already holds files: choose another --out, empty it{hint}")
    _mark(folder)
    for name in sorted(ours, key=lambda name: name != INDEX):
        if name != INCOMPLETE:
            (folder / name).unlink()


def _mark(folder: Path) -> None:
    """Say in the folder that what it holds is not yet all."""
    write_text(
        folder / INCOMPLETE,
        "sfumato data pack is writing here, or was interrupted: images are missing. "
        "Pack again with --force.\n",
    )
