"""Opening shards: with the index that was packed with them, or after one look at every header."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sfumato.data.decode import Alpha, Header
from sfumato.data.files import Shaping, common_shape
from sfumato.data.images import digest
from sfumato.data.pixels import PixelFormat, pixel_format
from sfumato.data.shaping import Fit
from sfumato.data.shards.fetch import Fetch, GoneError
from sfumato.data.shards.images import ShardImages, Side
from sfumato.data.shards.index import INDEX, ShardIndex, read_index
from sfumato.data.shards.places import Whereabouts, absolute, find
from sfumato.data.shards.scan import Scan, format_of, scan
from sfumato.data.shards.store import Store
from sfumato.data.shards.table import ShardError
from sfumato.errors import DataError


def open_shards(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    alpha: Alpha = "drop",
    value_range: tuple[float, float] | None = None,
    labels: bool = False,
    channels: int | None = None,
    pairs: bool = False,
    input_range: tuple[float, float] | None = None,
    input_channels: int | None = None,
    lanes: int | None = None,
    fetch: Fetch | None = None,
    cache: Path | None = None,
) -> ShardImages:
    """Images of tar shards: a folder, a pattern like shards/{000..099}.tar, or a URL of either.

    The options are those of `open_images` and `open_pairs`; with `pairs` KEY.target.png is learned
    from KEY.input.png. lanes: shards that a batch mixes, see `order`; the index's, or 16. fetch:
    patience with URLs. cache: the folder that remembers the headers of shards without an index.
    Raises DataError where there are no shards, or too many broken ones.
    """
    where, patience = find(str(path)), fetch or Fetch()
    sides = [
        Shaping(size, fit, alpha, channels, value_range),
        Shaping(size, fit, alpha, input_channels, input_range),
    ]
    index = _index(where, patience)
    found = index if index is not None else scan(where, patience, alpha, pairs, cache)
    names = tuple(shard.name for shard in found.shards)
    if isinstance(found, ShardIndex):
        if pairs and found.inputs is None:
            raise DataError(f"{path}: expected pairs, but these shards hold single images")
        # What was packed with alpha is decoded with it.
        sides = [replace(shaping, alpha=found.alpha) for shaping in sides]
        made = _side(found.format, sides[0], str(path))
        given = _side(found.inputs, sides[1], str(path)) if pairs and found.inputs else None
        plain = found.inputs is not None and not pairs
        lanes = lanes or found.lanes
    else:
        made = Side(format_of(found.images, sides[0], str(path)), sides[0])
        given = None
        if pairs:
            given = Side(format_of(found.inputs, sides[1], str(path)), sides[1])
        plain = False
        lanes = lanes or ShardIndex.lanes
    if given is not None:
        given = replace(given, given=True)
        if given.format.shape[1:] != made.format.shape[1:]:
            raise DataError(f"{path}: inputs and targets must be of one size; use --size")
    numbers, classes = _labels(where, found, patience) if labels else (None, ())
    store = Store(
        where if where.names else Whereabouts(where.folder, names),
        found.shards,
        patience,
        keep=2 * lanes + 4,
        pairs=pairs or plain,
        broken={},
    )
    marks = [found.fingerprint, repr((made, given, lanes))]
    images = ShardImages(
        store,
        made,
        str(path),
        digest(mark.encode() for mark in marks),
        lanes=lanes,
        labels=numbers,
        classes=classes,
        inputs=given,
    )
    options = {
        "path": absolute(str(path)),
        "size": size,
        "fit": fit,
        "alpha": alpha,
        "value_range": value_range,
        "layout": None,
        "labels": labels,
        "channels": channels,
    }
    if pairs:
        options |= {"condition": "image", "input_range": input_range}
        options |= {"input_channels": input_channels}
    images.opened = options
    if isinstance(found, Scan):
        images.skipped = (*found.complaints, *images.skipped)
    return images


def shard_classes(path: str | Path) -> tuple[str, ...]:
    """Names of the classes of shards with an index; none for others."""
    index = _index(find(str(path)), Fetch())
    return () if index is None else index.classes


def shard_pairs(path: str | Path) -> bool:
    """Whether shards have an index that says they hold pairs."""
    index = _index(find(str(path)), Fetch())
    return index is not None and index.inputs is not None


def _index(where: Whereabouts, fetch: Fetch) -> ShardIndex | None:
    """The index beside shards, of those that were named; None where there is none."""
    at = where.of(INDEX)
    try:
        data = fetch.read(at) if where.remote else Path(at).read_bytes()
    except (GoneError, FileNotFoundError) as error:
        if where.names:
            return None
        raise DataError(
            f"{at}: expected an index of shards ({error}); shards that were not written by sfumato "
            f"data pack are named one by one, for example {where.folder}{{000..099}}.tar"
        ) from error
    except (ShardError, OSError) as error:  # shards taken without their index would be others
        hint = "try again when it can be reached"
        if where.remote and where.names:
            hint += ", or put a file of that name that holds [] there if these shards have no index"
        raise DataError(
            f"{at}: expected the index of the shards, or a clear answer that there is none, but it "
            f"cannot be read ({error}); {hint}"
        ) from error
    index = read_index(data, at)
    if index is None or not where.names:
        if index is None and not where.names:
            raise DataError(f"{at}: expected an index of shards, got JSON of another kind")
        return index
    return index.only(where.names)


def _side(form: PixelFormat, shaping: Shaping, path: str) -> Side:
    """What images of a known format become."""
    header = Header(form.channels, form.height, form.width, form.dtype)
    shape, dtype = common_shape({"": header}, shaping, path)
    span, keep = shaping.value_range or (form.low, form.high), shaping.alpha == "keep"
    return Side(pixel_format(shape, dtype, span, alpha=keep), shaping)


def _labels(
    where: Whereabouts, found: ShardIndex | Scan, fetch: Fetch
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """A label for each image, and the names of the classes; DataError where there are none."""
    if isinstance(found, Scan):
        return found.labels, found.classes(where.folder)
    if found.labels is None:
        raise DataError(
            f"{where.folder}: class labels were asked for, but these shards were packed without: "
            "pack images that have labels with --classes"
        )
    at = where.of(found.labels.name)
    try:
        source = io.BytesIO(fetch.read(at)) if where.remote else at
        mode = None if where.remote else "r"
        numbers = cast("NDArray[np.int64]", np.load(source, mmap_mode=mode, allow_pickle=False))
    except (ShardError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{at}: the shards' labels cannot be read ({error}); copy it") from error
    if found.labels.sha256 not in (None, _sha256(source)):
        raise DataError(f"{at}: its SHA-256 is not what the index says; copy it again")
    if numbers.dtype != np.int64 or numbers.shape != (found.labels.images,):
        raise DataError(
            f"{at}: expected int64 labels of {found.labels.images:,} images, got {numbers.dtype} "
            f"of shape {numbers.shape}; copy it again from where the shards were packed"
        )
    if not found.first:
        return numbers, found.classes
    parts = [
        numbers[first : first + shard.images]
        for first, shard in zip(found.first, found.shards, strict=True)
    ]
    return np.concatenate(parts), found.classes


def _sha256(source: str | io.BytesIO) -> str:
    if isinstance(source, io.BytesIO):
        return hashlib.sha256(source.getvalue()).hexdigest()
    with open(source, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
