"""Images a user points at, opened in the format of the images a model was trained on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.containers import Container
from sfumato.data.decode import SUFFIXES, Alpha
from sfumato.data.files import FileImages, Shaping
from sfumato.data.images import Images
from sfumato.data.pixels import PixelFormat, to_model
from sfumato.data.sources import open_images
from sfumato.errors import DataError
from sfumato.files import write_bytes


@dataclass(frozen=True)
class Opening:
    """How images become the model's: brought to a size (height, width), to 1 or 3 channels."""

    size: tuple[int, int] | None = None
    channels: int | None = None


@dataclass(frozen=True, eq=False)
class Inputs:
    """Images [n, C, H, W] in [-1, 1] and their names, the first of `total`."""

    x: Tensor
    names: tuple[str, ...]
    total: int


def read_inputs(
    paths: Sequence[str | Path],
    form: PixelFormat,
    opening: Opening | None = None,
    limit: int | None = None,
) -> Inputs:
    """Read the images of folders, zips, arrays, built-in sets and single files, the first `limit`.

    Raises DataError for images of another bit depth, size, channel count or value range than
    `form`, saying which and what would change it.
    """
    if limit is not None and limit < 1:
        raise DataError(f"there is nothing to read: ask for at least one image, not {limit}")
    parts: list[Tensor] = []
    names: list[str] = []
    total = 0
    for path in paths:
        images = open_as(path, form, opening or Opening())
        total += len(images)
        count = len(images) if limit is None else min(len(images), limit - len(names))
        if count > 0:
            parts.append(to_model(images.read(range(count)), form))
            names += [images.names(i) for i in range(count)]
    if not parts:
        raise DataError("expected at least one image, got none")
    return Inputs(torch.cat(parts), tuple(names), total)


def open_as(path: str | Path, form: PixelFormat, opening: Opening) -> Images:
    """Open a set, or one image file, that has this format; DataError says how it differs."""
    alpha: Alpha = "keep" if form.channels in (2, 4) else "drop"
    own_range = form.dtype == "float32" or form.levels != 1 << form.bits
    stated = (form.low, form.high) if own_range else None
    where = Path(path)
    if where.suffix.lower() in SUFFIXES and not where.exists():
        raise DataError(f"{where} does not exist: expected an image, or a set of them")
    if where.is_file() and where.suffix.lower() in SUFFIXES:
        shaping = Shaping(opening.size, "crop", alpha, opening.channels, stated)
        images: Images = FileImages(_OneFile(where), shaping)
    else:
        images = open_images(
            path, size=opening.size, alpha=alpha, value_range=stated, channels=opening.channels
        )
    _check(images, form)
    return images


def _check(images: Images, form: PixelFormat) -> None:
    found = images.format
    if found == form:
        return
    fixes: list[str] = []
    if (found.height, found.width) != (form.height, form.width):
        fixes.append(f"add --size {form.height} {form.width} (crops to the centre)")
    if found.channels != form.channels:
        convertible = {found.channels, form.channels} == {1, 3}
        fixes.append(
            f"add --channels {form.channels}"
            if convertible
            else f"only grey and RGB convert into each other, not {found.channels} channels"
        )
    if found.dtype != form.dtype:
        fixes.append(f"give {form.dtype} images: bit depths are not converted")
    elif (found.low, found.high) != (form.low, form.high):
        fixes.append(f"bring the values to [{form.low:g}, {form.high:g}]")
    raise DataError(
        f"{images.source}: expected the format of the model's images, {form.describe()}, got "
        f"{found.describe()}: {'; '.join(fixes)}"
    )


class _OneFile(Container):
    """A single image file."""

    def __init__(self, path: Path) -> None:
        self.where, self.names, self._path = str(path), [path.name], path

    def open(self, name: str) -> BinaryIO:
        return self._path.open("rb")

    def size(self, name: str) -> int:
        return self._path.stat().st_size


def save_array(array: NDArray[Any], path: Path) -> None:
    """Write an array as .npy, whole or not at all."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    write_bytes(path, stream.getvalue())
