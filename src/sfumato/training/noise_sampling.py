"""Where training looks: distributions of the noise level, and how a batch is drawn from one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.noise import F64, VP, NoiseLevels, SubVP


class Distribution(Protocol):
    """A distribution of sigma, p_train in EDM's words."""

    def quantile(self, u: Tensor) -> Tensor:
        """Return sigma [*] for u [*] in (0, 1), float64: uniform u gives draws of sigma."""
        ...

    def density(self, sigma: Tensor) -> Tensor:
        """Return the probability density over ln sigma at sigma [*], float64."""
        ...


@dataclass(frozen=True)
class LogNormal:
    """ln sigma ~ N(mean, std^2) (EDM Table 1: P_mean = -1.2, P_std = 1.2), tails not clipped."""

    mean: float = -1.2
    std: float = 1.2

    def quantile(self, u: Tensor) -> Tensor:
        """Return exp(mean + std * Phi^-1(u))."""
        return torch.exp(self.mean + self.std * torch.special.ndtri(u.to(F64)))

    def density(self, sigma: Tensor) -> Tensor:
        """Return the normal density at ln sigma."""
        z = (sigma.to(F64).log() - self.mean) / self.std
        return torch.exp(-0.5 * z**2) / (self.std * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class LogUniform:
    """ln sigma uniform between low and high: Score-SDE's VE with uniform time (EDM Table 1)."""

    low: float = 0.02
    high: float = 100.0

    def quantile(self, u: Tensor) -> Tensor:
        """Return low^(1 - u) * high^u."""
        return self.low * torch.exp(u.to(F64) * math.log(self.high / self.low))

    def density(self, sigma: Tensor) -> Tensor:
        """Return 1 / ln(high / low) between low and high, else 0."""
        inside = (sigma >= self.low) & (sigma <= self.high)
        return inside.to(F64) / math.log(self.high / self.low)


@dataclass(frozen=True)
class UniformTime:
    """Time uniform between the process's epsilon and 1 (Score-SDE's VP and sub-VP)."""

    process: VP | SubVP

    def quantile(self, u: Tensor) -> Tensor:
        """Return sigma(epsilon + (1 - epsilon) u)."""
        epsilon = self.process.epsilon
        return self.process.sigma(epsilon + (1 - epsilon) * u.to(F64))

    def density(self, sigma: Tensor) -> Tensor:
        """Return (dt / d ln sigma) / (1 - epsilon) inside the process's range, else 0."""
        limits = self.process.range
        with torch.enable_grad():
            log_sigma = sigma.detach().to(F64).log().requires_grad_()
            time = self.process.time(log_sigma.exp())
            (slope,) = torch.autograd.grad(time.sum(), log_sigma)
        inside = (sigma >= limits.low) & (sigma <= limits.high)
        return torch.where(inside, slope / (1 - self.process.epsilon), 0.0)


@dataclass(frozen=True, eq=False)
class UniformLevels:
    """Every level of a ladder equally likely (DDPM Algorithm 1, NCSN)."""

    levels: NoiseLevels

    def quantile(self, u: Tensor) -> Tensor:
        """Return the level of index floor(T u)."""
        count = len(self.levels)
        index = (u.to(F64) * count).long().clamp(0, count - 1)
        return self.levels.sigma[index]

    def density(self, sigma: Tensor) -> Tensor:
        """Return 1/T spread evenly over each level's cell in ln sigma, else 0.

        Cells meet half way between neighbours; the outer ones are symmetric about their level.
        A ladder of one level has a cell of width 1.
        """
        at = self.levels.sigma.log()
        count = len(at)
        middle = (at[1:] + at[:-1]) / 2
        first, last = (0.5, 0.5) if count == 1 else (middle[0] - at[0], at[-1] - middle[-1])
        borders = torch.cat([(at[0] - first)[None], middle, (at[-1] + last)[None]])
        where = sigma.to(F64).log().contiguous()
        cell = torch.searchsorted(borders, where) - 1
        inside = (cell >= 0) & (cell < count)
        return torch.where(inside, 1 / (count * borders.diff()[cell.clamp(0, count - 1)]), 0.0)


def draw(
    distribution: Distribution, count: int, generator: torch.Generator, *, antithetic: bool = True
) -> tuple[Tensor, Tensor]:
    """Return `count` noise levels and their importance weights, both [count], float64, on the host.

    antithetic: the levels' quantiles are (u + i / count) mod 1 with one uniform u, so that every
    batch covers the distribution evenly (Kingma et al. 2021, appendix I.1); otherwise they are
    independent. The weights multiply the loss and are 1 where levels come from `distribution`
    itself. `generator` belongs to the host.
    """
    if antithetic:
        u = torch.rand(1, dtype=F64, generator=generator)
        u = (u + torch.arange(count, dtype=F64) / count) % 1
    else:
        u = torch.rand(count, dtype=F64, generator=generator)
    # Strictly inside (0, 1), where every quantile is finite.
    u = u.clamp(2.0**-54, 1 - 2.0**-53)
    return distribution.quantile(u), torch.ones(count, dtype=F64)
