"""Decoded images as files, and what is there of them after every level."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sfumato.codec import Container, Profile
from sfumato.data.pixels import PixelFormat, to_model
from sfumato.data.save import save_image, save_images
from sfumato.errors import CodecError, ConfigError
from sfumato.files import write_bytes
from sfumato.recipes.compression.coders import opened, walker_of
from sfumato.recipes.compression.packing import as_pictures, long_words
from sfumato.recipes.model import Model, RawImages
from sfumato.report.grid import image_grid, png_bytes


@dataclass(frozen=True, eq=False)
class Preview:
    """The raw pictures [n, C, H, W] after so many levels of a file, and the noise left in x."""

    levels: int
    sigma: float
    images: RawImages


def previews(model: Model, profile: Profile, container: Container) -> Iterator[Preview]:
    """Yield what a file shows after each level; of one cut short as far as it goes.

    Raises CodecError for a file that is not sent level by level.
    """
    header = container.header
    if header.kind not in ("lossy", "staged"):
        raise CodecError(
            "this file holds its images one after another, not level by level: only files of "
            "--quality, and lossless ones of few images, have previews"
        )
    with opened(model, profile, header):
        walker = walker_of(model, profile, header)
        data = container.sections[0]
        words = long_words(data if container.whole else data[: len(data) // 4 * 4])
        more = header.kind == "staged"
        for shown in walker.decode(words, header.count, whole=container.whole, more=more):
            yield Preview(shown.index, shown.sigma, as_pictures(model, shown.picture))


def preview_sheet(
    found: list[Preview], form: PixelFormat, images: int = 8, most: int = 10
) -> bytes:
    """Return a PNG: a row an image, from the first level to the last (DDPM Figure 10)."""
    count = min(most, len(found))
    places = [round(i * (len(found) - 1) / max(1, count - 1)) for i in range(count)]
    columns = [to_model(found[place].images[:images], form) for place in places]
    rows = [column[row] for row in range(len(columns[0])) for column in columns]
    return png_bytes(image_grid(torch.stack(rows), columns=count))


def check_out(out: Path, count: int) -> None:
    """Raise ConfigError for a place where so many images cannot be written by `write_images`."""
    if out.suffix in ("", ".npy") or out.is_dir():
        return
    if out.suffix not in (".png", ".tif", ".tiff"):
        raise ConfigError(f"images are written as .png, .tif, .npy or into a folder, not as {out}")
    if count > 1:
        raise ConfigError(f"{count} images do not fit into {out}: give a folder, or .npy")


def write_images(out: Path, images: RawImages, form: PixelFormat) -> Path:
    """Write images as one file by its suffix, an array [n, H, W, C] as .npy, or into a folder.

    Raises ConfigError as `check_out` does.
    """
    check_out(out, len(images))
    if out.suffix == ".npy":
        memory = io.BytesIO()
        np.save(memory, np.moveaxis(images, 1, -1), allow_pickle=False)
        write_bytes(out, memory.getvalue())
    elif out.suffix and not out.is_dir():
        save_image(images[0], form, out)
    else:
        save_images(images, form, out)
    return out


def rmse_255(a: RawImages, b: RawImages, form: PixelFormat) -> float:
    """Return the RMSE of two sets of raw images on the 0..255 scale."""
    square = np.square(a.astype(np.float64) - b.astype(np.float64)).mean()
    return 255 * math.sqrt(float(square)) / (form.high - form.low)
