"""One image file: its header, cheaply, and its pixels as [C, H, W].

Rules. 1-bit becomes 8-bit grey. A palette becomes RGB, or grey when all its entries are grey. CMYK
and YCbCr become RGB. Alpha (a real channel or PNG transparency) is dropped, the colours under it
staying as stored, or kept as the last channel. EXIF orientation is applied. Of an animation the
first frame counts. 16 bits stay 16 bits: pillow would silently cut 16-bit colour PNGs and TIFFs to
8, so those, float and multi-band TIFFs go through imagecodecs and tifffile (extra `data`). A `.npy`
is one image [C, H, W] or [H, W], as `save_image` writes it. Whole numbers of other kinds than uint8
and uint16 become float32.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.images import UnreadableImageError
from sfumato.data.pixels import DTYPES, Dtype
from sfumato.data.shaping import orient
from sfumato.errors import DataError, MissingExtraError, SfumatoError

Alpha = Literal["drop", "keep"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

ARRAY = ".npy"
"""The suffix of single images as arrays, for what no image file holds."""

_MOST_BANDS = 64
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {2: 3, 4: 2, 6: 4}  # colour type -> channels of the kinds pillow truncates
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 0x0112
_PLAIN = {"1": "L", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "RGBX": "RGB"}
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 1}


@dataclass(frozen=True)
class Header:
    """What an image will decode to, known without decoding it."""

    channels: int
    height: int
    width: int
    dtype: Dtype


def read_header(stream: BinaryIO, name: str, alpha: Alpha) -> Header:
    """Shape and depth after all the rules above; UnreadableImageError if there is no image."""
    try:
        if name.lower().endswith(ARRAY):
            return _array_header(stream, name)
        return _Image(stream, name, alpha).header()
    except (SfumatoError, MemoryError):
        raise
    except Exception as error:  # decoders raise a dozen unrelated types on damaged files
        raise UnreadableImageError(_complaint(name, error)) from error


def decode(stream: BinaryIO, name: str, alpha: Alpha, *, finite: bool = True) -> NDArray[Any]:
    """The pixels [C, H, W], uint8, uint16 or float32; UnreadableImageError if damaged.

    Raises DataError for NaN or infinity, unless `finite` is False.
    """
    try:
        if name.lower().endswith(ARRAY):
            image = _array_pixels(stream, name)
        else:
            image = _Image(stream, name, alpha).pixels()
    except (SfumatoError, MemoryError):
        raise
    except Exception as error:  # as above
        raise UnreadableImageError(_complaint(name, error)) from error
    if finite and image.dtype.kind == "f" and not np.isfinite(image).all():
        raise DataError(f"{name}: pixels must be finite, but it holds NaN or infinity")
    return image


def _complaint(name: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{name} ({reason})"


def _array_header(stream: BinaryIO, name: str) -> Header:
    shape, dtype = _array_claims(stream)
    channels, height, width = _one_image(shape, name)
    return Header(channels, height, width, known_dtype(dtype, name))


def _array_pixels(stream: BinaryIO, name: str) -> NDArray[Any]:
    stream = io.BytesIO(stream.read())
    _array_claims(stream)
    stream.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    image = array.reshape(_one_image(array.shape, name))
    return image.astype(known_dtype(image.dtype, name), order="C")


def _array_claims(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype by the header; ValueError where they need more bytes than follow it."""
    version = np.lib.format.read_magic(stream)
    lib = np.lib.format
    read = lib.read_array_header_1_0 if version == (1, 0) else lib.read_array_header_2_0
    try:
        shape, _, dtype = read(stream)
    except MemoryError as error:  # Python's parser says so of an expression of too many levels
        raise ValueError("its header is damaged") from error
    if isinstance(stream, zipfile.ZipExtFile):
        return shape, dtype  # whose end is only found by decompressing all of it
    needed, begin = math.prod(shape) * dtype.itemsize, stream.tell()
    there = stream.seek(0, io.SEEK_END) - begin
    if needed > there:
        raise ValueError(f"its header says {needed:,} bytes of pixels, {there:,} follow")
    return shape, dtype


def _one_image(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    """[C, H, W] of one image; DataError for anything that is none."""
    full = (1, *shape) if len(shape) == 2 else shape
    if len(full) != 3 or full[0] > _MOST_BANDS:
        raise DataError(
            f"{name}: expected one image as [C, H, W] or [H, W], got shape {shape}; for an array "
            "of many images give the .npy itself, not its folder"
        )
    return full[0], full[1], full[2]


class _Image:
    """An opened file and the decoder that keeps all of its bits."""

    def __init__(self, stream: BinaryIO, name: str, alpha: Alpha) -> None:
        self.stream, self.name, self.keep = stream, name, alpha == "keep"
        head = stream.read(26)
        stream.seek(0)
        if not head:
            raise ValueError("the file is empty")
        is_tiff = head[:4] in _TIFF_MAGIC
        try:
            self.picture = Image.open(stream)
        except Image.UnidentifiedImageError:
            if not is_tiff:
                raise ValueError("not an image, or damaged") from None
            self.picture = None
        self.deep_png = head[:8] == _PNG_MAGIC and head[24] == 16 and head[25] in _PNG_CHANNELS
        self.png_type = head[25] if self.deep_png else 0
        self.tiff = is_tiff and (self.picture is None or not _pillow_suffices(self.picture))

    def header(self) -> Header:
        if self.tiff:
            from sfumato.data.tiff import tiff_header

            channels, height, width, dtype = tiff_header(self.stream, self.name, self.keep)
            return Header(channels, height, width, known_dtype(dtype, self.name))
        picture = self._opened()
        width, height = picture.size
        if _orientation(picture) >= 5:
            width, height = height, width
        if self.deep_png:
            return Header(self._deep_channels(), height, width, "uint16")
        mode = self._mode(picture)
        return Header(_CHANNELS[mode], height, width, "uint16" if mode == "I;16" else "uint8")

    def pixels(self) -> NDArray[Any]:
        if self.tiff:
            from sfumato.data.tiff import tiff_pixels

            array = tiff_pixels(self.stream, self.name, self.keep)
            return array.astype(known_dtype(array.dtype, self.name), order="C")
        picture = self._opened()
        orientation = _orientation(picture)
        if self.deep_png:
            array = self._deep_pixels()
        else:
            mode = self._mode(picture)
            picture.load()
            array = np.asarray(picture if picture.mode == mode else picture.convert(mode))
            if mode == "I;16":
                array = array.astype(np.uint16)
        array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
        return np.ascontiguousarray(orient(array, orientation))

    def _opened(self) -> Image.Image:
        assert self.picture is not None  # only TIFFs come without one
        return self.picture

    def _mode(self, picture: Image.Image) -> str:
        """The pillow mode to convert to."""
        mode = _PLAIN.get(picture.mode, picture.mode)
        if mode in ("I;16B", "I;16L", "I;16N"):
            mode = "I;16"
        if mode in ("P", "PA"):
            palette = np.asarray(picture.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
            mode = "L" if (palette == palette[:, :1]).all() else "RGB"
        if mode in ("L", "RGB") and self.keep and picture.has_transparency_data:
            mode += "A"
        if mode in ("LA", "RGBA") and not self.keep:
            mode = mode[:-1]
        if mode not in _CHANNELS:
            raise DataError(
                f"{self.name}: expected 8- or 16-bit grey, RGB or palette pixels, got pillow's "
                f"mode {picture.mode!r}; convert the file"
            )
        return mode

    def _deep_channels(self) -> int:
        channels = _PNG_CHANNELS[self.png_type]
        return channels if self.keep or channels == 3 else channels - 1

    def _deep_pixels(self) -> NDArray[Any]:
        try:
            from imagecodecs import png_decode  # pyright: ignore[reportUnknownVariableType]
        except ImportError as error:
            raise MissingExtraError(
                "imagecodecs", "data", f"reading the 16-bit colour PNG {self.name}"
            ) from error
        self.stream.seek(0)
        data = self.stream.read()
        if data[-12:-4] != b"\0\0\0\0IEND":
            raise ValueError("image file is truncated")
        array = cast("NDArray[np.uint16]", png_decode(data))
        return array[..., 0] if self._deep_channels() == 1 else array[..., : self._deep_channels()]


def known_dtype(dtype: np.dtype[Any], name: str) -> Dtype:
    """What values of a stored dtype become; DataError for anything but numbers."""
    found = dtype.name
    if dtype.kind in "iuf" and found not in DTYPES:
        found = "float32"
    for known in DTYPES:
        if found == known:
            return known
    raise DataError(
        f"{name}: expected whole-number or floating-point pixels, got {dtype}; convert the file"
    )


def _pillow_suffices(picture: Image.Image) -> bool:
    """Whether pillow keeps every bit, band and page of this TIFF."""
    tags = cast("Any", picture).tag_v2
    bits = tags.get(258, (1,))
    return (
        max(bits if isinstance(bits, tuple) else (bits,)) <= 8
        and picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
        and tags.get(277, 1) == len(picture.getbands())
        and getattr(picture, "n_frames", 1) == 1
    )


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation 1..8 as far as the header knows it.

    Not pillow's getexif for PNGs, which decodes the whole file looking for one. TIFFs are turned
    by pillow itself.
    """
    if picture.format == "TIFF":
        return 1
    exif = Image.Exif()
    raw = picture.info.get("exif")
    if not isinstance(raw, bytes):
        return 1
    try:
        exif.load(raw)
    except (SyntaxError, ValueError, struct.error):
        return 1  # a damaged note about the camera does not make the picture unreadable
    value = exif.get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
