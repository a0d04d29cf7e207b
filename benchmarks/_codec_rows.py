"""What `codec.py` measures besides sizes: times, searches, files there and back, and bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _shared import Uint8
from torch import Tensor

from sfumato.gaussian import Gaussian
from sfumato.likelihood import elbo
from sfumato.randomness import noise_for
from sfumato.recipes.compression import Effort, Packed

Timed = Callable[..., tuple[Packed, float, float]]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A denoiser with the variance that the codec takes for it, on the codec's levels."""

    denoise: object
    profile: object

    def __getattr__(self, name: str) -> object:
        return getattr(self.denoise, name)

    @property
    def decoder_var(self) -> None:
        return None

    def on(self, sigmas: Tensor) -> Calibrated:
        return self

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        answer = self.denoise(x, sigma)  # type: ignore[operator]
        var = answer.var.expand_as(answer.mean)
        level = float(sigma.reshape(-1)[0])
        right = self.profile.variance(var, level)  # type: ignore[attr-defined]
        if level == self.profile.sigmas[-1]:  # type: ignore[attr-defined]
            right = right * self.profile.decoder  # type: ignore[attr-defined]
        return Gaussian(answer.mean, right)


def payload(packed: Packed) -> float:
    return sum(map(len, packed.container.sections)) / len(packed.images)


def load_more(data: Path, count: int) -> Uint8:
    """Images as [n, C, H, W]."""
    plain = np.load(data)[:count]
    return np.ascontiguousarray(plain[:, None] if plain.ndim == 3 else plain.transpose(0, 3, 1, 2))


def searches(timed: Timed, model: object, profile: object, raw: Uint8, x0: Tensor) -> list[str]:
    """A row for each number of candidates."""
    quality = (len(profile.steps) - 1) // 2  # type: ignore[attr-defined]
    same = step_bytes(model, profile, x0, quality)
    rows: list[str] = []
    for search in (12, 14, 16, 18, 20, 22):
        packed, up, down = timed(raw[:16], quality=quality, effort=Effort(search=search))
        size = payload(packed)
        rows.append(f"| 2^{search} | {size:.1f} | {size / same:.2f} | {up:.2f} | {down:.2f} |")
    return rows


def sizes(timed: Timed, raw: Uint8, profile: object) -> list[str]:
    """A row for each number of images in a file."""
    most = len(profile.steps) - 1  # type: ignore[attr-defined]
    rows: list[str] = []
    for count in (1, 4, 16, 64):
        cells = [
            "{1:.2f}, {2:.2f}".format(*timed(raw[:count], **how))
            for how in ({"quality": most // 2}, {"quality": most}, {})
        ]
        rows.append(f"| {count} | " + " | ".join(cells) + " |")
    return rows


def there_and_back(timed: Timed, raw: Uint8, profile: object) -> list[str]:
    """What was checked of many images: each decode equals what its coder says, to the byte."""
    quality = round(0.6 * (len(profile.steps) - 1))  # type: ignore[attr-defined]
    without, up, down = timed(raw)
    assert (without.images == raw).all()
    lossy, lossy_up, lossy_down = timed(raw, quality=quality, effort=Effort(search=16))
    return [
        "## There and back",
        "",
        f"{len(raw)} images: without loss all pixels came back "
        f"({8 * payload(without) / raw[0].size:.3f} bits a value, {up:.2f} and {down:.2f} s an "
        f"image); of quality {quality} ({payload(lossy):.0f} bytes an image, {lossy_up:.2f} and "
        f"{lossy_down:.2f} s, 2^16 candidates) all pictures are their coder's to the byte.",
        "",
    ]


def elbo_of(model: object, profile: object, x0: Tensor) -> Tensor:
    """The bound [n] with the corrected variance on the profile's levels, without the prior."""
    denoise = Calibrated(model.denoiser, profile)  # type: ignore[attr-defined]
    grid = torch.tensor(profile.sigmas, dtype=torch.float64)  # type: ignore[attr-defined]
    bound = elbo(denoise, x0, grid, noise_for(0, len(x0)))
    return bound.levels.sum(1) + bound.decoder


def step_bytes(model: object, profile: object, x0: Tensor, quality: int) -> float:
    """Bytes an image that the bound gives to the levels of a quality."""
    denoise = Calibrated(model.denoiser, profile)  # type: ignore[attr-defined]
    places = profile.steps[: quality + 1]  # type: ignore[attr-defined]
    grid = torch.tensor([profile.sigmas[p] for p in places], dtype=torch.float64)  # type: ignore[attr-defined]
    bound = elbo(denoise, x0, grid, noise_for(0, len(x0)))
    return float(bound.levels.sum(1).mean()) / math.log(2) / 8
