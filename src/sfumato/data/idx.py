"""IDX files, the format of MNIST and its relatives, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import DataError

# Third byte of the magic number; numbers are big-endian.
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def looks_like_idx(path: Path) -> bool:
    """Whether a file (or what is gzipped in it) starts with an IDX magic number."""
    try:
        with gzip.open(path) if _gzipped(path) else path.open("rb") as stream:
            head = stream.read(4)
    except (OSError, EOFError, zlib.error):
        return path.suffix == ".gz"  # read_idx then says what is wrong with it
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in _DTYPES and head[3] > 0


def read_idx(path: Path) -> NDArray[Any]:
    """The array in an IDX file, in native byte order; DataError when damaged or cut short.

    Plain single-byte files are memory-mapped, everything else is read into memory.
    """
    try:
        if _gzipped(path):
            with gzip.open(path) as stream:
                content = np.frombuffer(stream.read(), np.uint8)
        else:
            content = np.memmap(path, np.uint8, "r")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); the copy may be incomplete") from error
    head = content[:4].tobytes()
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _DTYPES:
        raise DataError(
            f"{path}: expected an IDX file (two zero bytes, a type, a number of axes), got "
            f"{head.hex(' ') or 'an empty file'}"
        )
    dtype, axes = np.dtype(_DTYPES[head[2]]), head[3]
    start = 4 + 4 * axes
    if content.size < start:
        raise DataError(f"{path}: the IDX header is cut short; the copy may be incomplete")
    shape = struct.unpack(f">{axes}I", content[4:start].tobytes())
    expected = start + math.prod(shape) * dtype.itemsize
    if content.size != expected:
        raise DataError(
            f"{path}: expected {expected:,} bytes for an IDX array of shape {shape}, got "
            f"{content.size:,}; the copy may be incomplete"
        )
    array = content[start:].view(dtype).reshape(shape)
    return (
        array.view(dtype.newbyteorder("="))
        if dtype.itemsize == 1
        else array.astype(dtype.newbyteorder("="))
    )


def open_idx(path: Path, want_labels: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Images of an IDX file; labels from its sibling `...labels-idx1...`, gzipped or not."""
    images = read_idx(path)
    if not want_labels:
        return images, None
    name = path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    plain = name.removesuffix(".gz")
    for candidate in (path.with_name(name), path.with_name(plain), path.with_name(plain + ".gz")):
        if candidate != path and candidate.exists():
            return images, read_idx(candidate)
    raise DataError(
        f"{path}: class labels were expected beside it in {name}, which does not exist; add it or "
        "train without classes"
    )


def _gzipped(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"
