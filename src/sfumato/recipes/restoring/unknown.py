"""Which values of a damaged image are unknown, and what a mask image says of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.decode import ARRAY, SUFFIXES, Header, decode
from sfumato.data.images import UnreadableImageError
from sfumato.data.pixels import PixelFormat, to_model
from sfumato.data.shaping import to_channels
from sfumato.errors import DataError

MASKS = (".png", ".tif", ".tiff", ".bmp", ARRAY)
"""Files that keep a mask's black exactly black."""

T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """How the stored bands of one file become a model's channels, and what is unknown in them.

    form: the model's. alpha: whether the last stored band is transparency, no channel of the
    model. nodata: the raw value that stands for "unknown"; None where there is none.
    """

    name: str
    form: PixelFormat
    alpha: bool = False
    nodata: float | None = None

    def __call__(
        self, stored: NDArray[Any], masked: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[Any], Tensor, Tensor]:
        """Stored [bands, h, w] and a mask's [1, h, w] -> raw [C, h, w], x in [-1, 1], known.

        Unknown values are 0 in raw and x. known is bool [1, h, w], or [C, h, w] where the channels
        differ. Raises DataError for infinity, or known values outside the model's range.
        """
        raw = np.array(stored[:-1] if self.alpha else stored)
        unknown = np.zeros(raw.shape, np.bool_)
        if self.alpha:
            unknown |= transparent(stored[-1:])
        if raw.dtype.kind == "f":
            unknown |= np.isnan(raw)
        if self.nodata is not None and not math.isnan(self.nodata):
            unknown |= raw == _as(raw.dtype, self.nodata)
        if masked is not None:
            unknown |= masked
        self._check(raw, ~unknown)
        raw[unknown] = 0
        if len(raw) != self.form.channels:
            raw = to_channels(raw, self.form.channels)
            unknown = np.broadcast_to(unknown.any(0, keepdims=True), raw.shape)
            raw = np.where(unknown, raw.dtype.type(0), raw)
        x = to_model(raw, replace(self.form, height=raw.shape[1], width=raw.shape[2]))
        known = torch.from_numpy(~unknown)
        x.mul_(known)
        if bool((known == known[:1]).all()):
            known = known[:1].clone()
        return raw, x, known

    def _check(self, raw: NDArray[Any], known: NDArray[np.bool_]) -> None:
        form = self.form
        if form.levels == 1 << form.bits or not known.any():
            return
        values = raw[known]
        low, high = float(values.min()), float(values.max())
        if low < form.low or high > form.high:
            raise DataError(
                f"{self.name}: expected values inside the model's range [{form.low:g}, "
                f"{form.high:g}], got [{low:g}, {high:g}]; bring the values to that range, or name "
                "the one that stands for missing pixels as nodata"
            )


def transparent(alpha: NDArray[Any]) -> NDArray[np.bool_]:
    """Where alpha is anything below opaque: the largest whole number of its depth, or 1.0."""
    opaque = 1.0 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
    return ~(alpha >= opaque)


def plan_reading(
    name: str,
    kept: Header,
    without_alpha: int,
    form: PixelFormat,
    channels: int | None,
    nodata: float | None,
) -> Reading:
    """How a file of this header, with `without_alpha` bands beside alpha, becomes the model's.

    Raises DataError for another depth or channel count (grey and RGB convert with `channels`), and
    for a nodata value that no such pixel can have.
    """
    alpha = kept.channels != form.channels and without_alpha < kept.channels
    found = without_alpha if alpha else kept.channels
    fixes: list[str] = []
    convertible = {found, form.channels} == {1, 3}
    if channels not in (None, form.channels):
        raise DataError(
            f"{name}: expected the model's channels, {form.channels}, got --channels {channels}; "
            f"say --channels {form.channels} or leave it out"
        )
    if found != form.channels and not (convertible and channels == form.channels):
        fixes.append(
            f"add --channels {form.channels}"
            if convertible
            else f"only grey and RGB convert into each other, not {found} channels"
        )
    if kept.dtype != form.dtype:
        fixes.append(f"give {form.dtype} images: bit depths are not converted")
    if fixes:
        raise DataError(
            f"{name}: expected the channels and depth of the model's images, {form.channels} x "
            f"{form.dtype}, got {found} x {kept.dtype}: {'; '.join(fixes)}"
        )
    if nodata is not None and not _possible(form.dtype, nodata):
        top = np.iinfo(form.dtype).max
        raise DataError(
            f"{name}: expected nodata to be a value that {form.dtype} pixels can have, a whole "
            f"number from 0 to {top}, got {nodata:g}; correct it or leave it out"
        )
    return Reading(name, form, alpha, nodata)


def tag_nodata(form: PixelFormat, nodata: float | None) -> float | None:
    """A file's own nodata value; None where no pixel can have it, which GDAL ignores too."""
    return nodata if nodata is not None and _possible(form.dtype, nodata) else None


def read_mask(path: Path, size: tuple[int, int], of: str) -> NDArray[np.bool_]:
    """A mask [1, H, W] of an image `of` this (height, width): True (unknown) where not black.

    One channel, RGB of greys (an alpha channel does not count) or an array [H, W] or [1, H, W] of
    bool or numbers. Raises DataError for colours, NaN, another size, or a file that is no mask.
    """
    check_mask_file(path)
    if path.suffix.lower() == ARRAY:
        image = reading_file(path, lambda stream: _mask_array(stream, path))
    else:
        image = reading_file(path, lambda stream: decode(stream, str(path), "drop"))
    check_mask_size(path, image.shape[-2:], size, of)
    return as_mask(image, path)


def check_mask_file(path: Path) -> None:
    """DataError for a kind of file that blurs a mask's edges, or holds none."""
    if path.suffix.lower() not in MASKS:
        raise DataError(
            f"{path}: expected a mask as {', '.join(MASKS)}, got {path.suffix!r}; save it as PNG "
            "(lossy files turn black into almost black)"
        )


def check_mask_size(path: Path, found: Sequence[int], size: tuple[int, int], of: str) -> None:
    """DataError for a mask of another (height, width) than its image's."""
    if tuple(found) != size:
        raise DataError(
            f"{path}: expected a mask of the image's size, {size[0]} x {size[1]} (height x width "
            f"of {of}), got {found[0]} x {found[1]}; draw it on the image itself"
        )


def as_mask(image: NDArray[Any], path: Path) -> NDArray[np.bool_]:
    """Pixels [1 or 3, h, w] of a mask -> bool [1, h, w], True where not black."""
    if image.dtype.kind not in "biuf" or (image.dtype.kind == "f" and np.isnan(image).any()):
        raise DataError(
            f"{path}: expected a mask of bool or numbers without NaN (0: known, anything else: "
            f"unknown), got {image.dtype}; save it as a grey PNG"
        )
    if len(image) not in (1, 3) or (image != image[:1]).any():
        kind = "colours" if len(image) == 3 else f"{len(image)} channels"
        raise DataError(
            f"{path}: expected a mask in one channel or RGB greys (white: unknown, black: known), "
            f"got {kind}; save it as a grey PNG"
        )
    return image[:1] != 0


def _mask_array(stream: BinaryIO, path: Path) -> NDArray[Any]:
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if array.ndim not in (2, 3):
        raise DataError(
            f"{path}: expected a mask as an array [H, W] or [1, H, W], got shape {array.shape}"
        )
    return array[None] if array.ndim == 2 else array


def reading_file(path: Path, read: Callable[[BinaryIO], T]) -> T:
    """What `read` makes of an image file; DataError where it is missing, no image, or damaged."""
    if path.suffix.lower() not in (*SUFFIXES, ARRAY):
        raise DataError(
            f"{path}: expected one image file ({' '.join((*SUFFIXES, ARRAY))}), got "
            f"{'a folder' if path.is_dir() else repr(path.suffix)}"
        )
    try:
        with path.open("rb") as stream:
            return read(stream)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: expected an image file, but there is none; check the path"
        ) from error
    except UnreadableImageError as error:
        raise DataError(
            f"expected an image that can be read, got {error}; the file may be damaged or cut short"
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"expected an image that can be read, got {path} ({error}); the file may be damaged or "
            "cut short"
        ) from error


def channels_last(path: Path, form: PixelFormat, channels: int | None) -> bool:
    """Whether a .npy image is [H, W, C] rather than [C, H, W], by the channels that are wanted.

    Raises DataError for a shape that could be either.
    """
    if path.suffix.lower() != ARRAY:
        return False
    shape = reading_file(path, lambda _: np.load(path, mmap_mode="r", allow_pickle=False).shape)
    if len(shape) != 3:
        return False
    wanted = {form.channels} if channels is None else {form.channels, 1, 3}
    first, last = shape[0] in wanted, shape[2] in wanted
    if first and last:
        raise DataError(
            f"{path}: expected one image [C, H, W] or [H, W, C] of {form.channels} channels, got "
            f"shape {shape}, which could be either; save it as an image file, such as .tif"
        )
    return last


def _possible(dtype: str, value: float) -> bool:
    return dtype == "float32" or (value % 1 == 0 and 0 <= value <= np.iinfo(dtype).max)


def _as(dtype: np.dtype[Any], value: float) -> Any:
    """A value as pixels of this type hold it: float64's own nodata becomes what float32 made it."""
    with np.errstate(over="ignore"):
        return np.array(value).astype(dtype)
