"""Images to compressed files and back, by a trained model."""

from __future__ import annotations

import hashlib
import io
import math
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sfumato.codec import Asker, Container, Header, Lattice, Lossless
from sfumato.data.pixels import PixelFormat
from sfumato.data.save import save_image, save_images
from sfumato.errors import CodecError, ConfigError
from sfumato.files import write_bytes
from sfumato.likelihood import bound_grid
from sfumato.recipes.model import Model, RawImages

Tick = Callable[[int], object]
LEVELS = 64
HIGHEST = 64
"""Levels of noise far above the images' own deviation tell nothing."""
_STREAM_IMAGES = 100
"""Images a stream has at least: each pays its first bits."""
_BATCH = 16


@dataclass(frozen=True)
class Effort:
    """How images are coded: more levels take longer and come nearer to the model's bound."""

    levels: int = LEVELS
    streams: int = 0
    """Images coded at once, each stream with first bits of its own; 0: one per 100 images."""

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ConfigError(f"--levels must be at least 2, not {self.levels}")
        if self.streams < 0:
            raise ConfigError(f"--streams must be at least 0, not {self.streams}")


@dataclass(frozen=True)
class Packed:
    """A compressed file, and what it took."""

    data: bytes
    count: int
    values: int
    """Of all images."""
    raw: int
    """Images kept as they are, being too unlike what the model knows."""

    @property
    def bits_per_dim(self) -> float:
        """Of the whole file."""
        return 8 * len(self.data) / self.values


def pack(
    model: Model, images: RawImages, effort: Effort | None = None, tick: Tick = lambda n: None
) -> Packed:
    """Compress raw images [n, C, H, W] of the model's format, losing nothing.

    Raises ConfigError for a model of floating-point images.
    """
    effort = effort or Effort()
    form = model.format
    if form.levels is None:
        raise ConfigError(
            "this model's images are floating-point numbers, which have no lossless code of "
            "probabilities: the codec is for images of 8 or 16 bits"
        )
    if images.shape[1:] != form.shape or images.dtype != form.dtype or not len(images):
        raise ValueError(
            f"expected one or more raw {form.describe()} images, got {images.dtype} of shape "
            f"{list(images.shape)}"
        )
    count = len(images)
    streams = min(effort.streams or min(max(1, count // _STREAM_IMAGES), _BATCH), count)
    low, top = int(form.low), form.levels - 1
    header = Header(
        "lossless", bytes(8), bytes(4), form.shape, str(form.dtype), low, top, count,
        effort.levels, HIGHEST, streams, torch.get_num_threads(),
    )  # fmt: skip
    coder = _coder(model, header)
    flat = images.reshape(count, -1).astype(np.int64) - low
    if flat.min() < 0 or flat.max() > top:
        raise ValueError(f"expected values in {low}..{low + top}: {form.describe()}")
    words, raw = coder.encode(flat, tick)
    kept = zlib.compress(images[raw].tobytes(), 9) if raw else b""
    header = _named(model, header, coder, tuple(raw))
    sections = [kept, *(part.astype("<u4").tobytes() for part in words)]
    data = Container(header, sections).to_bytes()
    return Packed(data, count, images.size, len(raw))


def unpack(model: Model, container: Container, tick: Tick = lambda n: None) -> RawImages:
    """Return the raw images [n, C, H, W] of a compressed file.

    Raises CodecError where it belongs to another model, where this machine computes other last
    digits than the one it was made on, and where its contents do not fit together.
    """
    header = container.header
    form = model.format
    if header.model != _hash(model, header):
        raise CodecError(
            "this file was made with another model, or another checkpoint of it: decompress it "
            "with the one that compressed it"
        )
    wanted = (form.shape, str(form.dtype), int(form.low), (form.levels or 0) - 1)
    if wanted != (header.shape, header.dtype, header.low, header.top):
        raise CodecError(f"this file's images are not the model's, {form.describe()}")
    if len(container.sections) != 1 + min(header.batch, header.count):
        raise CodecError("this file is damaged: it lacks a stream")
    with _threads(header.threads):
        coder = _coder(model, header)
        if header.probe != _probe(coder):
            raise CodecError(
                "this machine computes other last digits than the one this file was made on, and "
                "would decode it into noise: use the same kind of processor and versions"
            )
        kept, *streams = container.sections
        if any(len(part) % 4 for part in streams):
            raise CodecError("this file is damaged: a stream has no whole number of words")
        words = [np.frombuffer(part, "<u4").astype(np.uint32) for part in streams]
        flat = coder.decode(words, header.count, header.raw, tick)
    images = (flat + header.low).astype(header.dtype).reshape(-1, *header.shape)
    if header.raw:
        images[list(header.raw)] = _raw(kept, header).reshape(-1, *header.shape)
    return images


def write_images(out: Path, images: RawImages, form: PixelFormat) -> Path:
    """Write images as one file by its suffix, an array [n, H, W, C] as .npy, or into a folder.

    Raises ConfigError for several images in one image file.
    """
    if out.suffix == ".npy":
        memory = io.BytesIO()
        np.save(memory, np.moveaxis(images, 1, -1), allow_pickle=False)
        write_bytes(out, memory.getvalue())
    elif out.suffix and not out.is_dir():
        if len(images) > 1:
            raise ConfigError(f"{len(images)} images do not fit into {out}: give a folder, or .npy")
        save_image(images[0], form, out)
    else:
        save_images(images, form, out)
    return out


def _raw(kept: bytes, header: Header) -> RawImages:
    size = len(header.raw) * math.prod(header.shape) * np.dtype(header.dtype).itemsize
    try:
        plain = zlib.decompressobj().decompress(kept, size + 1)
    except zlib.error as error:
        raise CodecError("this file is damaged: its raw images cannot be read") from error
    if len(plain) != size:
        raise CodecError("this file is damaged: its raw images have another size")
    return np.frombuffer(plain, header.dtype)


def _coder(model: Model, header: Header) -> Lossless:
    denoise = model.denoiser
    if model.classes:
        raise ConfigError(
            "this model was trained with classes, which a file would have to hold: the codec knows "
            "models without classes so far"
        )
    limits = denoise.range
    grid = bound_grid(limits, header.levels)
    grid = grid[grid <= max(header.highest, float(grid[-2]))]
    lattice = Lattice.of(grid)
    excess = float(denoise.prior.var) - limits.high**2
    prior_std = math.sqrt(lattice.sigmas[0] ** 2 + excess)
    ask = Asker(denoise, header.shape, min(header.batch, header.count))
    return Lossless(ask, lattice, header.top, prior_std)


def _named(model: Model, header: Header, coder: Lossless, raw: tuple[int, ...]) -> Header:
    return replace(header, model=_hash(model, header), probe=_probe(coder), raw=raw)


def _hash(model: Model, header: Header) -> bytes:
    words = (model.fingerprint, str(model.recipe), str(model.format), header.levels, header.highest)
    return hashlib.blake2b(repr(words).encode(), digest_size=8).digest()


def _probe(coder: Lossless) -> bytes:
    """What this machine computes: of the levels, and of the network's answer to one of them."""
    sigmas = coder.lattice.sigmas
    d = math.prod(coder.ask.shape)
    x = np.random.Generator(np.random.Philox(1)).standard_normal((coder.streams, d))
    answer = coder.ask(x, sigmas[len(sigmas) // 2])
    told = hashlib.blake2b(np.array(sigmas).tobytes(), digest_size=4)
    told.update(answer.mean.tobytes())
    told.update(answer.var.tobytes())
    return told.digest()


@contextmanager
def _threads(count: int) -> Generator[None]:
    """Compute on so many threads: on others the last digits may differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(count, 1024))
    try:
        yield
    finally:
        torch.set_num_threads(before)
