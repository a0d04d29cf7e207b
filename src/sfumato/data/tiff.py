"""TIFFs beyond pillow: 16-bit, float, multi-band, several pages (through tifffile).

Bands may be stored as samples, planes, or as pages when the file calls its pages channels or says
nothing about them; a stack in time or depth is refused.
"""

from __future__ import annotations

from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from sfumato.data.shaping import orient
from sfumato.errors import DataError, MissingExtraError

_BAND_AXES = "SCQI"  # samples, channels, and pages nobody described
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
_GREY_INVERTED, _PALETTE = 0, 3
_ORIENTATION = 274


def tiff_header(
    stream: BinaryIO, name: str, keep_alpha: bool
) -> tuple[int, int, int, np.dtype[Any]]:
    """Channels, height, width and stored dtype, without decoding."""
    with _opened(stream, name) as file:
        page, axes, shape = _first_image(file, name)
        height, width = shape[axes.index("Y")], shape[axes.index("X")]
        if _orientation(page) >= 5:
            height, width = width, height
        channels = int(np.prod(shape)) // (height * width)
        drop = 0 if keep_alpha else _alpha_bands(page)
        return channels - drop, height, width, np.dtype(page.dtype)


def tiff_pixels(stream: BinaryIO, name: str, keep_alpha: bool) -> NDArray[Any]:
    """The image [C, H, W] in its stored dtype."""
    with _opened(stream, name) as file:
        page, axes, _ = _first_image(file, name)
        array = cast("NDArray[Any]", file.series[0].asarray())
        bands = next((axis for axis in axes if axis in _BAND_AXES), "")
        array = np.moveaxis(array, axes.index(bands), 0) if bands else array[None]
        if page.photometric == _GREY_INVERTED and array.dtype.kind == "u":
            array = np.iinfo(array.dtype).max - array
        drop = 0 if keep_alpha else _alpha_bands(page)
        return orient(array[: len(array) - drop], _orientation(page))


def _opened(stream: BinaryIO, name: str) -> Any:
    try:
        from tifffile import TiffFile
    except ImportError as error:
        raise MissingExtraError(
            "tifffile", "data", f"reading {name} (a 16-bit, float, multi-band or many-page TIFF)"
        ) from error
    stream.seek(0)
    return TiffFile(stream)


def _first_image(file: Any, name: str) -> tuple[Any, str, tuple[int, ...]]:
    """First page, axes and shape of the main image; reduced copies after it are ignored."""
    series = file.series[0]
    axes, shape, page = str(series.axes), tuple(series.shape), file.pages[0]
    bands = axes.replace("Y", "", 1).replace("X", "", 1)
    if len(bands) > 1 or any(axis not in _BAND_AXES for axis in bands):
        raise DataError(
            f"{name}: expected one image (height, width, bands), got a stack with axes {axes} and "
            f"shape {shape}; save its pages as separate files"
        )
    if page.photometric == _PALETTE:
        raise DataError(f"{name}: a 16-bit palette TIFF is not supported; save it as RGB")
    return page, axes, shape


def _alpha_bands(page: Any) -> int:
    return sum(int(kind) in _ALPHA for kind in page.extrasamples)


def _orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None and 1 <= int(tag.value) <= 8 else 1
