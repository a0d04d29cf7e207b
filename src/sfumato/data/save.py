"""Writing raw images at their own bit depth, each file whole or not at all."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.pixels import PixelFormat
from sfumato.errors import DataError, MissingExtraError
from sfumato.files import write_bytes

_WRITTEN = (".png", ".tif", ".tiff", ".npy")


def default_suffix(fmt: PixelFormat) -> str:
    """The file type that keeps such images exactly, given what is installed.

    .png for 8-bit grey and RGB, with alpha where the last channel is that, for 16-bit grey, and
    with imagecodecs for 16-bit colour; else .tif with tifffile; else .npy.
    """
    plain = fmt.dtype == "uint8" or fmt.channels == 1 or _installed("imagecodecs")
    shown = fmt.channels in (1, 3) or (fmt.channels in (2, 4) and fmt.alpha)
    if fmt.dtype != "float32" and shown and plain:
        return ".png"
    return ".tif" if _installed("tifffile") else ".npy"


def save_image(array: NDArray[Any], fmt: PixelFormat, path: str | Path) -> Path:
    """Write one raw image [C, H, W] as .png, .tif or .npy by the suffix of `path`; return the path.

    Raises DataError for a file type that cannot hold it exactly.
    """
    path = Path(path)
    write_bytes(path, encode_image(array, fmt, path))
    return path


def encode_image(array: NDArray[Any], fmt: PixelFormat, path: str | Path) -> bytes:
    """Return the bytes that `save_image` writes, by the suffix of `path`; it raises the same."""
    path = Path(path)
    if array.shape[0] != fmt.channels or str(array.dtype) != fmt.dtype or array.ndim != 3:
        raise ValueError(
            f"expected a raw {fmt.describe()} image, got {array.dtype} of shape {array.shape}"
        )
    suffix = path.suffix.lower()
    if suffix == ".png":
        return _png(array)
    if suffix in (".tif", ".tiff"):
        return _tiff(array)
    if suffix == ".npy":
        return _bytes_of(lambda stream: np.save(stream, array, allow_pickle=False))
    raise DataError(f"{path}: images are written as {', '.join(_WRITTEN)}, not as {suffix!r}")


def save_images(
    array: NDArray[Any],
    fmt: PixelFormat,
    directory: str | Path,
    *,
    start: int = 0,
    suffix: str | None = None,
) -> list[Path]:
    """Write raw images [N, C, H, W] as DIRECTORY/000000.png and on, counting from `start`."""
    suffix = suffix or default_suffix(fmt)
    return [
        save_image(image, fmt, Path(directory) / f"{start + i:06d}{suffix}")
        for i, image in enumerate(array)
    ]


def _png(array: NDArray[Any]) -> bytes:
    channels = len(array)
    if array.dtype.kind == "f" or channels > 4:
        raise DataError(
            f"a PNG holds 1 to 4 channels of 8 or 16 bits, not {channels} of {array.dtype}; "
            "write .tif or .npy"
        )
    pixels = np.ascontiguousarray(array[0] if channels == 1 else np.moveaxis(array, 0, -1))
    if array.dtype == np.uint8 or channels == 1:
        return _bytes_of(lambda stream: Image.fromarray(pixels).save(stream, "PNG"))
    try:
        from imagecodecs import png_encode  # pyright: ignore[reportUnknownVariableType]
    except ImportError as error:
        raise MissingExtraError("imagecodecs", "data", "writing 16-bit colour PNGs") from error
    return bytes(cast("bytes", png_encode(pixels)))


def _tiff(array: NDArray[Any]) -> bytes:
    """Grey, RGB, or bands as planes; alpha is not marked as such."""
    try:
        from tifffile import imwrite
    except ImportError as error:
        raise MissingExtraError("tifffile", "data", "writing TIFFs") from error

    def write(stream: io.BytesIO) -> None:
        if len(array) == 3:
            imwrite(stream, np.moveaxis(array, 0, -1), photometric="rgb")
        elif len(array) == 1:
            imwrite(stream, array[0], photometric="minisblack")
        else:
            imwrite(stream, array, photometric="minisblack", planarconfig="separate")

    return _bytes_of(write)


def _bytes_of(write: Callable[[io.BytesIO], None]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
