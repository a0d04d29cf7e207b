"""One page of probability: x = x0 + sigma * noise, its posteriors, and the terms of the bound."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.gaussian import Gaussian, per_example
from sfumato.placement import to_like

Mass = Callable[[Gaussian, Tensor, float], Tensor]
"""The log probability of the bin around x, element by element: of (gaussian, x, half_bin)."""


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Give per-image numbers ([] or [B]) the rank, dtype and device of a batch [B, *data]."""
    if values.ndim:
        values = values.reshape(-1, *[1] * (like.ndim - 1))
    return to_like(values, like)


def add_noise(x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return x0 + sigma * noise; sigma [] or [B] in data units.

    DDPM's x_t is this divided by sqrt(1 + sigma^2) (DDPM eq. 4).
    """
    return torch.addcmul(x0, expand(sigma, x0), noise)


def posterior(x0: Tensor, x: Tensor, sigma: Tensor, s: Tensor) -> Gaussian:
    """Return q(x_s | x_sigma, x0) for s < sigma (DDPM eq. 6-7; sigmas [] or [B], float64)."""
    keep = (s / sigma) ** 2
    mean = torch.addcmul(expand(1 - keep, x) * x0, expand(keep, x), x)
    return Gaussian(mean, expand(s**2 * (1 - keep), x))


def transition(x0: Gaussian, x: Tensor, sigma: Tensor, s: Tensor) -> Gaussian:
    """Return p(x_s | x_sigma) for s < sigma: the posterior averaged over x0 | x_sigma.

    DDPM eq. (1) with x_t = x / sqrt(1 + sigma^2). x0.var = 0 gives the paper's beta-tilde
    ("fixed small"), sigma^2 / (1 + sigma^2) its beta ("fixed large"); a learned one lies between.
    """
    keep = (s / sigma) ** 2
    mean = torch.addcmul(expand(1 - keep, x) * x0.mean, expand(keep, x), x)
    var = expand(s**2 * (1 - keep), x) + expand((1 - keep) ** 2, x) * to_like(x0.var, x)
    return Gaussian(mean, var)


def prior_term(x0: Tensor, sigma: Tensor, prior: Gaussian) -> Tensor:
    """Return KL(q(x_T | x0) || p(x_T)) in nats per example, [B] (DDPM eq. 5, L_T)."""
    q = Gaussian(x0, expand(sigma**2, x0))
    p = Gaussian(prior.mean.to(x0), prior.var.to(x0))
    return per_example(q.kl(p).expand(x0.shape))


def level_term(x0: Tensor, x: Tensor, x0_given_x: Gaussian, sigma: Tensor, s: Tensor) -> Tensor:
    """Return KL(q(x_s | x, x0) || p(x_s | x)) in nats per example, [B] (DDPM eq. 5, L_{t-1}).

    Where the denoiser models no variance it is (1/s^2 - 1/sigma^2) / 2 * |x0 - mean|^2.
    """
    q = posterior(x0, x, sigma, s)
    p = transition(x0_given_x, x, sigma, s)
    return per_example(q.kl(p).expand(x0.shape))


def decoder_term(
    x0: Tensor,
    x0_given_x: Gaussian,
    decoder_var: Tensor | None,
    half_bin: float,
    mass: Mass = Gaussian.log_mass,
) -> Tensor:
    """Return -log p(x0 | x_1) in nats per example, [B]: the discretised decoder of DDPM eq. (13).

    `half_bin` is half the distance of two neighbouring pixel values (1/255 for 8 bits); without a
    decoder_var it is that of x0_given_x. `mass` is exact or, for parity with published code,
    `tanh_log_mass`. Raises ValueError unless the variance ([] or [B], data
    units squared) is above 0.
    """
    if decoder_var is None:
        return -per_example(mass(x0_given_x, x0, half_bin))
    if not (decoder_var > 0).all():
        raise ValueError(
            f"the decoder's variance must be above 0, not {float(decoder_var.min()):g}: take that "
            "of a ladder or grid (denoise.on(sigmas).decoder_var) or fit one on held-out images"
        )
    decoder = Gaussian(x0_given_x.mean, expand(decoder_var, x0))
    return -per_example(mass(decoder, x0, half_bin))


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Convert nats per example into bits per dimension: the one place where that is done."""
    return nats / (dimensions * math.log(2))


def first_decoder_var(first: Tensor, second: Tensor) -> Tensor:
    """Return DDPM's variance of the last step, beta-tilde of the second level of a ladder.

    `first` and `second` are the two lowest sigmas above 0. (Ho et al. 2020, section 3.3 and code.)
    """
    keep = (first / second) ** 2
    return first**2 * (1 - keep) / (1 + first**2)
