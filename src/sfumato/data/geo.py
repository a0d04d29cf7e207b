"""Where on Earth a TIFF lies: its GeoTIFF tags, carried from one file to another unread.

Kept: scale, tie points, transformation, the coordinate reference system's keys, rational polynomial
coefficients, GDAL's metadata (band descriptions, scales, offsets; not its statistics, which other
pixels would belie) and GDAL's nodata value. A world file beside the TIFF is not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import DataError, MissingExtraError

TIFFS = (".tif", ".tiff")

_METADATA, _NODATA, _ORIENTATION = 42112, 42113, 274
_TAGS = (33550, 33922, 34264, 34735, 34736, 34737, 50844, _METADATA, _NODATA)
_SCALE, _TIES, _MATRIX, _KEYS, _POLYNOMIALS = 33550, 33922, 34264, 34735, 50844
_NUMBERS = (_SCALE, _TIES, _MATRIX, _POLYNOMIALS)
_RASTER_TYPE = 1025
_ASCII = 2

Tag = tuple[int, int, int, Any]
"""Code, TIFF data type, count (0: as long as the text), value."""


@dataclass(frozen=True)
class GeoReference:
    """The GeoTIFF and GDAL tags of one image; `nodata` is the value that its pixels lack by."""

    tags: tuple[Tag, ...]
    nodata: float | None = None

    def for_bands(self, count: int | None) -> GeoReference:
        """These tags without what describes bands beyond `count`; None: without any band's."""
        tags = (
            (*tag[:3], _metadata(tag[3], count)) if tag[0] == _METADATA else tag
            for tag in self.tags
        )
        return GeoReference(tuple(cast("Iterable[Tag]", (t for t in tags if t[3]))), self.nodata)

    def of_values(self) -> GeoReference:
        """What of it holds for any window of the image: the nodata value."""
        return GeoReference(tuple(tag for tag in self.tags if tag[0] == _NODATA), self.nodata)

    def enlarged(self, factor: int) -> GeoReference:
        """The place of the same image with so many times the pixels a side."""
        shift = 0.5 if self._of_points() else 0.0

        def pixel(at: float) -> float:  # where a place lies, counted in the smaller pixels
            return (at + shift) * factor - shift

        tags: list[Tag] = []
        for code, kind, count, value in self.tags:
            numbers = list(value) if code in _NUMBERS else []
            if code == _SCALE:
                numbers[:2] = [number / factor for number in numbers[:2]]
            elif code == _TIES:
                for first in range(0, len(numbers), 6):
                    numbers[first : first + 2] = map(pixel, numbers[first : first + 2])
            elif code == _MATRIX:
                back = shift / factor - shift
                for row in range(0, 12, 4):
                    numbers[row + 3] += back * (numbers[row] + numbers[row + 1])
                    numbers[row : row + 2] = [n / factor for n in numbers[row : row + 2]]
            elif code == _POLYNOMIALS:  # line and sample: offsets of pixel centres, and scales
                numbers[2:4] = [(n + 0.5) * factor - 0.5 for n in numbers[2:4]]
                numbers[7:9] = [n * factor for n in numbers[7:9]]
            tags.append((code, kind, count, tuple(numbers) if numbers else value))
        return GeoReference(tuple(tags), self.nodata)

    def _of_points(self) -> bool:
        """Whether places are told of pixels' centres (GTRasterTypeGeoKey: RasterPixelIsPoint)."""
        keys = next((list(value) for code, _, _, value in self.tags if code == _KEYS), [])
        entries = (keys[i : i + 4] for i in range(4, len(keys), 4))
        return any(entry[0] == _RASTER_TYPE and entry[3] == 2 for entry in entries)

    def of_place(self) -> GeoReference:
        """What of it holds for other pixels at the same place: neither nodata nor any band's."""
        tags = tuple(tag for tag in self.tags if tag[0] != _NODATA)
        return GeoReference(tags).for_bands(None)


def read_geo(path: Path) -> GeoReference | None:
    """The georeference of a TIFF; None for one without such tags, or another kind of file.

    Raises DataError for georeferenced pixels that are stored turned.
    """
    if path.suffix.lower() not in TIFFS:
        return None
    try:
        from tifffile import TiffFile
    except ImportError as error:
        if _georeferenced(path):
            raise MissingExtraError(
                "tifffile", "data", f"reading {path}, which is georeferenced"
            ) from error
        return None
    with TiffFile(path) as file:
        return geo_of(file.pages[0], str(path))


def geo_of(page: Any, name: str) -> GeoReference | None:
    """The same of one of tifffile's pages."""
    tags: list[Tag] = []
    nodata = None
    for code in _TAGS:
        tag = page.tags.get(code)
        if tag is None:
            continue
        text = isinstance(tag.value, str)
        if code == _NODATA:
            nodata = _number(str(tag.value))
        value = _metadata(tag.value, math.inf) if code == _METADATA and text else tag.value
        if value:
            tags.append((code, int(tag.dtype), 0 if text else int(tag.count), value))
    if not tags:
        return None
    turned = page.tags.get(_ORIENTATION)
    if turned is not None and int(turned.value) != 1:
        raise DataError(
            f"{name}: expected a georeferenced TIFF to begin at the top left, got orientation "
            f"{int(turned.value)}; save it upright, for example with gdal_translate"
        )
    return GeoReference(tuple(tags), nodata)


def write_geotiff(array: NDArray[Any], geo: GeoReference, stream: Any) -> None:
    """Write one raw image [C, H, W] with its georeference, uncompressed, into a binary stream.

    Raises MissingExtraError where tifffile is not installed.
    """
    pixels = array[0] if len(array) == 1 else array
    if interleaved(len(array)):
        pixels = np.moveaxis(array, 0, -1)
    _tifffile().imwrite(stream, np.ascontiguousarray(pixels), **_layout(len(array), geo))


def interleaved(channels: int) -> bool:
    """Whether such images are written [H, W, C], as RGB is; the others are planes [C, H, W]."""
    return channels == 3


def map_tiff(
    path: Path, shape: tuple[int, int, int], dtype: str, geo: GeoReference | None
) -> NDArray[Any]:
    """A new uncompressed TIFF as a memory-mapped array [C, H, W] to write into.

    Raises MissingExtraError where tifffile is not installed.
    """
    channels, height, width = shape
    stored = (height, width) if channels == 1 else shape
    if interleaved(channels):
        stored = (height, width, channels)
    mapped = _tifffile().memmap(path, shape=stored, dtype=dtype, **_layout(channels, geo))
    array = cast("NDArray[Any]", mapped)
    return np.moveaxis(array, -1, 0) if interleaved(channels) else array.reshape(shape)


def _layout(channels: int, geo: GeoReference | None) -> dict[str, Any]:
    """tifffile's options for [C, H, W]: grey, RGB, or bands as planes, none of them alpha."""
    options: dict[str, Any] = {
        "photometric": "rgb" if interleaved(channels) else "minisblack",
        "metadata": None,
        "software": False,
    }
    if channels > 1:
        options["planarconfig"] = "contig" if interleaved(channels) else "separate"
    if geo is not None:
        options["extratags"] = [
            (code, kind, count, value.encode() if isinstance(value, str) else value, True)
            for code, kind, count, value in geo.tags
        ]
    return options


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError("tifffile", "data", "writing TIFFs") from error
    return tifffile


def _georeferenced(path: Path) -> bool:
    """The same question, answered without tifffile as far as pillow reads the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            tags = cast("Any", picture).tag_v2
            return any(code in tags for code in _TAGS)
    except (UnidentifiedImageError, AttributeError):
        return False


def _metadata(text: str, count: float | None) -> str:
    """GDAL's XML without statistics and without items of bands from `count` on (None: of any)."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return text
    gone = [item for item in root if _stale(item, count)]
    if not gone:
        return text
    for item in gone:
        root.remove(item)
    return ElementTree.tostring(root, encoding="unicode") if len(root) else ""


def _stale(item: ElementTree.Element, count: float | None) -> bool:
    band = item.get("sample", "")
    beyond = band.isdigit() and (count is None or int(band) >= count)
    return beyond or item.get("name", "").startswith("STATISTICS_")


def _number(text: str) -> float | None:
    try:
        return float(text.strip("\0 "))
    except ValueError:
        return None
