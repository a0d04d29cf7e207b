"""Windows of one large image, without the rest of it in memory where the file allows that.

A `.npy` and an uncompressed TIFF are mapped; of a tiled or compressed TIFF the tiles or strips that
a window meets are decoded, and the last of them kept. Any other file is decoded whole for the first
window: it is then what `decode` returns, alpha kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from sfumato.data.decode import ARRAY, decode, read_header
from sfumato.data.geo import TIFFS
from sfumato.data.images import UnreadableImageError
from sfumato.data.tiff import tiff_header
from sfumato.errors import DataError, SfumatoError

_KEPT_BYTES = 64 * 2**20  # decoded tiles or strips kept for the next window
_PLAIN = (0, 1, 2)  # photometric: grey from white, grey from black, RGB
_GREY_INVERTED, _YCBCR, _JPEG, _ORIENTATION = 0, 6, 7, 274


class Windows(ABC):
    """One image [bands, H, W] read by windows; `without_alpha` bands are no transparency.

    flat: whether memory stays that of a few windows. dtype: as stored, before `known_dtype`.
    """

    name: str = ""
    bands: int
    height: int
    width: int
    dtype: np.dtype[Any]
    without_alpha: int
    flat: bool = True

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """The values [bands, height, width] of a window inside the image, as a copy.

        Raises UnreadableImageError where the file is damaged there.
        """
        try:
            return self._read(top, left, height, width)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise a dozen unrelated types on damaged files
            raise UnreadableImageError(
                f"expected pixels that can be read, got {self.name} damaged near row {top}, "
                f"column {left} ({_reason(error)}); fetch the file again"
            ) from error

    @abstractmethod
    def _read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]: ...

    def close(self) -> None:  # noqa: B027
        """Release the file."""


def open_windows(path: Path, *, last: bool = False) -> Windows:
    """Open one image file; UnreadableImageError, DataError or OSError where that fails.

    `last`: a .npy of three axes is [H, W, C], not [C, H, W].
    """
    opened = _opened(path, last)
    opened.name = str(path)
    return opened


def _opened(path: Path, last: bool) -> Windows:
    suffix = path.suffix.lower()
    if suffix == ARRAY:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim not in (2, 3):
            raise DataError(
                f"{path}: expected one image as [C, H, W] or [H, W], got shape {array.shape}"
            )
        if array.ndim == 3 and last:
            return _Array(np.moveaxis(array, -1, 0))
        return _Array(array[None] if array.ndim == 2 else array)
    if suffix in TIFFS:
        try:
            tiff = _open_tiff(path)
        except (SfumatoError, MemoryError, OSError):
            raise
        except Exception as error:  # as above
            raise UnreadableImageError(f"{path} ({_reason(error)})") from error
        if tiff is not None:
            return tiff
    return _Decoded(path)


class _Array(Windows):
    """Values [bands, H, W] in memory or mapped, grey perhaps stored from white to black."""

    def __init__(
        self,
        array: NDArray[Any],
        without_alpha: int | None = None,
        flat: bool = True,
        inverted: bool = False,
    ) -> None:
        self._array, self._inverted, self.flat = array, inverted, flat
        self.bands, self.height, self.width = array.shape
        self.dtype = array.dtype.newbyteorder("=")
        self.without_alpha = self.bands if without_alpha is None else without_alpha

    def _read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        window = self._array[:, top : top + height, left : left + width]
        window = np.array(window, self.dtype, order="C")
        return np.iinfo(self.dtype).max - window if self._inverted else window


class _Decoded(Windows):
    """An image that is decoded whole when a window of it is read for the first time."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            header = read_header(stream, str(path), "keep")
            stream.seek(0)
            self.without_alpha = read_header(stream, str(path), "drop").channels
        self.bands, self.height, self.width = header.channels, header.height, header.width
        self.dtype, self.flat = np.dtype(header.dtype), False
        self._path = path
        self._image: NDArray[Any] | None = None

    def _read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        if self._image is None:
            with self._path.open("rb") as stream:
                image = decode(stream, str(self._path), "keep", finite=False)
            if image.shape != (self.bands, self.height, self.width):
                raise UnreadableImageError(f"its header tells another shape than {image.shape}")
            self._image = image
        return self._image[:, top : top + height, left : left + width].copy()

    def close(self) -> None:
        """Forget the image."""
        self._image = None


def _open_tiff(path: Path) -> Windows | None:
    """By windows; None for kinds that only `decode` knows, or without tifffile."""
    try:
        from tifffile import TiffFile, memmap
    except ImportError:
        return None
    stream = path.open("rb")
    file = TiffFile(stream)
    opened = None
    try:
        series, page = cast("Any", file.series[0]), cast("Any", file.pages[0])
        axes = str(series.axes)
        if not _windowed(page, axes):
            return None
        header = cast("BinaryIO", stream)
        without_alpha, height, width, dtype = tiff_header(header, str(path), False)
        if page.is_memmappable and series.dataoffset is not None:
            array = cast("NDArray[Any]", memmap(path, mode="r"))
            bands = axes.replace("Y", "").replace("X", "")
            array = np.moveaxis(array, axes.index(bands), 0) if bands else array[None]
            inverted = page.photometric == _GREY_INVERTED and dtype.kind == "u"
            return _Array(array, without_alpha, inverted=inverted)
        if len(series.pages) == 1 and page.imagedepth == 1:
            opened = _Segments(file, stream, (height, width), dtype, without_alpha)
        return opened
    finally:
        if opened is None:
            file.close()
            stream.close()


def _windowed(page: Any, axes: str) -> bool:
    """Whether tifffile's values are what `decode` returns, tile by tile."""
    turned = page.tags.get(_ORIENTATION)
    upright = turned is None or int(turned.value) == 1
    coloured = page.photometric == _YCBCR and page.compression == _JPEG
    return (
        upright
        and (page.photometric in _PLAIN or coloured)
        and page.bitspersample in (8, 16, 32, 64)
        and len(axes.replace("Y", "", 1).replace("X", "", 1)) <= 1
    )


class _Segments(Windows):
    """A tiled or striped TIFF of one page, decoded where a window needs it."""

    def __init__(
        self,
        file: Any,
        stream: BinaryIO,
        size: tuple[int, int],
        dtype: np.dtype[Any],
        without_alpha: int,
    ) -> None:
        self._file, self._stream, self._page = file, stream, file.pages[0]
        page = self._page
        self.height, self.width = size
        self.dtype, self.without_alpha = dtype.newbyteorder("="), without_alpha
        self.bands = int(page.samplesperpixel)
        self._planes = self.bands if int(page.planarconfig) == 2 else 1
        self._tile = (
            (int(page.tilelength), int(page.tilewidth))
            if page.is_tiled
            else (min(int(page.rowsperstrip), self.height), self.width)
        )
        self._grid = (-(-self.height // self._tile[0]), -(-self.width // self._tile[1]))
        self._inverted = page.photometric == _GREY_INVERTED and dtype.kind == "u"
        self._kept: OrderedDict[int, NDArray[Any] | None] = OrderedDict()
        self._bytes = 0

    def _read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        out = np.full((self.bands, height, width), self._page.nodata, self.dtype)
        rows = range(top // self._tile[0], -(-(top + height) // self._tile[0]))
        columns = range(left // self._tile[1], -(-(left + width) // self._tile[1]))
        for plane in range(self._planes):
            for row in rows:
                for column in columns:
                    index = (plane * self._grid[0] + row) * self._grid[1] + column
                    segment = self._segment(index)
                    if segment is not None:
                        at = (row * self._tile[0] - top, column * self._tile[1] - left)
                        _paste(out[plane : plane + len(segment)], segment, at)
        return np.iinfo(self.dtype).max - out if self._inverted else out

    def close(self) -> None:
        self._file.close()
        self._stream.close()

    def _segment(self, index: int) -> NDArray[Any] | None:
        """One decoded tile or strip [bands, h, w]; None for one that the file leaves out."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        page = self._page
        count = int(page.databytecounts[index])
        data = None
        if count:
            self._stream.seek(int(page.dataoffsets[index]))
            data = self._stream.read(count)
        options: dict[str, Any] = {}
        if int(page.compression) in (6, _JPEG):
            options = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        decoded = page.decode(data, index, **options)[0]
        segment = None if decoded is None else np.moveaxis(decoded[0], -1, 0)
        self._kept[index] = segment
        self._bytes += 0 if segment is None else segment.nbytes
        while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= 0 if dropped is None else dropped.nbytes
        return segment


def _paste(out: NDArray[Any], segment: NDArray[Any], at: tuple[int, int]) -> None:
    """Copy what of a segment [bands, h, w] at (row, column) of `out` lies inside it."""
    (y, x), (height, width) = at, out.shape[1:]
    inside = segment[:, max(0, -y) : height - y, max(0, -x) : width - x]
    y, x = max(0, y), max(0, x)
    out[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
