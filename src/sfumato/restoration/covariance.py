"""A denoiser bent to a measurement by a covariance of x0 that is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sfumato.protocols import Denoise
from sfumato.restoration.operators import conjugate_gradients
from sfumato.restoration.posterior import Measured


class Covariance(Protocol):
    """What is known of x0's covariance given x before a network is asked."""

    def __call__(self, v: Tensor, sigma: Tensor) -> Tensor:
        """Return the covariance times v [B, *data], for sigma [] or [B]."""
        ...


@dataclass(frozen=True, eq=False)
class CovarianceMatching:
    """The mean that explains y where x0 lies around D(x) with a covariance known beforehand.

    D + V A' (A V A' + std^2)^-1 (y - A D), a proximal step as in DiffPIR, and with V of the data's
    frequencies (`Spectral.covariance`) in place of a number: what is unknown hears of what is known
    as far as images hang together. Peng et al. 2024 ("Improving diffusion models for inverse
    problems using optimal posterior covariance") take V diagonal. Exact for Gaussian data that have
    V; the network is asked once and not differentiated. Conjugate gradients end after `rounds` or
    where the share `tolerance` is left. `least` is the smallest deviation of y that is believed.
    """

    covariance: Covariance
    rounds: int = 30
    tolerance: float = 1e-3
    least: float = 0.002

    def __call__(self, denoise: Denoise, measured: Measured, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean after the step."""
        mean, operator = denoise(x, sigma).mean, measured.operator
        floor = max(measured.std, self.least) ** 2

        def spread(v: Tensor) -> Tensor:
            return self.covariance(operator.adjoint(v), sigma)

        def apply(v: Tensor) -> Tensor:
            return operator(spread(v)) + floor * v

        rest = measured.rest(mean)
        return mean + spread(conjugate_gradients(apply, rest, self.rounds, self.tolerance))
