"""Runge-Kutta solvers of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sfumato.diffusion import expand
from sfumato.protocols import Denoise
from sfumato.randomness import Noise


@dataclass(frozen=True)
class Euler:
    """Euler's method: order 1, one evaluation a step. It is DDIM with eta = 0 (DDIM eq. 13)."""

    order: int = field(default=1, init=False, repr=False)
    invertible: bool = field(default=True, init=False, repr=False)

    def start(self, x: Tensor, sigmas: Tensor) -> None:
        """Return no state."""

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: None,
        noise: Noise | None,
    ) -> tuple[Tensor, None]:
        """Walk along the slope at sigma."""
        keep = expand(sigma_next / sigma, x)
        return keep * x + (1 - keep) * denoise(x, sigma).mean, None


@dataclass(frozen=True)
class Heun:
    """The two-stage family of EDM Algorithm 3: order 2, 2 N - 1 evaluations for N steps to 0.

    alpha = 1 is Heun's method (EDM Algorithm 1), 1/2 the midpoint method, 2/3 Ralston's. The
    step to sigma = 0 is Euler's. Raises ValueError unless 0 < alpha <= 1.
    """

    alpha: float = 1.0
    order: int = field(default=2, init=False, repr=False)
    invertible: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"Heun's alpha lies in (0, 1], not {self.alpha}")

    def start(self, x: Tensor, sigmas: Tensor) -> None:
        """Return no state."""

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: None,
        noise: Noise | None,
    ) -> tuple[Tensor, None]:
        """Walk along a mean of the slopes at sigma and at sigma + alpha (sigma_next - sigma)."""
        x0 = denoise(x, sigma).mean
        if sigma_next == 0:
            return x0, None
        step = sigma_next - sigma
        middle = sigma + self.alpha * step
        slope = (x - x0) / expand(sigma, x)
        x_middle = x + expand(self.alpha * step, x) * slope
        slope_middle = (x_middle - denoise(x_middle, middle).mean) / expand(middle, x)
        second = 1 / (2 * self.alpha)
        return x + expand(step, x) * ((1 - second) * slope + second * slope_middle), None
