"""Score-SDE's continuous processes as functions of the noise level (Song et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.noise.levels import F64, NoiseRange, check_bounds


@dataclass(frozen=True)
class VP:
    """Score-SDE's variance-preserving process in EDM's form (EDM Table 1, column VP).

    sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1 for t in [epsilon, 1].
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon: float = 1e-5
    times: int = 1000

    def __post_init__(self) -> None:
        _check_times(self)

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise level at time t."""
        return torch.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """Return the time at which the noise level is sigma."""
        exponent = torch.log1p(sigma**2)
        return _time(exponent, self.beta_d, self.beta_min)

    @property
    def range(self) -> NoiseRange:
        """From sigma(epsilon) to sigma(1)."""
        low, high = self.sigma(torch.tensor([self.epsilon, 1.0], dtype=F64)).tolist()
        return NoiseRange(low, high)

    @property
    def prior_var(self) -> float:
        """1 + high^2: x_T is a unit Gaussian."""
        return 1 + self.range.high**2

    def scale(self, sigma: Tensor) -> Tensor:
        """Return 1 / sqrt(1 + sigma^2)."""
        return torch.rsqrt(1 + sigma**2)

    def condition(self, sigma: Tensor) -> Tensor:
        """Return (M - 1) t."""
        return (self.times - 1) * self.time(sigma)


@dataclass(frozen=True)
class SubVP:
    """Score-SDE's sub-VP process: x_t has mean factor exp(-B/2) and *standard deviation* 1-exp(-B).

    B(t) = beta_d t^2 / 2 + beta_min t, so sigma = 2 sinh(B / 2) (Score-SDE eq. 29).
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon: float = 1e-5
    times: int = 1000

    def __post_init__(self) -> None:
        _check_times(self)

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise level at time t."""
        return 2 * torch.sinh(0.5 * (0.5 * self.beta_d * t**2 + self.beta_min * t))

    def time(self, sigma: Tensor) -> Tensor:
        """Return the time at which the noise level is sigma."""
        exponent = 2 * torch.asinh(sigma / 2)
        return _time(exponent, self.beta_d, self.beta_min)

    @property
    def range(self) -> NoiseRange:
        """From sigma(epsilon) to sigma(1)."""
        low, high = self.sigma(torch.tensor([self.epsilon, 1.0], dtype=F64)).tolist()
        return NoiseRange(low, high)

    @property
    def prior_var(self) -> float:
        """exp(B(1)): x_T is taken for a unit Gaussian."""
        return float(self.scale(torch.tensor(self.range.high, dtype=F64))) ** -2

    def scale(self, sigma: Tensor) -> Tensor:
        """Return exp(-B / 2)."""
        return torch.exp(-torch.asinh(sigma / 2))

    def condition(self, sigma: Tensor) -> Tensor:
        """Return (M - 1) t."""
        return (self.times - 1) * self.time(sigma)


@dataclass(frozen=True)
class VE:
    """Score-SDE's variance-exploding process (EDM Table 1, column VE): the network sees x."""

    low: float = 0.02
    high: float = 100.0

    def __post_init__(self) -> None:
        check_bounds(self.low, self.high)

    @property
    def range(self) -> NoiseRange:
        """From low to high."""
        return NoiseRange(self.low, self.high)

    @property
    def prior_var(self) -> float:
        """high^2."""
        return self.high**2

    def scale(self, sigma: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(sigma)

    def condition(self, sigma: Tensor) -> Tensor:
        """Return ln(sigma / 2)."""
        return torch.log(sigma / 2)


def _check_times(process: VP | SubVP) -> None:
    p = process
    if not (0 <= p.beta_d < math.inf and 0 < p.beta_min < math.inf and 0 < p.epsilon < 1):
        raise ValueError(
            "the process needs finite beta_d >= 0, beta_min > 0 and 0 < epsilon < 1, not "
            f"{p.beta_d}, {p.beta_min} and {p.epsilon}"
        )


def _time(exponent: Tensor, beta_d: float, beta_min: float) -> Tensor:
    """Solve beta_d t^2 / 2 + beta_min t = exponent for t >= 0, without cancellation."""
    return 2 * exponent / (beta_min + (beta_min**2 + 2 * beta_d * exponent).sqrt())
