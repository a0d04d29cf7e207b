"""EDM's preconditioning (Karras et al. 2022, Table 1, last column, and section 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.noise import NoiseRange, check_bounds
from sfumato.parameterization.adapted import Adapted, Network, Variance, zero_variance


@dataclass(frozen=True)
class EDMProcess:
    """EDM's preconditioning: c_in = 1 / sqrt(sigma^2 + sigma_data^2), c_noise = ln(sigma) / 4."""

    sigma_data: float = 0.5
    low: float = 0.002
    high: float = 80.0

    def __post_init__(self) -> None:
        check_bounds(self.low, self.high)
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be above 0 and finite, not {self.sigma_data}")

    @property
    def range(self) -> NoiseRange:
        """From low to high."""
        return NoiseRange(self.low, self.high)

    @property
    def prior_var(self) -> float:
        """high^2 (EDM's choice; exact would be high^2 + sigma_data^2)."""
        return self.high**2

    def scale(self, sigma: Tensor) -> Tensor:
        """Return c_in."""
        return torch.rsqrt(sigma**2 + self.sigma_data**2)

    def condition(self, sigma: Tensor) -> Tensor:
        """Return c_noise."""
        return sigma.log() / 4


def edm_preconditioned(
    network: Network,
    sigma_data: float = 0.5,
    *,
    low: float = 0.002,
    high: float = 80.0,
    var: Variance = zero_variance,
) -> Adapted:
    """Adapt a network trained with EDM's preconditioning (EDM Table 1, last column).

    `network(c_in x [B, *data], c_noise [B])` returns [B, *data]; sigma_data is the standard
    deviation of the data, low..high the range of sigma it may be asked at.
    """

    def coefficients(sigma: Tensor) -> tuple[Tensor, Tensor]:
        total = sigma**2 + sigma_data**2
        return sigma_data**2 / total, sigma * sigma_data * torch.rsqrt(total)

    return Adapted(network, EDMProcess(sigma_data, low, high), coefficients, var)
