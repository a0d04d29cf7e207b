"""Rate against distortion of progressive coding: what every level costs and what it shows.

DDPM's Figure 5 and Table 4: after the steps down to a level are received, the rate is the sum of
their terms, and the distortion the error of D's mean there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.diffusion import bits_per_dim
from sfumato.likelihood.elbo import Bound

HALF_RANGE = 127.5
"""From [-1, 1] to the 0..255 scale of DDPM's RMSE."""


@dataclass(frozen=True, eq=False)
class RateDistortion:
    """Means over images at every level of a grid, the highest first: [N] each.

    `rate`: bits per dimension received when x at the level is known; `distortion`: RMSE of the
    prediction there, on the 0..255 scale. `lossless` is the whole bound, `last` the decoder's part.
    """

    sigmas: Tensor
    rate: Tensor
    distortion: Tensor
    lossless: float
    last: float


def rate_distortion(bound: Bound) -> RateDistortion:
    """Return the curve of a bound of which every level was asked (`elbo`).

    Raises ValueError for an estimate from some levels only.
    """
    if bool(bound.error.isnan().any()):
        raise ValueError("a rate-distortion curve needs every level: use elbo, not estimate_elbo")
    received = torch.cat([bound.prior[:, None], bound.levels], 1).cumsum(1)
    size = bound.dimensions
    squared = bound.error.mean(0) / size
    return RateDistortion(
        bound.sigmas,
        bits_per_dim(received.mean(0), size),
        HALF_RANGE * squared.sqrt(),
        float(bound.bits_per_dim.mean()),
        float(bound.decoder.mean()) / (size * math.log(2)),
    )
