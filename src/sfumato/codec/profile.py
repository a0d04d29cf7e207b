"""What a model is worth at each noise level, measured once on images like those to be coded.

The variance a network has learned is taught by steps so small that it hardly matters there; a codec
takes large ones. So it is fitted again, level by level, as scale * var + extra: also for networks
that tell no variance at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.diffusion import add_noise
from sfumato.errors import CodecError
from sfumato.gaussian import Gaussian
from sfumato.likelihood.search import golden_section
from sfumato.noise import F64
from sfumato.protocols import Denoise
from sfumato.randomness import Noise, Purpose

_FIRST_BITS = 13.0
"""What the first steps are to cost: a chunk that is searched for among 2^20 candidates."""
_STEP_SHARE, _HARDLY = 0.05, 0.003
_STEP_DOWN = 0.8
"""Variances are fitted for steps to so much of a level."""
_LN2 = math.log(2)


@dataclass(frozen=True)
class Profile:
    """Levels, descending, and of each: how its variance is corrected, and the picture's RMSE.

    `rmse` is per dimension, in [-1, 1]. `decoder` multiplies the variance at the lowest level for
    the discretised last step. `steps` are the places of the levels that few bits are sent through,
    and `bits` what an image is expected to have cost when each is reached. Raises ValueError where
    these do not fit together.
    """

    sigmas: tuple[float, ...]
    scale: tuple[float, ...]
    extra: tuple[float, ...]
    rmse: tuple[float, ...]
    decoder: float
    steps: tuple[int, ...]
    bits: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.sigmas)
        alike = len(self.scale) == len(self.extra) == len(self.rmse) == count >= 2
        places = (0 <= a < b for a, b in pairwise(self.steps))
        good = (
            alike
            and all(a > b > 0 for a, b in pairwise(self.sigmas))
            and all(map(math.isfinite, (*self.scale, *self.extra, *self.rmse, *self.bits)))
            and min(*self.scale, *self.extra) >= 0
            and 0 < self.decoder < math.inf
            and len(self.steps) == len(self.bits) >= 2
            and (self.steps[0], self.steps[-1]) == (0, count - 1)
            and all(places)
        )
        if not good:
            raise ValueError("this profile of a model does not fit together")

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
    device: torch.device | str = "cpu",
    tick: Callable[[int], object] = lambda n: None,
) -> Profile:
    """Measure a denoiser on images x0 [n, *data] at the levels of a grid, descending, above 0.

    Levels so low that the pixels' own steps are coarser than the noise are left out: to tell them
    apart would cost bits that pixels do not have. `tick` is told of every level. Raises CodecError
    for an answer that is not finite.
    """
    levels: list[_Level] = []
    for index, sigma in enumerate(grid):
        here = noise.at(index).normal(x0.shape[1:], Purpose.BOUND, F64)
        x = add_noise(x0.to(F64), sigma, here)
        told = [denoise(part.to(device), sigma) for part in x.split(batch)]
        mean = torch.cat([one.mean for one in told]).to(device="cpu", dtype=F64)
        var = torch.cat([one.var.expand_as(one.mean) for one in told]).to(mean).clamp(min=0)
        if not (mean.isfinite().all() and var.isfinite().all()):
            raise CodecError(f"the network's answer at sigma {float(sigma):.6g} is not finite")
        square = (mean - x0).square()
        gain = ((1 / _STEP_DOWN) ** 2 - 1) / float(sigma) ** 2
        scale, extra = _fit(var, square, gain)
        corrected = scale * var + extra
        decoder, last_bits = _decoder(x0.to(F64), mean, corrected, half_bin)
        errors, spread = square.flatten(1).float(), corrected.flatten(1).float()
        levels.append(_Level(float(sigma), errors, spread, scale, extra, decoder, last_bits))
        tick(1)
    levels = levels[: _lowest(levels) + 1]
    steps, bits = _steps(levels)
    return Profile(
        tuple(level.sigma for level in levels),
        tuple(level.scale for level in levels),
        tuple(level.extra for level in levels),
        tuple(float(level.square.mean()) ** 0.5 for level in levels),
        levels[-1].decoder,
        tuple(steps),
        tuple(bits),
    )


@dataclass(frozen=True, eq=False)
class _Level:
    """What was seen at a level: squared errors and corrected variances [n, d], and what they fit.

    `last_bits` is what an image's pixels cost where this is the last level.
    """

    sigma: float
    square: Tensor
    var: Tensor
    scale: float
    extra: float
    decoder: float
    last_bits: float


def _fit(var: Tensor, square: Tensor, gain: float) -> tuple[float, float]:
    """Return scale and extra of the variance, scale var + extra, with which a step costs least.

    `square` are the errors, squared; `gain` is 1 / s^2 - 1 / sigma^2 of the step. By coordinates,
    on logarithmic grids ever finer.
    """
    var, square = var.flatten(), square.flatten()
    if len(var) > 50_000:
        pick = torch.randperm(len(var), generator=torch.Generator().manual_seed(0))[:50_000]
        var, square = var[pick], square[pick]
    typical = float(square.mean().clamp(min=1e-14))
    own = float(var.mean())
    seen = 1 + gain * square

    def cost(scale: float, extra: float) -> float:
        told = 1 + gain * (scale * var + extra)
        return float((told.log() + seen / told).mean())

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


def _decoder(x0: Tensor, mean: Tensor, var: Tensor, half_bin: float) -> tuple[float, float]:
    """Return the factor on the variance with which the pixels are likeliest, and bits an image."""
    parts = [part.flatten() for part in (x0, mean, var)]
    size = len(parts[0])
    if size > 20_000:
        pick = torch.randperm(size, generator=torch.Generator().manual_seed(1))[:20_000]
        parts = [part[pick] for part in parts]
    pixels, at, spread = parts

    def cost(log_scale: float) -> float:
        part = Gaussian(at, spread * math.exp(log_scale))
        return -float(part.log_mass(pixels, half_bin).mean())

    best = golden_section(cost, -6.0, 6.0, rounds=22)
    return math.exp(best), cost(best) * x0[0].numel() / _LN2


def _step_bits(level: _Level, s: float) -> float:
    """Return the mean bits of an image for a step from a level down to s."""
    keep = (s / level.sigma) ** 2
    gain = (1 - keep) / s**2
    u = gain * level.var
    nats = 0.5 * (torch.log1p(u) + (1 + gain * level.square) / (1 + u) - 1)
    return float(nats.sum(1, dtype=F64).mean()) / _LN2


def _lowest(levels: Sequence[_Level]) -> int:
    """Return the lowest level where levels and pixels together cost hardly more than the least."""
    costs, spent = [math.inf], 0.0
    for here, there in pairwise(levels):
        spent += _step_bits(here, there.sigma)
        costs.append(spent + there.last_bits)
    enough = min(costs) * (1 + _HARDLY)
    return max(place for place, cost in enumerate(costs) if cost <= enough)


def _steps(levels: Sequence[_Level]) -> tuple[list[int], list[float]]:
    """Choose levels so that a step costs a chunk of bits at first, and ever more with what came.

    Steps of fewer bits would pay a chunk's overhead too often, steps of more lose against the
    bound, for pixels are not independent given the noisier image.
    """
    places, bits = [0], [0.0]
    while places[-1] < len(levels) - 1:
        here = places[-1]
        wanted = _FIRST_BITS + _STEP_SHARE * bits[-1]
        costs = [_step_bits(levels[here], level.sigma) for level in levels[here + 1 :]]
        # The nearest to what is wanted.
        far = next((i for i, cost in enumerate(costs) if cost > wanted), len(costs) - 1)
        if far and costs[far] * costs[far - 1] > wanted**2:
            far -= 1
        there = here + 1 + far
        bits.append(bits[-1] + _step_bits(levels[here], levels[there].sigma))
        places.append(there)
    return places, bits
