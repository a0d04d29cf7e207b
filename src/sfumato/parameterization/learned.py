"""Variances that the network learns, for each pixel and pair of neighbouring levels.

A reverse step from sigma to s has variance s^2 (1 - k) + (1 - k)^2 var, k = (s / sigma)^2, var that
of x0. Its published bounds are var = 0 (DDPM's beta-tilde) and the variance of unit Gaussian data
(its beta). At the first level there is no step: D's var is the discretised decoder's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.diffusion import expand, first_decoder_var
from sfumato.noise import F64, NoiseLevels
from sfumato.parameterization.adapted import Adapted, Head, Network
from sfumato.parameterization.predicts import predicts_noise


@dataclass(frozen=True)
class Between:
    """A fraction between the two bounds, in log space (Improved DDPM eq. 15).

    The output is 2 fraction - 1, not clamped, so var may leave the bounds and even be negative:
    only the step's variance is positive. At the first level, where the lower bound is 0, that is
    the second level's (Improved DDPM's code).
    """

    respaced: ClassVar[bool] = True

    def variance(self, out: Tensor, sigma: Tensor, levels: Tensor) -> Tensor:
        """Return s^2 (1 - k) expm1(fraction log(beta / beta-tilde)) / (1 - k)^2."""
        fraction = (out.to(F64) + 1) / 2
        s, first = _below(sigma, levels)
        keep = (s / sigma) ** 2
        unit = sigma**2 / (1 + sigma**2)
        span = torch.log1p((1 - keep) * unit / s**2)
        step = s**2 / (1 - keep)
        var = expand(step, fraction) * torch.expm1(fraction * expand(span, fraction))
        low, high = first_decoder_var(levels[0], levels[1]), unit
        decoder = torch.exp(
            fraction * expand(high.log(), fraction) + (1 - fraction) * expand(low.log(), fraction)
        )
        return torch.where(expand(first.to(F64), fraction) > 0, decoder, var)


@dataclass(frozen=True)
class Free:
    """The logarithm of the step's variance itself, in x_t's units (DDPM Table 2, "learned").

    It is that of the ladder's own step, from which the var of x0 follows for any other.
    """

    respaced: ClassVar[bool] = False

    def variance(self, out: Tensor, sigma: Tensor, levels: Tensor) -> Tensor:
        """Return the var of x0 whose step has variance exp(out) (1 + s^2)."""
        chosen = out.to(F64).exp()
        s, first = _below(sigma, levels)
        keep = (s / sigma) ** 2
        var = (chosen * expand(1 + s**2, chosen) - expand(s**2 * (1 - keep), chosen)) / expand(
            (1 - keep) ** 2, chosen
        )
        return torch.where(expand(first.to(F64), chosen) > 0, chosen, var)


def learned_variance(
    network: Network, levels: NoiseLevels, head: Head | None = None, *, of: Adapted | None = None
) -> Adapted:
    """Adapt a network with two outputs a channel: what it predicts, then its variance.

    `network(x_seen [B, C, *], level [B])` returns [B, 2 C, *]. `of` says what the first half is,
    the noise if not given; `head` what the second is, `Between()` if not given. The variance
    belongs to neighbours: of the ladder, or of the grid bound by `on` (Improved DDPM's respacing).
    Raises ValueError for a ladder of one level.
    """
    if len(levels.sigma) < 2:
        raise ValueError("a learned variance belongs to pairs of levels: a ladder of two at least")
    return replace(of or predicts_noise(network, levels), head=head or Between())


def _below(sigma: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next lower level, and whether there is none (then the level itself halved)."""
    place = torch.searchsorted(levels, sigma * (1 - 1e-9))
    first = place == 0
    return torch.where(first, sigma / 2, levels[(place - 1).clamp(min=0)]), first
