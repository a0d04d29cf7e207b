"""Image files in a folder tree or a zip, as one set of equal images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.data.containers import Container, is_junk, natural_key
from sfumato.data.decode import ARRAY, SUFFIXES, Alpha, Header, decode, read_header
from sfumato.data.images import (
    Images,
    Indices,
    UnreadableImageError,
    check_share,
    digest,
    in_threads,
)
from sfumato.data.labels import file_labels
from sfumato.data.pixels import Dtype, float_range, pixel_format
from sfumato.data.shaping import Fit, channels_convertible, to_channels, to_size
from sfumato.errors import DataError

# Sets up to here are decoded once on opening, so broken files surface at once and not hours later.
VERIFY_FILES, VERIFY_BYTES = 2_000, 64 * 2**20


RECORDS = ("sample.toml", "interpolate.toml", "latents.toml")
"""Beside one of these lie images that Sfumato drew, and ..."""
SHEETS = ("grid.png", "progressive.png", "share-latent.png", "strip.png")
"""... sheets of them, which are no images of the set."""


@dataclass(frozen=True)
class Shaping:
    """How files become equal images; DataError for a size or range that nothing can have."""

    size: tuple[int, int] | None = None
    fit: Fit = "crop"
    alpha: Alpha = "drop"
    channels: int | None = None
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise DataError(
                "--size HEIGHT WIDTH (size=(height, width)): expected at least 1 pixel each way, "
                f"got {self.size[0]} {self.size[1]}"
            )
        low, high = self.value_range or (0.0, 1.0)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise DataError(
                "--value-range LOW HIGH (value_range=(low, high)): expected finite values with "
                f"LOW below HIGH, got {low:g} {high:g}"
            )


class FileImages(Images):
    """Image files of a container, decoded when read.

    All must have one size (or `shaping.size` is given), one channel count (or `channels`) and one
    depth; else DataError with the counts found. Unreadable files are skipped up to 1 %.
    """

    def __init__(self, container: Container, shaping: Shaping, labels: bool = False) -> None:
        self._container, self._shaping, self.source = container, shaping, container.where
        names = image_names(container)
        headers, complaints = read_headers(container, names, shaping.alpha)
        check_share(complaints, len(names), self.source)
        self._names = list(headers)
        self._shape, self._dtype = common_shape(headers, shaping, self.source)

        value_range = shaping.value_range
        small = len(names) <= VERIFY_FILES and sum(map(container.size, names)) <= VERIFY_BYTES
        measure = self._dtype == "float32" and value_range is None
        if small or measure:
            low, high = self._verify(complaints)
            check_share(complaints, len(names), self.source)
            if measure:
                value_range = float_range(low, high, self.source)
        self.skipped = tuple(complaints)
        self.format = pixel_format(
            self._shape, self._dtype, value_range, alpha=shaping.alpha == "keep"
        )
        self._full = self.format.levels == 1 << self.format.bits  # no value can be out of range
        self.fingerprint = digest(
            [f"{name} {container.size(name)}".encode() for name in self._names]
            + [repr((self.format, shaping)).encode()]
        )
        if labels:
            self.labels, self.classes = file_labels(container, self._names)

    def __len__(self) -> int:
        return len(self._names)

    def names(self, i: int) -> str:
        """Path of image i inside the folder or zip."""
        return self._names[i]

    def read(self, indices: Indices) -> NDArray[Any]:
        """Raw images [n, C, H, W], decoded now."""
        out = np.empty((len(indices), *self.format.shape), self.format.dtype)
        for place, i in enumerate(indices):
            name = self._names[i]
            try:
                image = self._decode(name)
            except UnreadableImageError as error:
                raise UnreadableImageError(str(error), int(i)) from error
            if not self._full and (image.min() < self.format.low or image.max() > self.format.high):
                raise DataError(
                    f"{self.source}: {name} was expected inside the range [{self.format.low:g}, "
                    f"{self.format.high:g}], but it spans [{image.min():g}, {image.max():g}]; "
                    "correct --value-range LOW HIGH"
                )
            out[place] = image
        return out

    def stored(self, i: int) -> tuple[str, bytes]:
        """Name and bytes of the file of image i, as they are."""
        name = self._names[i]
        with self._container.open(name) as stream:
            return name, stream.read()

    def _decode(self, name: str) -> NDArray[Any]:
        """One image in the common shape and depth."""
        try:
            with self._container.open(name) as stream:
                image = decode(stream, name, self._shaping.alpha)
        except OSError as error:
            raise UnreadableImageError(f"{name} ({error})") from error
        if self._shaping.size is not None:
            image = to_size(image, self._shaping.size, self._shaping.fit, name)
        image = to_channels(image, self._shape[0])
        if image.shape != self._shape or str(image.dtype) != self._dtype:
            raise DataError(
                f"{self.source}: {name} changed since the set was opened: expected {self._dtype} "
                f"of shape {self._shape}, got {image.dtype} of shape {image.shape}; start again"
            )
        return image

    def _verify(self, complaints: list[str]) -> tuple[float, float]:
        """Decode everything once: drop what fails (into `complaints`), return the extremes."""

        def extremes(name: str) -> tuple[float, float] | str:
            try:
                image = self._decode(name)
            except UnreadableImageError as error:
                return str(error)
            return float(image.min()), float(image.max())

        good: dict[str, tuple[float, float]] = {}
        for name, result in zip(self._names, in_threads(extremes, self._names), strict=True):
            if isinstance(result, str):
                complaints.append(result)
            else:
                good[name] = result
        self._names = list(good)
        lows, highs = zip(*good.values(), strict=True) if good else ((0.0,), (0.0,))
        return min(lows), max(highs)


def image_names(container: Container) -> list[str]:
    """Names of the image files in natural order; DataError where there is none.

    Sheets of images that Sfumato put beside its samples do not count, and arrays [C, H, W] only
    where there is nothing else.
    """
    sheets = {
        name.rpartition("/")[0] + "/" + sheet
        for name in container.names
        if name.rpartition("/")[2] in RECORDS
        for sheet in SHEETS
    }
    good = [n for n in container.names if not is_junk(n)]
    names = [n for n in good if n.lower().endswith(SUFFIXES) and _rooted(n) not in sheets]
    names = names or [n for n in good if n.lower().endswith(ARRAY)]
    if not names:
        raise DataError(_nothing_found(container))
    return sorted(names, key=natural_key)


def _rooted(name: str) -> str:
    return name if "/" in name else f"/{name}"


def read_headers(
    container: Container, names: Sequence[str], alpha: Alpha
) -> tuple[dict[str, Header], list[str]]:
    """The header of every readable file, in order, and what is wrong with each of the others."""

    def read(name: str) -> Header | str:
        try:
            with container.open(name) as stream:
                return read_header(stream, name, alpha)
        except UnreadableImageError as error:
            return str(error)
        except OSError as error:
            return f"{name} ({error})"

    headers: dict[str, Header] = {}
    complaints: list[str] = []
    for name, found in zip(names, in_threads(read, names), strict=True):
        if isinstance(found, Header):
            headers[name] = found
        else:
            complaints.append(found)
    return headers, complaints


def common_shape(
    headers: Mapping[str, Header], shaping: Shaping, where: str
) -> tuple[tuple[int, int, int], Dtype]:
    """[C, H, W] and dtype of every image, or DataError with the kinds found and what to do."""
    dtypes: Counter[Dtype] = Counter(header.dtype for header in headers.values())
    if len(dtypes) > 1:
        raise DataError(
            f"{where}: expected one bit depth, found {_counts(dtypes, headers, 'dtype')}; "
            "convert the files to one depth"
        )
    channels = Counter(header.channels for header in headers.values())
    want = shaping.channels
    if want is None:
        if len(channels) > 1:
            raise DataError(
                f"{where}: expected one channel count, found "
                f"{_counts(channels, headers, 'channels')}; choose one with --channels "
                f"{channels.most_common(1)[0][0]} (grey and RGB convert into each other)"
            )
        want = next(iter(channels))
    for have in channels:
        if not channels_convertible(have, want, shaping.alpha == "keep"):
            raise DataError(
                f"{where}: images of {have} channels cannot become images of {want}; only grey "
                "and RGB convert into each other; the alpha channel of files is kept under --alpha "
                "keep (of sfumato evaluate: --transparency keep)"
            )
    sizes = Counter((header.height, header.width) for header in headers.values())
    size = shaping.size
    if size is None:
        if len(sizes) > 1:
            common = ", ".join(f"{h} x {w} ({n:,})" for (h, w), n in sizes.most_common(5))
            least, middle, most = short_sides(sizes)
            side = common_side(sizes)
            raise DataError(
                f"{where}: expected images of one size, found {len(sizes)} sizes (height x width), "
                f"most often {common}; short sides are {least} to {most}, half of them {middle} or "
                f"more; choose one size with --size HEIGHT WIDTH, for example --size {side} {side} "
                "(crops to the centre; --fit stretch or strict for other rules)"
            )
        size = next(iter(sizes))
    return (want, *size), next(iter(dtypes))


def short_sides(sizes: Counter[tuple[int, int]]) -> tuple[int, int, int]:
    """Least, median and greatest of the images' short sides."""
    sides = sorted(min(size) for size in sizes.elements())
    return sides[0], sides[len(sides) // 2], sides[-1]


def common_side(sizes: Counter[tuple[int, int]]) -> int:
    """A side to suggest: the multiple of 8 at or below the median short side (it, if below 8)."""
    middle = short_sides(sizes)[1]
    return max(middle // 8 * 8, min(middle, 8))


def _counts(counter: Counter[Any], headers: Mapping[str, Header], field: str) -> str:
    """`3 channels in 90 (a.png), 1 channels in 10 (b.png)`."""
    first = {getattr(header, field): name for name, header in [*headers.items()][::-1]}
    unit = "" if field == "dtype" else f" {field}"
    return ", ".join(f"{v}{unit} in {n:,} ({first[v]})" for v, n in counter.most_common())


def _nothing_found(container: Container) -> str:
    """Why there is no image here, with the most common other files."""
    others = Counter(
        "." + name.rsplit(".", 1)[-1].lower() if "." in name else name
        for name in container.names
        if not is_junk(name)
    )
    found = ", ".join(f"{n} {kind}" for kind, n in others.most_common(4)) or "nothing"
    return (
        f"{container.where}: expected images ({' '.join(SUFFIXES)}) at any depth, found {found}; "
        "give the folder or zip that holds the images, or a .npy, .npz or IDX file"
    )
