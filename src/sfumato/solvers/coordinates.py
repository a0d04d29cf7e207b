"""Coordinates in which a solver may walk: x' = s(t) x at the level sigma(t), with steps in t.

The first two rows of EDM's Table 1. What is solved is the same flow, in other coordinates; only the
error of finite steps differs. Grids (the table's third row) are in `sfumato.noise`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Coordinates(Protocol):
    """A noise level and a scale as functions of a time t >= 0, and their derivatives.

    The flow is dx'/dt = sigma_rate s (x - D(x, sigma)) / sigma + s_rate x, x = x' / s
    (EDM eq. 4 and 81).
    """

    def time(self, sigma: float) -> float:
        """Return the t at which the noise level is sigma."""
        ...

    def sigma(self, t: float) -> float:
        """Return the noise level at t."""
        ...

    def sigma_rate(self, t: float) -> float:
        """Return the derivative of `sigma` at t > 0."""
        ...

    def scale(self, t: float) -> float:
        """Return s(t)."""
        ...

    def scale_rate(self, t: float) -> float:
        """Return the derivative of `scale` at t."""
        ...


@dataclass(frozen=True)
class Identity:
    """sigma = t, s = 1: EDM's own choice and, in EDM's form, that of Improved DDPM and DDIM."""

    def time(self, sigma: float) -> float:
        """Return sigma."""
        return sigma

    def sigma(self, t: float) -> float:
        """Return t."""
        return t

    def sigma_rate(self, t: float) -> float:
        """Return 1."""
        return 1.0

    def scale(self, t: float) -> float:
        """Return 1."""
        return 1.0

    def scale_rate(self, t: float) -> float:
        """Return 0."""
        return 0.0


@dataclass(frozen=True)
class VarianceExploding:
    """sigma = sqrt(t), s = 1 (EDM Table 1, column VE).

    A step of Euler's to t = 0 takes away only half of the noise that is left: so it is published.
    """

    def time(self, sigma: float) -> float:
        """Return sigma^2."""
        return sigma**2

    def sigma(self, t: float) -> float:
        """Return sqrt(t)."""
        return math.sqrt(t)

    def sigma_rate(self, t: float) -> float:
        """Return 1 / (2 sigma)."""
        return 0.5 / math.sqrt(t)

    def scale(self, t: float) -> float:
        """Return 1."""
        return 1.0

    def scale_rate(self, t: float) -> float:
        """Return 0."""
        return 0.0


@dataclass(frozen=True)
class VariancePreserving:
    """sigma^2 = exp(B(t)) - 1, s = exp(-B(t) / 2), B = growth t^2 / 2 + rate t (EDM Table 1, VP).

    `rate` and `growth` are EDM's beta_min and beta_d. x' has unit variance where the data do.
    Near t = 0 sigma is like sqrt(t), so the step to 0 is as in `VarianceExploding`.
    Raises ValueError unless rate > 0 and growth >= 0.
    """

    rate: float = 0.1
    growth: float = 19.9

    def __post_init__(self) -> None:
        if not (0 < self.rate < math.inf and 0 <= self.growth < math.inf):
            raise ValueError(
                f"the process needs rate > 0 and growth >= 0, not {self.rate} and {self.growth}"
            )

    def time(self, sigma: float) -> float:
        """Solve B(t) = log(1 + sigma^2), without cancellation."""
        total = math.log1p(sigma**2)
        return 2 * total / (self.rate + math.sqrt(self.rate**2 + 2 * self.growth * total))

    def sigma(self, t: float) -> float:
        """Return sqrt(exp(B) - 1)."""
        return math.sqrt(math.expm1(self._total(t)))

    def sigma_rate(self, t: float) -> float:
        """Return B' (sigma + 1 / sigma) / 2."""
        sigma = self.sigma(t)
        return 0.5 * (self.rate + self.growth * t) * (sigma + 1 / sigma)

    def scale(self, t: float) -> float:
        """Return exp(-B / 2) = 1 / sqrt(1 + sigma^2)."""
        return math.exp(-0.5 * self._total(t))

    def scale_rate(self, t: float) -> float:
        """Return -B' s / 2."""
        return -0.5 * (self.rate + self.growth * t) * self.scale(t)

    def _total(self, t: float) -> float:
        return (0.5 * self.growth * t + self.rate) * t


IDENTITY = Identity()
