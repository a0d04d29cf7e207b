"""What stochastic solvers share: asking for noise, and a process's scale."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from sfumato.noise import NoiseRange
from sfumato.protocols import Denoise
from sfumato.randomness import Noise, Purpose


class Scaled(Protocol):
    """A process of which the network sees scale(sigma) x: a ladder, `VP`, `SubVP`, `VE`."""

    def scale(self, sigma: Tensor) -> Tensor:
        """Return the factor between x and what the network sees."""
        ...


def needed(noise: Noise | None) -> Noise:
    """Return the noise; raises ValueError where there is none."""
    if noise is None:
        raise ValueError("this solver draws fresh noise: pass noise=noise_for(seed, count)")
    return noise


def fresh(noise: Noise | None, x: Tensor, sigma: Tensor, s: Tensor, heat: float = 1.0) -> Tensor:
    """Return a transition's noise on the clock sigma^(-2 heat), on which the SDE's is Brownian.

    heat = 1 is the reverse SDE: x / sigma^2 then moves by D d(clock) + dW. Raises ValueError where
    there is no noise.
    """
    start, end = float(sigma) ** (-2 * heat), float(s) ** (-2 * heat)
    return needed(noise).between(x, Purpose.TRANSITION, start, end)


def trained(denoise: Denoise, sigmas: Tensor) -> Tensor:
    """Round levels to those of a ladder, and cap them, where the denoiser tells its range."""
    limits = getattr(denoise, "range", None)
    return limits.snap(sigmas) if isinstance(limits, NoiseRange) else sigmas


def score(x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Return the gradient of log p(x) at sigma, (D - x) / sigma^2 (Tweedie's formula)."""
    return (x0 - x) / float(sigma) ** 2


def positive(name: str, number: float) -> None:
    """Raise ValueError, naming it, for a number that is not above 0 and finite."""
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, not {number}")
