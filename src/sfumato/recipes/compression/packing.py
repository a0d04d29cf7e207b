"""Raw images to a compressed file and back.

| kind        | what it is                                                          |
|-------------|---------------------------------------------------------------------|
| bits-back   | without loss, in few bits for many images: each stream pays a start |
| staged      | without loss: all noise levels sent, then the pixels; for few images|
| lossy       | noise levels sent down to a quality                                 |
| plain       | zlib, where the model knows nothing of such images                  |
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from sfumato.codec import Container, Header, Profile
from sfumato.codec.queue import OTHERWISE
from sfumato.codec.relative_entropy import CANDIDATES_LOG2, SEARCH
from sfumato.codec.stack import Words
from sfumato.data.pixels import from_model
from sfumato.errors import CodecError, ConfigError
from sfumato.recipes.compression.coders import (
    little_endian,
    lossless_of,
    named,
    opened,
    walker_of,
)
from sfumato.recipes.model import Model, RawImages

Tick = Callable[[int], object]
LEVELS = 48
_STREAM_IMAGES = 100
"""Images a stream has at least: each pays its first bits."""
_MOST_STREAMS = 16
_BATCH = 16
_FEW = 8
"""For so few images both ways without loss are tried."""


@dataclass(frozen=True)
class Effort:
    """How long is searched for fewer bits: more levels of bits-back, more candidates a chunk."""

    levels: int = LEVELS
    streams: int = 0
    """Images coded at once, each stream with first bits of its own; 0: one per 100 images."""
    search: int = CANDIDATES_LOG2
    """A chunk of a lossy or staged file is searched for among 2 to this candidates."""

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ConfigError(f"--levels must be at least 2, not {self.levels}")
        if not 0 <= self.streams <= 1024:
            raise ConfigError(f"--streams goes from 0 to 1024, not {self.streams}")
        if self.search not in SEARCH:
            raise ConfigError(f"--search goes from {SEARCH[0]} to {SEARCH[-1]}, not {self.search}")


@dataclass(frozen=True, eq=False)
class Packed:
    """A compressed file, and what it took."""

    container: Container
    data: bytes
    images: RawImages
    """What it decodes to."""

    @property
    def bits_per_dim(self) -> float:
        """Of the whole file."""
        return 8 * len(self.data) / self.images.size

    @property
    def payload_bits_per_dim(self) -> float:
        """Without header and checksum."""
        return 8 * sum(map(len, self.container.sections)) / self.images.size


def pack(
    model: Model,
    profile: Profile,
    images: RawImages,
    *,
    quality: int | None = None,
    effort: Effort | None = None,
    tick: Tick = lambda n: None,
) -> Packed:
    """Compress raw images [n, C, H, W] of the model's format, without loss unless at a `quality`.

    `quality` is the number of noise levels sent, 1 to len(profile.steps) - 1; raises ConfigError
    for another. `tick` is told image by image what share is done, in images.
    """
    effort = effort or Effort()
    flat, common = _common(model, images)
    if quality is not None:
        check_quality(profile, quality)
        header = replace(common, kind="lossy", levels=quality, search=effort.search)
        return _lossy(model, profile, flat, header, tick)
    found = [_plain(model, profile, images, common)]
    if len(images) <= _FEW:
        half = _shares(tick, 2)
        found.append(_bits_back(model, profile, flat, images, common, effort, half))
        staged = replace(common, kind="staged", search=effort.search)
        found.append(_staged(model, profile, flat, images, staged, half))
    else:
        found.append(_bits_back(model, profile, flat, images, common, effort, tick))
    return min(found, key=lambda one: len(one.data))


def _common(model: Model, images: RawImages) -> tuple[np.ndarray, Header]:
    """Pixels from 0 on [n, d], and what headers of all kinds have in common."""
    form = model.format
    if images.shape[1:] != form.shape or images.dtype != form.dtype or not len(images):
        raise ValueError(
            f"expected one or more raw {form.describe()} images, got {images.dtype} of shape "
            f"{list(images.shape)}"
        )
    low, top = int(form.low), (form.levels or 0) - 1
    flat = images.reshape(len(images), -1).astype(np.int64) - low
    if flat.min() < 0 or flat.max() > top:
        raise ValueError(f"expected values in {low}..{low + top}: {form.describe()}")
    header = Header(
        "plain", bytes(8), bytes(4), 0, form.shape, str(form.dtype), low, top, len(images),
        1, 0, 1, torch.get_num_threads(),
    )  # fmt: skip
    return flat, header


def check_quality(profile: Profile, quality: int) -> None:
    """Raise ConfigError for a quality that this model's profile does not have."""
    most = len(profile.steps) - 1
    if not 1 <= quality <= most:
        raise ConfigError(
            f"--quality goes from 1 to {most} for this model, not {quality}: --list tells what "
            "each looks like"
        )


def _plain(model: Model, profile: Profile, images: RawImages, header: Header) -> Packed:
    header = named(model, profile, header, images)
    return _packed(header, [_zipped(images)], images)


def _zipped(images: RawImages) -> bytes:
    return zlib.compress(little_endian(images), 9)


def _bits_back(
    model: Model, profile: Profile, flat: np.ndarray, images: RawImages, header: Header,
    effort: Effort, tick: Tick,
) -> Packed:  # fmt: skip
    count = len(flat)
    streams = min(effort.streams or min(max(1, count // _STREAM_IMAGES), _MOST_STREAMS), count)
    levels = len(profile.every(effort.levels))
    header = replace(header, kind="bits-back", levels=levels, batch=streams)
    coder = lossless_of(model, profile, header)
    words, raw = coder.encode(flat, tick)
    kept = _zipped(images[raw]) if raw else b""
    header = named(model, profile, replace(header, raw=tuple(raw)), images)
    return _packed(header, [kept, *(part.astype("<u4").tobytes() for part in words)], images)


def _staged(
    model: Model, profile: Profile, flat: np.ndarray, images: RawImages, header: Header, tick: Tick
) -> Packed:
    batch = min(len(flat), _BATCH)
    header = replace(header, levels=len(profile.steps) - 1, batch=batch)
    coder = walker_of(model, profile, header)
    share = _shares(tick, header.levels)
    words, _ = coder.encode(flat / (header.top / 2) - 1, share, values=flat, top=header.top)
    return _packed(named(model, profile, header, images), [_short(words)], images)


def _lossy(model: Model, profile: Profile, flat: np.ndarray, header: Header, tick: Tick) -> Packed:
    header = replace(header, batch=min(len(flat), _BATCH))
    coder = walker_of(model, profile, header)
    words, pictures = coder.encode(flat / (header.top / 2) - 1, _shares(tick, header.levels))
    images = as_pictures(model, pictures)
    return _packed(named(model, profile, header, images), [_short(words)], images)


def unpack(
    model: Model, profile: Profile, container: Container, tick: Tick = lambda n: None
) -> RawImages:
    """Return the raw images [n, C, H, W] of a compressed file.

    Raises CodecError where it belongs to another model, where this machine computes other last
    digits than the one it was made on, and where its contents do not fit together.
    """
    header = container.header
    with opened(model, profile, header):
        images = _unpacked(model, profile, container, tick)
    if zlib.crc32(little_endian(images)) != header.pixels:
        raise CodecError(OTHERWISE)
    return images


def _unpacked(model: Model, profile: Profile, container: Container, tick: Tick) -> RawImages:
    header = container.header
    if header.kind == "bits-back":
        return _from_bits_back(model, profile, container, tick)
    if len(container.sections) != 1 or header.raw:
        raise CodecError("this file is damaged: it should hold one stream")
    if header.kind == "plain":
        return _raw(container.sections[0], header, header.count).reshape(-1, *header.shape)
    walker, words = walker_of(model, profile, header), long_words(container.sections[0])
    share = _shares(tick, header.levels + 1)
    if header.kind == "staged":
        flat = walker.decode_values(words, header.count, header.top, share)
        return (flat + header.low).astype(header.dtype).reshape(-1, *header.shape)
    pictures = np.zeros(0)
    for shown in walker.decode(words, header.count):
        pictures = shown.picture
        share(header.count)
    return as_pictures(model, pictures)


def _from_bits_back(model: Model, profile: Profile, container: Container, tick: Tick) -> RawImages:
    header = container.header
    coder = lossless_of(model, profile, header)
    if len(container.sections) != 1 + coder.streams:
        raise CodecError("this file is damaged: it lacks a stream")
    kept, *streams = container.sections
    if bool(kept) != bool(header.raw):
        raise CodecError("this file is damaged: it holds what no image needs")
    if any(len(part) % 4 for part in streams):
        raise CodecError("this file is damaged: a stream has no whole number of words")
    words = [np.frombuffer(part, "<u4").astype(np.uint32) for part in streams]
    flat = coder.decode(words, header.count, header.raw, tick)
    images = (flat + header.low).astype(header.dtype).reshape(-1, *header.shape)
    if header.raw:
        images[list(header.raw)] = _raw(kept, header, len(header.raw)).reshape(-1, *header.shape)
    return images


def as_pictures(model: Model, pictures: np.ndarray) -> RawImages:
    """Return pictures [n, d] in [-1, 1] as raw images."""
    x = torch.from_numpy(pictures).reshape(-1, *model.format.shape)
    return from_model(x, model.format)


def long_words(data: bytes) -> Words:
    """Undo `_short`."""
    return np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)


def _short(words: Words) -> bytes:
    """Return words as bytes, without those at the end that are 0 anyway."""
    return words.astype(">u4").tobytes().rstrip(b"\0")


def _packed(header: Header, sections: list[bytes], images: RawImages) -> Packed:
    container = Container(header, sections)
    return Packed(container, container.to_bytes(), images)


def _raw(kept: bytes, header: Header, count: int) -> RawImages:
    dtype = np.dtype(header.dtype).newbyteorder("<")
    size = count * math.prod(header.shape) * dtype.itemsize
    try:
        plain = zlib.decompressobj().decompress(kept, size + 1)
    except zlib.error as error:
        raise CodecError("this file is damaged: its raw images cannot be read") from error
    if len(plain) != size:
        raise CodecError("this file is damaged: its raw images have another size")
    return np.frombuffer(plain, dtype).astype(header.dtype)


def _shares(tick: Tick, parts: int) -> Tick:
    """Tell of whole images, though the work is done level by level for all of them."""
    done = told = 0.0

    def part(images: int) -> None:
        nonlocal done, told
        done += images / parts
        whole = int(done + 1e-9)
        tick(whole - int(told))
        told = whole

    return part
