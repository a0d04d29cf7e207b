"""Pairs of images: one to start from, one to learn, of any channels and bit depths each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.data.arrays import Layout
from sfumato.data.containers import Folder
from sfumato.data.decode import Alpha
from sfumato.data.files import image_names
from sfumato.data.images import Images, Indices, Subset, digest, left_out
from sfumato.data.pixels import PixelFormat
from sfumato.data.shaping import Fit
from sfumato.data.shards.images import ShardImages
from sfumato.data.shards.places import holds_shards
from sfumato.data.sources import Opening
from sfumato.errors import DataError

INPUT, TARGET = "input", "target"
"""The two halves of a folder of pairs: folders of images, or .npy arrays."""
_SHOWN = 5


class Pairs(Images):
    """Images to learn, and in `inputs` the image that each is learned from.

    Format, labels and `read` are those of the targets. Raises DataError where the two sets differ
    in number, height or width.
    """

    def __init__(self, inputs: Images, targets: Images, source: str = "pairs") -> None:
        if len(inputs) != len(targets):
            raise DataError(
                f"{source}: pairs need an input for every target, got {len(inputs):,} inputs and "
                f"{len(targets):,} targets; leave out those without a partner"
            )
        ours, theirs = inputs.format, targets.format
        if ours.shape[1:] != theirs.shape[1:]:
            raise DataError(
                f"{source}: inputs and targets must be of one size, but inputs are "
                f"{ours.height} x {ours.width} (height x width), targets {theirs.height} x "
                f"{theirs.width}; bring both to one, for example --size {theirs.height} "
                f"{theirs.width}"
            )
        self.inputs, self._inputs = inputs, inputs
        self._targets = targets
        self.format = theirs
        self.labels, self.classes = targets.labels, targets.classes
        self.skipped = (*inputs.skipped, *targets.skipped)
        self.source = source
        self.resident = inputs.resident and targets.resident
        self.fingerprint = digest([inputs.fingerprint.encode(), targets.fingerprint.encode()])

    def __len__(self) -> int:
        return len(self._targets)

    def read(self, indices: Indices) -> NDArray[Any]:
        """Raw targets [n, C, H, W]."""
        return self._targets.read(indices)

    def names(self, i: int) -> str:
        """The name of target i."""
        return self._targets.names(i)

    def describe(self) -> str:
        """One line: where from, how many, both formats, classes, and what was skipped."""
        text = f"{self.source}: {len(self):,} pairs, {self._inputs.format.describe()} to "
        text += self.format.describe()
        if self.labels is not None:
            text += f", {len(self.classes)} classes"
        return text + left_out(self.skipped)


class _Records(Images):
    """Pairs as rows of bytes [1, 1, n], both images one after the other: one thing to cache.

    What a reader does with one unreadable half so concerns the pair.
    """

    def __init__(self, targets: Images, inputs: Images) -> None:
        self._halves = (targets, inputs)
        nbytes = targets.format.nbytes + inputs.format.nbytes
        self.format = PixelFormat(1, 1, nbytes, "uint8", 0.0, 255.0)
        self.source, self.fingerprint = targets.source, targets.fingerprint
        self.skipped, self.resident = targets.skipped, targets.resident

    def __len__(self) -> int:
        return len(self._halves[0])

    def read(self, indices: Indices) -> NDArray[Any]:
        """Bytes [n, 1, 1, nbytes]."""
        rows = [np.ascontiguousarray(half.read(indices)) for half in self._halves]
        flat = [row.reshape(len(row), -1).view(np.uint8) for row in rows]
        return np.concatenate(flat, axis=1)[:, None, None]


def records(images: Images) -> Images:
    """Return what a reader reads of a set: the set, or of pairs both halves at once."""
    return images if images.inputs is None else _Records(images, images.inputs)


def split(images: Images, raw: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return raw images [n, C, H, W] and, of pairs, inputs [n, K, H, W], from `records(images)`."""
    if images.inputs is None:
        return raw, None
    rows, cut = raw.reshape(len(raw), -1), images.format.nbytes

    def half(part: NDArray[Any], fmt: PixelFormat) -> NDArray[Any]:
        return np.ascontiguousarray(part).view(fmt.dtype).reshape(len(part), *fmt.shape)

    return half(rows[:, :cut], images.format), half(rows[:, cut:], images.inputs.format)


def open_pairs(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    alpha: Alpha = "drop",
    value_range: tuple[float, float] | None = None,
    input_range: tuple[float, float] | None = None,
    layout: Layout | None = None,
    labels: bool = False,
    channels: int | None = None,
    input_channels: int | None = None,
) -> Pairs | ShardImages:
    """Pairs of the folders input/ and target/ in `path`, or its arrays input.npy and target.npy.

    Also tar shards of pairs, that `sfumato data pack` wrote or that hold KEY.input.png beside
    KEY.target.png.

    Files are partners where their paths are equal but for the suffix, arrays' images by place. The
    options are those of `open_images`, for both sides; value_range, labels and channels concern
    the targets, input_range and input_channels the inputs. Raises DataError where a side is
    missing, where files have no partner, or where the sides differ in height or width.
    """
    opening = Opening(size, fit, alpha, value_range, layout, labels, channels)
    return pairs_of(path, opening, input_range, input_channels)


def pairs_of(
    path: str | Path,
    opening: Opening,
    input_range: tuple[float, float] | None = None,
    input_channels: int | None = None,
) -> Pairs | ShardImages:
    """The pairs of a folder or of shards, their targets opened so; see `open_pairs`."""
    if holds_shards(str(path)):
        return opening.shards(
            path, pairs=True, input_range=input_range, input_channels=input_channels
        )
    where = Path(path)
    suffix = _kind(where)
    sides = [where / f"{side}{suffix}" for side in (INPUT, TARGET)]
    ours = replace(opening, value_range=input_range, channels=input_channels, labels=False)
    try:
        inputs = ours.images(sides[0])
    except DataError as error:
        advice = str(error).replace("--value-range", "--input-range")
        raise DataError(advice.replace("--channels", "--input-channels")) from error
    targets = opening.images(sides[1])
    if not suffix:
        inputs, targets = _partners(where, inputs, targets)
    pairs = Pairs(inputs, targets, str(path))
    pairs.opened = {
        "path": str(where.resolve()),
        "condition": "image",
        **vars(opening),
        "input_range": input_range,
        "input_channels": input_channels,
    }
    return pairs


def holds_pairs(path: str | Path) -> bool:
    """Return whether a path looks like a folder of pairs."""
    where = Path(path)
    return any(
        all((where / f"{side}{suffix}").exists() for side in (INPUT, TARGET))
        for suffix in ("", ".npy")
    )


def _kind(where: Path) -> str:
    """Return "" for two folders and ".npy" for two arrays; DataError for anything else."""
    for suffix in ("", ".npy"):
        there = [(where / f"{side}{suffix}").exists() for side in (INPUT, TARGET)]
        if all(there):
            return suffix
    how = (
        f"pairs are a folder that holds {INPUT}/ and {TARGET}/ (images of the same names), or "
        f"{INPUT}.npy and {TARGET}.npy (images in the same order)"
    )
    if not where.is_dir():
        what = "is a file" if where.exists() else "does not exist"
        raise DataError(f"{where} {what}: {how}")
    found = sorted(entry.name + "/" * entry.is_dir() for entry in where.iterdir())
    halves = [f"{side}{suffix}" for side in (INPUT, TARGET) for suffix in ("/", ".npy")]
    known = [name for name in halves if name in found]
    listed = ", ".join(found[:_SHOWN]) + (", ..." if found[_SHOWN:] else "")
    if len(known) == 1:
        side = TARGET if known[0].startswith(INPUT) else INPUT
        missing = known[0].replace(INPUT if side == TARGET else TARGET, side)
        raise DataError(f"{where}: {missing} is missing beside {known[0]}; {how}")
    raise DataError(
        f"{where}: expected pairs, found {listed or 'nothing'}; {how}. "
        "To learn single images leave out --condition image"
    )


def _partners(where: Path, inputs: Images, targets: Images) -> tuple[Images, Images]:
    """Return both sets in the targets' order, without those whose partner cannot be read."""
    ours = _stems(image_names(Folder(where / INPUT)), where / INPUT)
    theirs = _stems(image_names(Folder(where / TARGET)), where / TARGET)
    alone = [
        f"{len(names):,} in {side}/ without a partner in {other}/ ({_some(names)})"
        for side, other, names in (
            (INPUT, TARGET, [name for stem, name in ours.items() if stem not in theirs]),
            (TARGET, INPUT, [name for stem, name in theirs.items() if stem not in ours]),
        )
        if names
    ]
    if alone:
        raise DataError(
            f"{where}: pairs are files of the same name, whatever their suffix, but there are "
            f"{' and '.join(alone)}; add or remove them"
        )
    place = {_stem(inputs.names(i)): i for i in range(len(inputs))}
    chosen = [i for i in range(len(targets)) if _stem(targets.names(i)) in place]
    partners = [place[_stem(targets.names(i))] for i in chosen]
    return (
        Subset(inputs, partners, inputs.source),
        Subset(targets, chosen, targets.source),
    )


def _stems(names: Sequence[str], where: Path) -> dict[str, str]:
    """Return names by stem; DataError where two have the same."""
    found = {_stem(name): name for name in names}
    if len(found) < len(names):
        counts = Counter(map(_stem, names))
        twice = [name for name in names if counts[_stem(name)] > 1]
        raise DataError(
            f"{where}: expected one image of each name, but {_some(twice)} differ only in their "
            "suffix; keep one of each"
        )
    return found


def _stem(name: str) -> str:
    """Return a path without its suffix."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if names[_SHOWN:] else "")
