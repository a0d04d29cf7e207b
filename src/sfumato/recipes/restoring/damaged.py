"""One damaged image: read with what is known of it, and written restored."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.decode import Header, decode, read_header
from sfumato.data.geo import TIFFS, GeoReference, read_geo, write_geotiff
from sfumato.data.pixels import PixelFormat, from_model
from sfumato.data.save import save_image
from sfumato.files import write_bytes
from sfumato.recipes.restoring.unknown import (
    channels_last,
    plan_reading,
    read_mask,
    reading_file,
    tag_nodata,
)


@dataclass(frozen=True, eq=False)
class Damaged:
    """A damaged image of any height and width in a model's channels and depth, and what is known.

    x: float32 [C, H, W] in [-1, 1], 0 where unknown. known: bool [1, H, W], or [C, H, W] where the
    channels differ. format: the model's, with this image's height and width. geo: where a TIFF lies
    on Earth; None without such tags. raw: [C, H, W] of format.dtype as stored, 0 where unknown;
    None for an image that was not read from a file. last: whether it was an array [H, W, C].
    """

    x: Tensor
    known: Tensor
    name: str
    format: PixelFormat
    geo: GeoReference | None = None
    raw: NDArray[Any] | None = None
    last: bool = False

    @property
    def share(self) -> float:
        """The share of values that are unknown, in [0, 1]; 0: there is nothing to restore."""
        return 1 - int(self.known.count_nonzero()) / self.known.numel()

    def compose(self, x: Tensor) -> NDArray[Any]:
        """Restored x [C, H, W] in [-1, 1] -> raw values: known ones exactly as stored.

        A restored value that happens to equal the file's own nodata value moves to its neighbour,
        so that other programs do not take it for missing. Raises ValueError on NaN.
        """
        return compose(x, self.known, self.raw, self.format, self.geo)


def compose(
    x: Tensor,
    known: Tensor,
    raw: NDArray[Any] | None,
    form: PixelFormat,
    geo: GeoReference | None,
) -> NDArray[Any]:
    """The raw image [C, h, w] of `Damaged.compose`, from its parts."""
    restored = from_model(x, form)
    nodata = tag_nodata(form, geo.nodata if geo is not None else None)
    if nodata is not None:
        hit = restored == nodata
        inwards = form.high if nodata < (form.low + form.high) / 2 else form.low
        step = np.nextafter(np.float32(nodata), np.float32(inwards))
        if form.dtype != "float32":
            step = nodata + (1 if inwards > nodata else -1)
        restored[hit] = step
    if raw is None:
        return restored
    return np.where(known.cpu().numpy(), raw, restored)


def read_damaged(
    path: Path,
    form: PixelFormat,
    *,
    mask: Path | None = None,
    nodata: float | None = None,
    channels: int | None = None,
) -> Damaged:
    """Read one image of any size in the channels and depth of `form`, and which of it is unknown.

    Unknown is what any of these says: a `mask` image of the same size, where it is not black; an
    alpha channel that the model lacks, where it is not fully opaque (below 255, 65535 or 1.0); NaN;
    and, value by value, `nodata`, else the TIFF's own GDAL_NODATA. `channels` converts grey and RGB
    into each other. EXIF orientation is applied, so a mask is drawn on the image as it is seen. A
    .npy is [H, W], [C, H, W] or [H, W, C], by the model's channels.
    Raises DataError for another channel count, depth or value range than the model's, a mask of
    another size, a nodata value no pixel can have, and files that cannot be read.
    """
    path = Path(path)
    last = channels_last(path, form, channels)

    def headers(stream: BinaryIO) -> tuple[Header, int]:
        kept = read_header(stream, str(path), "keep")
        stream.seek(0)
        return kept, read_header(stream, str(path), "drop").channels

    kept, without_alpha = reading_file(path, lambda s: headers(_first(s) if last else s))
    reading = plan_reading(str(path), kept, without_alpha, form, channels, nodata)
    geo = reading_file(path, lambda _: read_geo(path))
    if nodata is None and geo is not None:
        reading = replace(reading, nodata=tag_nodata(form, geo.nodata))
    masked = read_mask(Path(mask), (kept.height, kept.width), path.name) if mask else None
    with np.errstate(over="ignore"):
        stored = reading_file(
            path,
            lambda s: decode(_first(s) if last else s, str(path), "keep", finite=False),
        )
    raw, x, known = reading(stored, masked)
    if geo is not None:
        geo = bands_kept(geo, len(stored) - reading.alpha, form)
    own = replace(form, height=raw.shape[1], width=raw.shape[2])
    return Damaged(x, known, path.name, own, geo, raw, last)


def _first(stream: BinaryIO) -> BinaryIO:
    """An array [H, W, C] as one [C, H, W]."""
    array = np.lib.format.read_array(stream, allow_pickle=False)
    moved = io.BytesIO()
    np.save(moved, np.moveaxis(array, -1, 0))
    moved.seek(0)
    return moved


def bands_kept(geo: GeoReference, colours: int, form: PixelFormat) -> GeoReference:
    """The tags of a file of `colours` bands for an image of the model's: of its bands only."""
    return geo.for_bands(form.channels if colours == form.channels else None)


def write_restored(raw: NDArray[Any], like: Damaged, out: Path) -> Path:
    """Write a raw image [C, H, W] as .png, .tif or .npy by the suffix of `out`; return the path.

    A TIFF of an image that came georeferenced is so too. Raises ValueError for another shape or
    dtype than the image's, DataError for a file type that cannot hold it exactly, MissingExtraError
    for a TIFF without tifffile.
    """
    out = Path(out)
    if raw.shape != like.format.shape or str(raw.dtype) != like.format.dtype:
        raise ValueError(
            f"expected a raw {like.format.describe()} image like {like.name}, got {raw.dtype} of "
            f"shape {raw.shape}"
        )
    if like.geo is None or out.suffix.lower() not in TIFFS:
        return save_image(raw, like.format, out)
    stream = io.BytesIO()
    write_geotiff(raw, like.geo, stream)
    write_bytes(out, stream.getvalue())
    return out
