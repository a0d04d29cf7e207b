"""Images that come as one array: in memory, in a `.npy` (memory-mapped) or a `.npz`."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from sfumato.data.images import Images, Indices, digest
from sfumato.data.labels import checked_labels
from sfumato.data.pixels import DTYPES, Dtype, UnknownRangeError, float_range, pixel_format
from sfumato.data.shaping import Fit, channels_convertible, to_channels, to_size
from sfumato.errors import DataError

Layout = Literal["NHWC", "NCHW"]

MOST_CHANNELS = 64
_FEW_COLUMNS = 16  # a last axis up to here may count channels
_SURELY_NO_STRIP = 8  # grey images of at most 4 columns and so many rows are no images
_HASHED_BYTES = 2**20  # of the beginning, middle and end of an array


class InMemory(Images):
    """An array [N, H, W], [N, H, W, C] or [N, C, H, W] as images; memory maps stay on disk.

    uint8 and uint16 are taken as they are; float16, float32 and float64 become float32, in the
    stated `value_range`, else [0, 1] or [-1, 1] by their extremes; so do other whole numbers, whose
    range must be stated. DataError on other dtypes, NaN, values outside the range, an unclear
    layout, or labels that do not match.
    """

    def __init__(
        self,
        array: NDArray[Any],
        labels: NDArray[Any] | None = None,
        classes: Sequence[str] = (),
        value_range: tuple[float, float] | None = None,
        *,
        layout: Layout | None = None,
        size: tuple[int, int] | None = None,
        fit: Fit = "crop",
        channels: int | None = None,
        source: str = "array",
    ) -> None:
        array = np.asanyarray(array)
        self.source = source
        self._fit: Fit = fit
        self._dtype = _pixel_dtype(array, source)
        self._array = as_nchw(array, layout, source)
        self._hint = _one_image(array.shape)
        if not len(array):
            raise DataError(f"{source}: expected at least one image, got an empty array")
        _, have, height, width = self._array.shape
        want = channels or have
        if not channels_convertible(have, want, alpha=False):
            raise DataError(
                f"{source}: images of {have} channels cannot become images of {want}; only grey "
                "and RGB convert into each other"
            )
        height, width = size or (height, width)
        if value_range is not None or self._dtype == "float32":
            value_range = self._checked_range(value_range)
        self.format = pixel_format((want, height, width), self._dtype, value_range)
        self._as_stored = self.format.shape == self._array.shape[1:]
        self.resident = self._as_stored and not isinstance(array, np.memmap)
        identity = repr((self._array.shape, self.format, fit)).encode()
        self.fingerprint = digest([identity, *_sample(array)])
        if labels is not None:
            self.labels, self.classes = checked_labels(labels, len(array), classes, source)

    def __len__(self) -> int:
        return len(self._array)

    def describe(self) -> str:
        """One line, with a doubt where a single image may have been read as many."""
        return super().describe() + (f" (read as {self._hint})" if self._hint else "")

    def read(self, indices: Indices) -> NDArray[Any]:
        """Raw images [n, C, H, W]."""
        chosen = self._array[np.asarray(indices, dtype=np.int64)].astype(self._dtype, copy=False)
        if self._as_stored:
            return chosen
        _, height, width = self.format.shape
        return np.stack(
            [
                to_channels(
                    to_size(image, (height, width), self._fit, self.names(int(i))),
                    self.format.channels,
                )
                for i, image in zip(indices, chosen, strict=True)
            ]
        )

    def _checked_range(self, stated: tuple[float, float] | None) -> tuple[float, float]:
        """The stated range, or the default of floats, after a look at every value."""
        low, high = np.inf, -np.inf
        for start, part in _parts(self._array):
            finite = np.isfinite(part).reshape(len(part), -1).all(1)
            if not finite.all():
                first = start + int(np.argmin(finite))
                raise DataError(
                    f"{self.source}: pixels must be finite, but image {first} (counting from 0) "
                    "holds NaN or infinity; remove or repair it"
                )
            low, high = min(low, float(part.min())), max(high, float(part.max()))
        if stated is None and self._array.dtype.kind in "iu":
            why = f"{self._array.dtype.name} values have no range of their own"
            raise UnknownRangeError(self.source, low, high, why)
        if stated is None:
            return float_range(low, high, self.source)
        if low < stated[0] or high > stated[1]:
            raise DataError(
                f"{self.source}: values were expected inside the stated range [{stated[0]:g}, "
                f"{stated[1]:g}], but they span [{low:g}, {high:g}]; correct "
                "--value-range LOW HIGH"
            )
        return stated


def as_nchw(array: NDArray[Any], layout: Layout | None, where: str) -> NDArray[Any]:
    """A view [N, C, H, W] of [N, H, W] (grey), [N, H, W, C] or [N, C, H, W].

    Unless `layout` is given, the channel axis is axis 1 or the last, whichever is smaller and at
    most 64. If the two are equal, or both could count channels (both at most 4), DataError; so for
    three axes that are surely one image [H, W, C].
    """
    if array.ndim == 3:
        if array.shape[2] <= 4 and array.shape[1] >= _SURELY_NO_STRIP:
            raise DataError(f"{where}: shape {array.shape} would be {_one_image(array.shape)}")
        return array[:, None]
    if array.ndim != 4:
        raise DataError(
            f"{where}: expected images as N,H,W or N,H,W,C or N,C,H,W, got shape {array.shape}"
        )
    first, last = array.shape[1], array.shape[3]
    if layout is None:
        unclear = first == last or max(first, last) <= 4
        if unclear or min(first, last) > MOST_CHANNELS:
            raise DataError(
                f"{where}: cannot tell which axis of shape {array.shape} counts the channels; say "
                "--layout NHWC or --layout NCHW"
            )
        layout = "NCHW" if first < last else "NHWC"
    return array if layout == "NCHW" else np.moveaxis(array, 3, 1)


def open_npy(path: Path, want_labels: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Images of a `.npy`, memory-mapped; labels from NAME_labels.npy or labels.npy beside it."""
    array = _load(path, mmap=True)
    if not want_labels:
        return array, None
    beside = [path.with_name(f"{path.stem}_labels.npy"), path.with_name("labels.npy")]
    for candidate in beside:
        if candidate.exists():
            return array, _load(candidate, mmap=False)
    raise DataError(
        f"{path}: class labels were expected in {beside[0].name} or {beside[1].name} beside it, "
        "but neither exists; add one or train without classes"
    )


def open_npz(path: Path, want_labels: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Images (the only array of 3 or 4 axes) and labels (the only whole-number one of 1 axis).

    A `.npz` is read into memory; use `.npy` for sets larger than that.
    """
    content = cast("dict[str, NDArray[Any]]", _load(path, mmap=False))
    stacks = [key for key, value in content.items() if value.ndim in (3, 4)]
    lists = [key for key, value in content.items() if value.ndim == 1 and value.dtype.kind in "iu"]
    listing = ", ".join(f"{key} {value.shape}" for key, value in content.items()) or "nothing"
    if len(stacks) != 1:
        raise DataError(
            f"{path}: expected exactly one array of images (3 or 4 axes), found {listing}; save "
            "the images alone or with their labels"
        )
    if want_labels and len(lists) != 1:
        raise DataError(
            f"{path}: expected exactly one whole-number array of labels (1 axis) beside the "
            f"images, found {listing}"
        )
    return content[stacks[0]], content[lists[0]] if want_labels else None


def _load(path: Path, mmap: bool) -> Any:
    try:
        if mmap:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as stream:
            loaded: Any = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return cast("NDArray[Any]", loaded)
            return {str(key): cast("NDArray[Any]", loaded[key]) for key in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: expected an array written by numpy, but it cannot be read ({error}); it may "
            "be cut short, or hold Python objects, which are refused"
        ) from error


def _pixel_dtype(array: NDArray[Any], where: str) -> Dtype:
    name = array.dtype.name
    if array.dtype.kind in "iuf" and name not in DTYPES:
        name = "float32"
    for known in DTYPES:
        if name == known:
            return known
    raise DataError(
        f"{where}: expected whole-number or floating-point pixels, got {array.dtype}; save them "
        "as uint8, uint16 or float32, whichever holds every value"
    )


def _one_image(shape: Sequence[int]) -> str:
    """What [N, H, W] is read as where it may be one image [H, W, C]; else nothing."""
    if len(shape) != 3 or shape[2] > _FEW_COLUMNS or shape[1] <= shape[2]:
        return ""
    count, height, width = shape
    return (
        f"{count:,} grey images of {height} x {width}; if it is one image of {count} x {height} "
        f"with {width} channels, save array[None], if not, array[..., None]"
    )


def _parts(array: NDArray[Any], size: int = 2**26) -> Iterator[tuple[int, NDArray[Any]]]:
    """Runs of images of at most about `size` bytes, each with the index of its first image."""
    step = max(1, size // max(1, array[0].nbytes))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def _sample(array: NDArray[Any]) -> Iterator[bytes]:
    """Bytes of images at the beginning, the middle and the end."""
    count = max(1, min(len(array), _HASHED_BYTES // max(1, array[0].nbytes)))
    for start in (0, (len(array) - count) // 2, len(array) - count):
        yield np.ascontiguousarray(array[start : start + count]).tobytes()
