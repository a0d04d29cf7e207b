"""What a model is worth at each noise level, measured once on images like those to be coded.

The variance a network has learned is taught by steps so small that it hardly matters there; a codec
takes large ones. So it is fitted again, level by level, as scale * var + extra: also for networks
that tell no variance at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.diffusion import add_noise, decoder_term
from sfumato.gaussian import Gaussian
from sfumato.noise import F64
from sfumato.protocols import Denoise
from sfumato.randomness import Noise, Purpose

_FIRST_STEP_BITS = 11.0
_STEP_SHARE = 0.05
_LN2 = math.log(2)


@dataclass(frozen=True)
class Profile:
    """Levels, descending, and of each: how its variance is corrected, and the picture's RMSE.

    `rmse` is per dimension, in [-1, 1]. `decoder` multiplies the variance at the lowest level for
    the discretised last step. `steps` are the places of the levels that few bits are sent through,
    and `bits` what a value of an image is expected to have cost when each is reached.
    """

    sigmas: tuple[float, ...]
    scale: tuple[float, ...]
    extra: tuple[float, ...]
    rmse: tuple[float, ...]
    decoder: float
    steps: tuple[int, ...]
    bits: tuple[float, ...]

    def variance(self, var: Tensor, sigma: float) -> Tensor:
        """Return the corrected variance at one of the levels."""
        place = self.sigmas.index(sigma)
        return self.scale[place] * var.clamp(min=0) + self.extra[place]

    def every(self, count: int) -> tuple[float, ...]:
        """Return about `count` of the levels, evenly taken, both ends among them."""
        last = len(self.sigmas) - 1
        places = torch.linspace(0, last, min(count, last + 1), dtype=F64).round().long()
        return tuple(self.sigmas[int(place)] for place in places.unique())


@torch.no_grad()
def measure_profile(
    denoise: Denoise,
    x0: Tensor,
    grid: Tensor,
    noise: Noise,
    *,
    half_bin: float,
    batch: int = 16,
    tick: Callable[[int], object] = lambda n: None,
) -> Profile:
    """Measure a denoiser on images x0 [n, *data] at every level of a grid, descending, above 0."""
    levels: list[tuple[Tensor, Tensor]] = []
    fits: list[tuple[float, float]] = []
    decoder = 1.0
    for index, sigma in enumerate(grid):
        here = noise.at(index).normal(x0.shape[1:], Purpose.BOUND, F64)
        x = add_noise(x0.to(F64), sigma, here)
        told = [denoise(part, sigma) for part in x.split(batch)]
        mean = torch.cat([one.mean for one in told]).to(F64)
        var = torch.cat([one.var.expand_as(one.mean) for one in told]).to(F64).clamp(min=0)
        square = (mean - x0).square()
        scale, extra = _fit(var, square)
        fits.append((scale, extra))
        corrected = scale * var + extra
        levels.append((square.flatten(1), corrected.flatten(1)))
        if index == len(grid) - 1:
            decoder = _decoder_scale(x0.to(F64), mean, corrected, half_bin)
        tick(len(x0))
    steps, bits = _steps(grid.tolist(), levels)
    return Profile(
        tuple(grid.tolist()),
        tuple(scale for scale, _ in fits),
        tuple(extra for _, extra in fits),
        tuple(float(square.mean()) ** 0.5 for square, _ in levels),
        decoder,
        tuple(steps),
        tuple(bits),
    )


def _fit(var: Tensor, square: Tensor) -> tuple[float, float]:
    """Return scale and extra for which squared errors are likeliest under N(0, scale var + extra).

    By coordinates, on logarithmic grids ever finer.
    """
    var, square = var.flatten(), square.flatten()
    if len(var) > 50_000:
        pick = torch.randperm(len(var), generator=torch.Generator().manual_seed(0))[:50_000]
        var, square = var[pick], square[pick]
    typical = float(square.mean().clamp(min=1e-14))
    own = float(var.mean())

    def cost(scale: float, extra: float) -> float:
        total = scale * var + extra
        return float((total.log() + square / total).mean())

    if own < 1e-9 * typical:
        return 1.0, typical
    scale, extra, width = typical / own, typical / 10, 3.0
    for _ in range(14):
        for trial in (math.exp(width), math.exp(-width)):
            if cost(scale * trial, extra) < cost(scale, extra):
                scale *= trial
            if cost(scale, extra * trial) < cost(scale, extra):
                extra *= trial
        width *= 0.75
    return scale, extra


def _decoder_scale(x0: Tensor, mean: Tensor, var: Tensor, half_bin: float) -> float:
    """Return the factor on the variance with which the discretised pixels are likeliest."""

    def cost(log_scale: float) -> float:
        part = Gaussian(mean, var * math.exp(log_scale))
        return float(decoder_term(x0, part, None, half_bin).mean())

    low, high = -6.0, 6.0
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(30):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if cost(a) < cost(b) else (a, high)
    return math.exp((low + high) / 2)


def _step_bits(sigma: float, s: float, level: tuple[Tensor, Tensor]) -> float:
    """Return the mean bits of an image for a step from sigma to s."""
    square, var = level
    keep = (s / sigma) ** 2
    gain = (1 - keep) / s**2
    u = gain * var
    nats = 0.5 * (torch.log1p(u) + (1 + gain * square) / (1 + u) - 1)
    return float(nats.sum(1).mean()) / _LN2


def _steps(
    sigmas: Sequence[float], levels: Sequence[tuple[Tensor, Tensor]]
) -> tuple[list[int], list[float]]:
    """Choose levels so that a step costs a chunk of bits at first, and ever more with what came.

    Steps of fewer bits would pay a chunk's overhead too often, steps of more lose against the
    bound, for pixels are not independent given the noisier image.
    """
    places, bits = [0], [0.0]
    while places[-1] < len(sigmas) - 1:
        here = places[-1]
        wanted = _FIRST_STEP_BITS + _STEP_SHARE * bits[-1]
        there = here + 1
        while (
            there + 1 < len(sigmas)
            and _step_bits(sigmas[here], sigmas[there + 1], levels[here]) < wanted
        ):
            there += 1
        bits.append(bits[-1] + _step_bits(sigmas[here], sigmas[there], levels[here]))
        places.append(there)
    return places, bits
