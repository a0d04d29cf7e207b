"""Turning one decoded image, and bringing it to the wanted channel count and size."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.errors import DataError

Fit = Literal["crop", "stretch", "strict"]
Box = tuple[float, float, float, float]

_LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601, as in JPEG
_HAS_ALPHA = {1: False, 2: True, 3: False, 4: True}


def orient(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """[C, H, W] as the EXIF orientation (1..8) says it should be looked at."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(-1, -2)
    if orientation in (2, 3, 6, 7):
        image = image[..., ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[..., ::-1, :]
    return image


def channels_convertible(have: int, want: int, alpha: bool) -> bool:
    """Whether `to_channels` can turn `have` channels into `want`.

    Grey and RGB convert both ways; with `alpha`, 2 and 4 channels are those plus alpha. Multi-band
    images convert to nothing else.
    """
    if have == want:
        return True
    known = (1, 2, 3, 4) if alpha else (1, 3)
    return have in known and want in known


def to_channels(image: NDArray[Any], want: int) -> NDArray[Any]:
    """[C, H, W] -> [want, H, W]: grey is repeated, RGB becomes Rec. 601 luma, new alpha is opaque.

    Expects a pair that `channels_convertible` accepts. An alpha channel that is not wanted is
    dropped without compositing.
    """
    have = image.shape[0]
    if have == want:
        return image
    colour = image[: have - _HAS_ALPHA[have]]
    wanted_colours = want - _HAS_ALPHA[want]
    if len(colour) == 1 and wanted_colours == 3:
        colour = np.repeat(colour, 3, axis=0)
    elif len(colour) == 3 and wanted_colours == 1:
        grey = np.tensordot(_LUMA, colour.astype(np.float64), axes=1)[None]
        colour = (grey if image.dtype.kind == "f" else np.rint(grey)).astype(image.dtype)
    if not _HAS_ALPHA[want]:
        return colour
    opaque = 1.0 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    alpha = image[-1:] if _HAS_ALPHA[have] else np.full_like(colour[:1], opaque)
    return np.concatenate([colour, alpha])


def to_size(image: NDArray[Any], size: tuple[int, int], fit: Fit, name: str) -> NDArray[Any]:
    """[C, H, W] -> [C, *size], antialiased (Lanczos), at any bit depth.

    crop: the largest centred window of the wanted aspect ratio, scaled. stretch: the whole image,
    scaled in both directions. strict: DataError unless the size is already right.
    """
    height, width = image.shape[1:]
    if (height, width) == size:
        return image
    if fit == "strict":
        raise DataError(
            f"{name}: expected {size[0]} x {size[1]} (height x width), got {height} x {width}; "
            "use --fit crop or --fit stretch to resize"
        )
    box: Box = (0, 0, width, height)
    if fit == "crop":
        scale = min(height / size[0], width / size[1])
        margin_y = max(0.0, (height - scale * size[0]) / 2)
        margin_x = max(0.0, (width - scale * size[1]) / 2)
        box = (margin_x, margin_y, width - margin_x, height - margin_y)
    return np.stack([_resize_band(band, size, box) for band in image])


def _resize_band(band: NDArray[Any], size: tuple[int, int], box: Box) -> NDArray[Any]:
    """One [H, W] band; 8-bit in integers, others through float32, clipped to the band's range."""
    wide = band if band.dtype == np.uint8 else band.astype(np.float32)
    picture = Image.fromarray(np.ascontiguousarray(wide))
    scaled = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.LANCZOS, box))
    if band.dtype == np.uint8:
        return scaled
    scaled = scaled.clip(band.min(), band.max())  # Lanczos overshoots at edges
    return (scaled if band.dtype.kind == "f" else np.rint(scaled)).astype(band.dtype)
