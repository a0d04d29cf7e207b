"""Scenes too large for memory: damaged windows of a file read, restored ones written."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sfumato.data.decode import ARRAY, Header, known_dtype
from sfumato.data.geo import TIFFS, GeoReference, map_tiff, read_geo
from sfumato.data.pixels import PixelFormat
from sfumato.data.save import save_image
from sfumato.data.windows import Windows, open_windows
from sfumato.errors import DataError
from sfumato.recipes.restoring.damaged import Damaged, bands_kept
from sfumato.recipes.restoring.unknown import (
    as_mask,
    channels_last,
    check_mask_file,
    check_mask_size,
    plan_reading,
    reading_file,
    tag_nodata,
)

_ROWS = 256


class SceneReader:
    """A damaged image of any size, read by windows as `read_damaged` would read the whole.

    format: the model's, with the scene's height and width. geo: where it lies on Earth; None
    without such tags. flat: whether memory stays that of a few windows, as it does for .npy and
    TIFF; other files are decoded whole for the first window. last: whether an array is [H, W, C].
    """

    def __init__(
        self,
        path: Path,
        form: PixelFormat,
        *,
        mask: Path | None = None,
        nodata: float | None = None,
        channels: int | None = None,
    ) -> None:
        """Open a scene and its mask; raises what `read_damaged` raises, but for values."""
        path = Path(path)
        self.name = path.name
        with ExitStack() as stack:
            self.last = channels_last(path, form, channels)
            self._image = reading_file(path, lambda _: open_windows(path, last=self.last))
            stack.callback(self._image.close)
            image = self._image
            size = (image.height, image.width)
            self._dtype = known_dtype(image.dtype, str(path))
            kept = Header(image.bands, *size, self._dtype)
            reading = plan_reading(str(path), kept, image.without_alpha, form, channels, nodata)
            self.geo = reading_file(path, lambda _: read_geo(path))
            if nodata is None and self.geo is not None:
                reading = replace(reading, nodata=tag_nodata(form, self.geo.nodata))
            if self.geo is not None:
                self.geo = bands_kept(self.geo, image.bands - reading.alpha, form)
            self._reading = reading
            self.format = replace(form, height=image.height, width=image.width)
            self._mask: Windows | None = None
            self._mask_path = Path(mask) if mask is not None else None
            if self._mask_path is not None:
                self._mask = _open_mask(self._mask_path, size, path.name)
                stack.callback(self._mask.close)
            self.flat = image.flat and (self._mask is None or self._mask.flat)
            self._open = stack.pop_all()

    def read(self, top: int, left: int, height: int, width: int) -> Damaged:
        """One window, [C, height, width], named after its place.

        Its `geo` holds no more than the nodata value, so that `compose` avoids it. Raises
        ValueError for a window that is not inside the scene, DataError for values outside the
        model's range or a file damaged there.
        """
        form = self.format
        inside = 0 <= top <= top + height <= form.height and 0 <= left <= left + width <= form.width
        if not inside or height < 1 or width < 1:
            raise ValueError(
                f"expected a window inside {form.height} x {form.width}, got {height} x {width} at "
                f"row {top}, column {left}"
            )
        with np.errstate(over="ignore"):
            stored = self._image.read(top, left, height, width).astype(self._dtype)
        masked = None
        if self._mask is not None and self._mask_path is not None:
            pixels = self._mask.read(top, left, height, width)
            masked = as_mask(pixels[: self._mask.without_alpha], self._mask_path)
        raw, x, known = self._reading(stored, masked)
        tile = replace(form, height=height, width=width)
        geo = None if self.geo is None else self.geo.of_values()
        return Damaged(x, known, f"{self.name} at {top},{left}", tile, geo, raw)

    def share(self) -> float:
        """The share of values that are unknown, in [0, 1]; reads the whole scene once."""
        unknown = 0.0
        for top in range(0, self.format.height, _ROWS):
            rows = min(_ROWS, self.format.height - top)
            unknown += self.read(top, 0, rows, self.format.width).share * rows
        return unknown / self.format.height

    def close(self) -> None:
        """Release the files."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _open_mask(path: Path, size: tuple[int, int], of: str) -> Windows:
    check_mask_file(path)
    mask = reading_file(path, lambda _: open_windows(path))
    check_mask_size(path, (mask.height, mask.width), size, of)
    return mask


class SceneWriter:
    """A restored image written by windows, under a temporary name until `close`.

    .tif and .npy are mapped, so memory stays flat; a .png is held and written at the end. What no
    window wrote is 0. As a context manager: closed on success, discarded on an exception.
    """

    def __init__(
        self,
        out: Path,
        form: PixelFormat,
        geo: GeoReference | None = None,
        *,
        plane: bool = False,
    ) -> None:
        """Begin an image of `form` (the scene's, as `SceneReader.format`), georeferenced by `geo`.

        plane: of one band, which is no axis of its own in a .npy: [H, W].

        Raises DataError for another kind of file, MissingExtraError for a TIFF without tifffile.
        """
        self._out, self._form = Path(out), form
        self._temporary: Path | None = None
        suffix = self._out.suffix.lower()
        if suffix not in (*TIFFS, ARRAY, ".png"):
            raise DataError(
                f"{out}: expected a scene to be written as .tif, .npy or .png, got {suffix!r}"
            )
        if suffix == ".png" and (form.dtype == "float32" or form.channels > 4):
            raise DataError(
                f"{out}: a PNG holds 1 to 4 channels of 8 or 16 bits, not {form.channels} of "
                f"{form.dtype}; write .tif or .npy"
            )
        self._out.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".png":
            self._array: NDArray[Any] | None = np.zeros(form.shape, form.dtype)
            return
        self._temporary = self._out.with_name(f".{self._out.name}.{secrets.token_hex(4)}.tmp")
        try:
            if suffix == ARRAY:
                shape = form.shape[1:] if plane else form.shape
                self._array = np.lib.format.open_memmap(
                    self._temporary, "w+", np.dtype(form.dtype), shape
                ).reshape(form.shape)
            else:
                self._array = map_tiff(self._temporary, form.shape, form.dtype, geo)
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise

    @property
    def path(self) -> Path:
        """Where the file is after `close`."""
        return self._out

    def write(self, raw: NDArray[Any], top: int, left: int) -> None:
        """Put a raw window [C, h, w] at a row and column; ValueError where it does not fit."""
        form = self._form
        if self._array is None:
            raise ValueError(f"{self._out} is closed; write every window before")
        fits = raw.ndim == 3 and len(raw) == form.channels and str(raw.dtype) == form.dtype
        bottom, right = (top + raw.shape[1], left + raw.shape[2]) if fits else (-1, -1)
        if not fits or min(top, left) < 0 or bottom > form.height or right > form.width:
            raise ValueError(
                f"expected a raw window inside {form.describe()}, got {raw.dtype} of shape "
                f"{raw.shape} at row {top}, column {left}"
            )
        self._array[:, top:bottom, left:right] = raw

    def close(self) -> Path:
        """Finish the file and give it its name; return the path."""
        array, self._array = self._array, None
        if array is None:
            return self._out
        if self._temporary is None:
            return save_image(array, self._form, self._out)
        _flush(array)
        self._temporary.replace(self._out)
        return self._out

    def discard(self) -> None:
        """Leave no file; nothing after `close`."""
        self._array = None
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def spread_writer(name: Path, form: PixelFormat, geo: GeoReference | None) -> SceneWriter:
    """Begin the map [H, W] of how far answers of `form` differ, in pixel values, float32.

    Georeferenced in a TIFF where the answers are, else a .npy.
    """
    placed = geo is not None and name.suffix.lower() in TIFFS
    where = name if placed else name.with_suffix(ARRAY)
    own = PixelFormat(1, form.height, form.width, "float32", 0.0, form.high - form.low)
    return SceneWriter(where, own, geo.of_place() if placed and geo else None, plane=True)


def _flush(array: NDArray[Any]) -> None:
    """Write a mapped array, or views of one, to its file."""
    base: Any = array
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    if base is not None:
        base.flush()
