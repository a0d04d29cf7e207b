"""Guidance: two denoisers combined into one, so that every solver works with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.diffusion import expand
from sfumato.gaussian import Gaussian
from sfumato.noise import NoiseRange
from sfumato.protocols import Denoiser


@dataclass(frozen=True)
class Guided:
    """A conditional denoiser pushed away from an unconditional one (see `guide`)."""

    conditional: Denoiser
    unconditional: Denoiser
    scale: float
    low: float = 0.0
    high: float = math.inf

    @property
    def range(self) -> NoiseRange:
        """As the conditional denoiser's."""
        return self.conditional.range

    @property
    def prior(self) -> Gaussian:
        """As the conditional denoiser's."""
        return self.conditional.prior

    @property
    def decoder_var(self) -> Tensor | None:
        """As the conditional denoiser's."""
        return self.conditional.decoder_var

    def on(self, sigmas: Tensor) -> Guided:
        """Rebind both denoisers."""
        return replace(
            self,
            conditional=self.conditional.on(sigmas),
            unconditional=self.unconditional.on(sigmas),
        )

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        """Return the guided distribution, each image by its own sigma; var is the conditional's."""
        given = self.conditional(x, sigma)
        inside = (sigma > self.low) & (sigma <= self.high)
        if self.scale == 1 or not inside.any():
            return given
        free = self.unconditional(x, sigma).mean
        mean = free + self.scale * (given.mean - free)
        return Gaussian(torch.where(expand(inside, x) > 0, mean, given.mean), given.var)


def guide(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: float,
    *,
    low: float = 0.0,
    high: float = math.inf,
) -> Guided:
    """Return classifier-free guidance: mean = free + scale * (given - free), low < sigma <= high.

    scale = 1 is the conditional denoiser to the bit, 0 the unconditional one; larger is more
    typical of the condition and less varied (Ho & Salimans 2022, eq. 6, where w = scale - 1; the
    interval is that of Kynkaanniemi et al. 2024). Raises ValueError for a scale that is negative
    or not finite, or low > high.
    """
    if not (math.isfinite(scale) and scale >= 0) or not low <= high:
        raise ValueError(f"guidance needs scale >= 0 and low <= high, not {scale}, {low}, {high}")
    return Guided(conditional, unconditional, scale, low, high)
