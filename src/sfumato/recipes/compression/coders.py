"""What codes and decodes a file of a model, and what says that the file is this model's."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from sfumato.codec import Asker, Header, Lattice, Lossless, Lossy, Profile
from sfumato.errors import CodecError
from sfumato.recipes.model import Model, RawImages
from sfumato.sampling import prior_std


def lossless_of(model: Model, profile: Profile, header: Header) -> Lossless:
    """Return what codes and decodes a bits-back file."""
    lattice = Lattice(profile.every(header.levels))
    asker = _asker(model, profile, header)
    return Lossless(asker, lattice, header.top, prior_std(model.denoiser, lattice.sigmas[0]))


def walker_of(model: Model, profile: Profile, header: Header) -> Lossy:
    """Return what codes and decodes the levels of a lossy or staged file."""
    sigmas = [profile.sigmas[place] for place in profile.steps[: header.levels + 1]]
    std = prior_std(model.denoiser, sigmas[0])
    return Lossy(_asker(model, profile, header), sigmas, std, header.search)


def _asker(model: Model, profile: Profile, header: Header) -> Asker:
    batch = min(header.batch, header.count)
    return Asker(model.denoiser, profile, header.shape, batch, model.device)


def named(model: Model, profile: Profile, header: Header, images: RawImages) -> Header:
    """Return a header that says what the file belongs to, and what it decodes to."""
    return replace(
        header,
        model=_hash(model, profile),
        probe=_probe(model, profile, header),
        pixels=zlib.crc32(little_endian(images)),
    )


def _hash(model: Model, profile: Profile) -> bytes:
    """What decides how a file decodes, named one by one: new options must not change it."""
    r, p, f = model.recipe, model.recipe.process, model.format
    facts: list[object] = [model.fingerprint, r.predicts, r.variance]
    facts += [p.kind, p.steps, p.betas, p.low, p.high, p.sigma_data, p.zero_terminal_snr]
    facts += [f.shape, str(f.dtype), float(f.low), float(f.high)]
    facts += [profile.sigmas, profile.scale, profile.extra, profile.decoder, profile.steps]
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).digest()


def _probe(model: Model, profile: Profile, header: Header) -> bytes:
    """What this machine computes: the network's answer at one level."""
    ask = _asker(model, profile, header)
    d = math.prod(header.shape)
    x = np.random.Generator(np.random.Philox(1)).standard_normal((ask.batch, d))
    answer = ask(x, profile.sigmas[len(profile.sigmas) // 2])
    told = hashlib.blake2b(answer.mean.tobytes(), digest_size=4)
    told.update(answer.var.tobytes())
    return told.digest()


def little_endian(images: RawImages) -> bytes:
    """Return pixels as bytes, on any machine the same."""
    return images.astype(images.dtype.newbyteorder("<")).tobytes()


@contextmanager
def opened(model: Model, profile: Profile, header: Header) -> Generator[None]:
    """Check that a file is this model's and decodes here, and compute on its number of threads."""
    if header.model != _hash(model, profile):
        raise CodecError(
            "this file was made with another model, another checkpoint of it, or after preparing "
            "it otherwise: decompress it with the one that compressed it"
        )
    form = model.format
    wanted = (form.shape, str(form.dtype), int(form.low), (form.levels or 0) - 1)
    most = len(profile.sigmas) if header.kind == "bits-back" else len(profile.steps) - 1
    if wanted != (header.shape, header.dtype, header.low, header.top) or header.levels > most:
        raise CodecError(f"this file's images are not the model's, {form.describe()}")
    before = torch.get_num_threads()
    torch.set_num_threads(header.threads)
    try:
        if header.probe != _probe(model, profile, header):
            raise CodecError(
                "this machine computes other last digits than the one this file was made on, and "
                "would decode it into noise: use the same kind of processor and versions, and a "
                "C++ compiler if that one had one"
            )
        yield
    finally:
        torch.set_num_threads(before)
