"""Images of any channel count and bit depth, laid out as one picture to look at."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato.errors import DataError
from sfumato.files import write_bytes

UInt8 = NDArray[np.uint8]
Images = Tensor | NDArray[np.generic]
"""[n, C, H, W]: uint8, uint16, or float in [-1, 1]."""

DISPLAY_SIZE = 64
"""Small images are enlarged to about this many pixels, so that they can be seen."""


def image_grid(
    images: Images, columns: int | None = None, pad: int = 2, scale: int | None = None
) -> UInt8:
    """Lay images [n, C, H, W] out row by row: uint8 [height, width, 1 or 3], white between them.

    Floats are in [-1, 1] (clipped for display), uint16 is shown as its upper 8 bits, rounded.
    Channels: 1 and 3 as they are, 2 the first, more the first three. `scale` enlarges by nearest
    neighbour (None: to about 64 px), `columns` defaults to a square, `pad` is in final pixels.
    """
    pixels = display_pixels(images)
    n, height, width, channels = pixels.shape
    if scale is None:
        scale = max(1, round(DISPLAY_SIZE / max(height, width)))
    if columns is None:
        columns = math.ceil(math.sqrt(n))
    if columns < 1 or scale < 1 or pad < 0:
        raise ValueError(f"need columns >= 1, scale >= 1, pad >= 0: {columns}, {scale}, {pad}")
    columns = min(columns, n)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    down, right = height * scale + pad, width * scale + pad
    rows = math.ceil(n / columns)
    grid = np.full((rows * down + pad, columns * right + pad, channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = pad + i // columns * down, pad + i % columns * right
        grid[top : top + height * scale, left : left + width * scale] = image
    return grid


def display_pixels(images: Images) -> UInt8:
    """Images [n, C, H, W] as 8-bit pixels [n, H, W, 1 or 3], by the rules of `image_grid`."""
    array = images.detach().cpu() if isinstance(images, Tensor) else images
    if isinstance(array, Tensor):
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    if array.ndim != 4 or 0 in array.shape:
        raise DataError(f"expected at least one image, [n, C, H, W], got {list(array.shape)}")
    array = array[:, :3] if array.shape[1] >= 3 else array[:, :1]
    if array.dtype == np.uint8:
        pixels = array.astype(np.uint8)
    elif array.dtype == np.uint16:
        pixels = ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        # A sampler's NaN shows black rather than undefined.
        levels = (np.nan_to_num(array.astype(np.float32), nan=-1.0) + 1) * 127.5
        pixels = np.rint(levels.clip(0, 255)).astype(np.uint8)
    else:
        raise DataError(f"expected uint8, uint16 or float images in [-1, 1], got {array.dtype}")
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def to_pil(grid: UInt8) -> Image.Image:
    """A pillow image of a grid [H, W, 1 or 3]."""
    if grid.ndim != 3 or grid.shape[2] not in (1, 3) or grid.dtype != np.uint8:
        raise ValueError(f"expected uint8 [H, W, 1 or 3], got {grid.dtype} {list(grid.shape)}")
    return Image.fromarray(grid[:, :, 0] if grid.shape[2] == 1 else grid)


def png_bytes(grid: UInt8) -> bytes:
    """The grid [H, W, 1 or 3] as a PNG file's bytes."""
    buffer = io.BytesIO()
    to_pil(grid).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_png(grid: UInt8, path: Path) -> None:
    """Write the grid [H, W, 1 or 3] as a PNG, whole or not at all."""
    write_bytes(path, png_bytes(grid))
