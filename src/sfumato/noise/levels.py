"""The ladders of discrete-time networks, and the range a denoiser may be asked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

F64 = torch.float64

# A ladder whose last level has zero signal-to-noise ratio stands for it by this finite sigma: the
# scaled input x / sqrt(1 + sigma^2) then differs from pure noise by 6e-5.
ZERO_SNR_SIGMA = 2.0**14


@dataclass(frozen=True, eq=False)
class NoiseRange:
    """The noise levels a denoiser may be asked at: low..high, or only `levels` (ascending)."""

    low: float
    high: float
    levels: Tensor | None = None

    def snap(self, sigmas: Tensor) -> Tensor:
        """Round sigmas to the nearest trained levels in log sigma; a continuous range only caps."""
        if self.levels is None:
            return sigmas.clamp(max=self.high)
        log_levels = self.levels.log()
        flat = sigmas.reshape(-1)
        nearest = (flat.clamp(min=1e-300).log()[:, None] - log_levels).abs().argmin(1)
        return torch.where(flat > 0, self.levels[nearest], flat).reshape(sigmas.shape)

    def check(self, sigmas: Tensor) -> None:
        """Raise ValueError, naming the nearest levels, where a sigma > 0 was not trained on.

        So it does for a sigma that is negative or not finite.
        """
        if not (sigmas.isfinite().all() and (sigmas >= 0).all()):
            raise ValueError("sigmas must be finite and not negative")
        asked = sigmas[sigmas > 0]
        slack = 1 + 1e-6
        outside = asked[(asked > self.high * slack) | (asked * slack < self.low)]
        if len(outside):
            raise ValueError(
                f"sigma {float(outside[0]):.6g} is outside the trained range "
                f"{self.low:.6g} to {self.high:.6g}; choose a grid within it"
            )
        if self.levels is None or not len(asked):
            return
        snapped = self.snap(asked)
        off = ((asked / snapped) - 1).abs() > 1e-6
        if off.any():
            worst = float(asked[off][0])
            raise ValueError(
                f"sigma {worst:.6g} is not a trained level; the nearest is "
                f"{float(snapped[off][0]):.6g}: use levels.descending(...), or "
                f"denoise.range.snap(grid) to round the grid, or an adapter that interpolates"
            )


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    """The ladder of noise levels a discrete-time network was trained on.

    `sigma` [T], ascending, float64: sigma[i] belongs to the network's integer time i.
    `scaled` tells whether the network sees x / sqrt(1 + sigma^2) (DDPM's x_t) or x itself (NCSN).
    Raises ValueError where sigma is not positive and strictly ascending.
    """

    sigma: Tensor
    scaled: bool = True
    zero_terminal: bool = False

    def __post_init__(self) -> None:
        sigma = self.sigma
        if sigma.ndim != 1 or not len(sigma) or sigma.dtype != F64 or not sigma.isfinite().all():
            raise ValueError("noise levels must be a non-empty, finite [T] tensor of float64")
        if not (sigma[0] > 0 and (sigma.diff() > 0).all()):
            raise ValueError("noise levels must be positive and strictly ascending")

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseLevels:
        """Make a ladder from DDPM's betas: sigma^2 = 1 / abar - 1, abar the product of 1 - beta.

        A last beta of 1 (zero terminal SNR) becomes the finite level ZERO_SNR_SIGMA, or four times
        the level below where that is higher.
        Raises ValueError unless 0 < beta <= 1, with 1 only at the end.
        """
        betas = betas.to(F64)
        if betas.ndim != 1 or not len(betas):
            raise ValueError(f"betas must be [T] with T of at least 1, not {[*betas.shape]}")
        if not ((betas > 0).all() and (betas <= 1).all() and (betas[:-1] < 1).all()):
            raise ValueError("betas must lie in (0, 1), the last one in (0, 1]")
        zero_terminal = bool(betas[-1] == 1)
        log_abar = torch.log1p(-betas).cumsum(0)
        sigma = torch.expm1(-log_abar).sqrt()
        if zero_terminal:
            sigma[-1] = max([ZERO_SNR_SIGMA, *(4 * sigma[-2:-1]).tolist()])
        return cls(sigma, zero_terminal=zero_terminal)

    @classmethod
    def geometric(cls, count: int, low: float, high: float) -> NoiseLevels:
        """Make NCSN's ladder: `count` levels in geometric progression, seen unscaled."""
        return cls(geometric_progression(count, low, high), scaled=False)

    def __len__(self) -> int:
        return len(self.sigma)

    @property
    def range(self) -> NoiseRange:
        """The range that admits exactly these levels."""
        return NoiseRange(float(self.sigma[0]), float(self.sigma[-1]), self.sigma)

    @property
    def prior_var(self) -> float:
        """Variance of x at the top: 1 + high^2 for a scaled (VP) ladder, high^2 otherwise."""
        return float(self.sigma[-1]) ** 2 + (1.0 if self.scaled else 0.0)

    def scale(self, sigma: Tensor) -> Tensor:
        """Return the factor between x and what the network sees."""
        return torch.rsqrt(1 + sigma**2) if self.scaled else torch.ones_like(sigma)

    def condition(self, sigma: Tensor) -> Tensor:
        """Return the network's time for these levels: the index 0..T-1 (as DDPM's code counts).

        Raises ValueError for a sigma that is not on the ladder.
        """
        flat = sigma.reshape(-1)
        index = _nearest(self.sigma, flat)
        # As a negation, so that NaN counts as off the ladder.
        if not ((flat / self.sigma[index] - 1).abs() <= 1e-6).all():
            self.range.check(flat)
            raise ValueError("sigma 0 has no index on the ladder")
        return index.to(F64).reshape(sigma.shape)

    def below(self, sigma: Tensor) -> Tensor:
        """Return the next lower level of each of these levels, 0 for the lowest.

        Raises ValueError for a sigma that is not on the ladder.
        """
        index = self.condition(sigma).long()
        return torch.where(index > 0, self.sigma[(index - 1).clamp(min=0)], 0.0)

    def descending(self, indices: Sequence[int] | None = None) -> Tensor:
        """Return the grid down from the highest of `indices` (default all) to 0."""
        return torch.cat([self._take(indices).flip(0), torch.zeros(1, dtype=F64)])

    def ascending(self, indices: Sequence[int] | None = None) -> Tensor:
        """Return the grid up from the lowest of `indices` (default all), for inversion."""
        return self._take(indices)

    def _take(self, indices: Sequence[int] | None) -> Tensor:
        return self.sigma if indices is None else self.sigma[sorted(set(indices))]


@dataclass(frozen=True)
class Interpolated:
    """A ladder's network asked between its levels: the time is interpolated in log sigma."""

    ladder: NoiseLevels

    @property
    def range(self) -> NoiseRange:
        """The ladder's range, without its levels."""
        return NoiseRange(float(self.ladder.sigma[0]), float(self.ladder.sigma[-1]))

    @property
    def prior_var(self) -> float:
        """As the ladder's."""
        return self.ladder.prior_var

    def scale(self, sigma: Tensor) -> Tensor:
        """As the ladder's."""
        return self.ladder.scale(sigma)

    def condition(self, sigma: Tensor) -> Tensor:
        """Return a fractional index."""
        levels, flat = self.ladder.sigma.log(), sigma.reshape(-1).log()
        upper = torch.searchsorted(levels, flat).clamp(1, len(levels) - 1)
        below, above = levels[upper - 1], levels[upper]
        return (upper - 1 + ((flat - below) / (above - below)).clamp(0, 1)).reshape(sigma.shape)


def geometric_progression(count: int, low: float, high: float) -> Tensor:
    """Return `count` levels ascending from low to high in geometric progression; one is `high`.

    Raises ValueError unless count >= 1 and 0 < low < high.
    """
    check_bounds(low, high)
    if count < 1:
        raise ValueError(f"a progression needs at least one level, not {count}")
    if count == 1:
        return torch.tensor([high], dtype=F64)
    ramp = torch.linspace(0, 1, count, dtype=F64)
    return torch.exp(math.log(low) + ramp * (math.log(high) - math.log(low)))


def check_bounds(low: float, high: float) -> None:
    """Raise ValueError unless 0 < low < high, both finite."""
    if not 0 < low < high < math.inf:
        raise ValueError(f"noise levels need 0 < low < high, both finite, not {low} and {high}")


def _nearest(levels: Tensor, sigma: Tensor) -> Tensor:
    upper = torch.searchsorted(levels, sigma.contiguous()).clamp(1, max(len(levels) - 1, 1))
    upper = upper.clamp(max=len(levels) - 1)
    lower = (upper - 1).clamp(min=0)
    return torch.where(sigma - levels[lower] < levels[upper] - sigma, lower, upper)
