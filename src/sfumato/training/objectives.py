"""What training minimises: weights over sigma on one squared error, and the bound itself.

Every objective asks the same D, so each trains every parameterization. Weights stand in front of
the mean squared error of D in data units; w = 1 / sigma^2 is the signal-to-noise ratio.

| objective         | weight                          | as a mean squared error it is that of |
|-------------------|---------------------------------|---------------------------------------|
| `Simple`          | 1 / sigma^2                     | the noise (DDPM eq. 14)               |
| `PlainX0`         | 1                               | x0                                    |
| `TruncatedSNR`    | max(1 / sigma^2, 1)             | the worse of both                     |
| `V`               | 1 / sigma^2 + 1                 | v                                     |
| `MinSNR`          | min(1 / sigma^2, gamma)         |                                       |
| `EDM`             | (sigma^2 + sd^2) / (sigma sd)^2 | EDM's F                               |
| `ContinuousBound` | 1 / (sigma^2 p(ln sigma))       | (the bound in continuous time)        |
| `DDIMBound`       | T gamma_t / sigma^2             | (DDIM's J_sigma)                      |
| `MeanError`       | ((1 - k) scale(s))^2            | the mean of x_{t-1} (DDPM's mu tilde) |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.diffusion import (
    add_noise,
    bits_per_dim,
    decoder_term,
    expand,
    first_decoder_var,
    level_term,
)
from sfumato.gaussian import Gaussian
from sfumato.noise import NoiseLevels
from sfumato.placement import to_like
from sfumato.protocols import Denoise, Denoiser
from sfumato.training.noise_sampling import Distribution


@dataclass(frozen=True)
class Loss:
    """Per-example losses of a batch: `value` [B] is minimised, `error` [B] is watched.

    `error` is the mean squared error of D over an image's values, in data units squared, without
    gradient; the unit of `value` is the objective's.
    """

    value: Tensor
    error: Tensor


class Objective(Protocol):
    """A loss for a denoiser at given noise levels."""

    def loss(self, denoise: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor) -> Loss:
        """Return per-example losses of x0 [B, *data] at sigma [B] (float64, host) with `noise`."""
        ...


def denoising_loss(
    denoise: Denoise, x0: Tensor, sigma: Tensor, noise: Tensor, weight: Tensor
) -> Loss:
    """Return weight [B] times the mean squared error of D over the values of each image."""
    error = _squared_error(denoise(add_noise(x0, sigma, noise), sigma).mean, x0)
    return Loss(to_like(weight, error) * error, error.detach())


class Weighted(ABC):
    """A weight over sigma in front of the mean squared error of D."""

    @abstractmethod
    def weight(self, sigma: Tensor) -> Tensor:
        """Return the weight [*] at sigma [*], per data unit squared."""

    def loss(self, denoise: Denoise, x0: Tensor, sigma: Tensor, noise: Tensor) -> Loss:
        """Return the weighted errors, [B]."""
        return denoising_loss(denoise, x0, sigma, noise, self.weight(sigma))


@dataclass(frozen=True)
class Simple(Weighted):
    """DDPM's L_simple (eq. 14): the error of the noise, NCSN's sigma^2-weighted score error."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Return 1 / sigma^2."""
        return sigma**-2


@dataclass(frozen=True)
class PlainX0(Weighted):
    """The error of x0 itself."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(sigma)


@dataclass(frozen=True)
class TruncatedSNR(Weighted):
    """The signal-to-noise ratio, at least 1 (Salimans & Ho 2022, section 4)."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Return max(1 / sigma^2, 1)."""
        return (sigma**-2).clamp(min=1)


@dataclass(frozen=True)
class V(Weighted):
    """The error of v, "SNR + 1" weighting (Salimans & Ho 2022, section 4)."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Return 1 / sigma^2 + 1."""
        return sigma**-2 + 1


@dataclass(frozen=True)
class MinSNR(Weighted):
    """The signal-to-noise ratio, at most gamma (Hang et al. 2023, eq. 8, for x0)."""

    gamma: float = 5.0

    def weight(self, sigma: Tensor) -> Tensor:
        """Return min(1 / sigma^2, gamma)."""
        return (sigma**-2).clamp(max=self.gamma)


@dataclass(frozen=True)
class EDM(Weighted):
    """EDM's weight, lambda(sigma) c_out^2 = 1 (EDM Table 1): the error of its F."""

    sigma_data: float = 0.5

    def weight(self, sigma: Tensor) -> Tensor:
        """Return (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
        return sigma**-2 + self.sigma_data**-2


@dataclass(frozen=True)
class ContinuousBound(Weighted):
    """The bound's diffusion term in continuous time, levels drawn from `distribution`.

    Its mean is the integral of |x0 - D|^2 / sigma^2 over ln sigma, in nats per dimension (Song et
    al. 2021, "Maximum likelihood training", theorem 1; Kingma et al. 2021, eq. 14).
    """

    distribution: Distribution

    def weight(self, sigma: Tensor) -> Tensor:
        """Return 1 / (sigma^2 p(ln sigma))."""
        return sigma**-2 / self.distribution.density(sigma)


@dataclass(frozen=True, eq=False)
class Bound:
    """DDPM's variational bound on a ladder (eq. 5) without its constant prior term.

    The value is T times a level's term, in nats per dimension: its mean over uniformly drawn levels
    is the sum over the ladder. At the first level the term is the discretised decoder's
    -log p(x0 | x_1) with the denoiser's decoder_var; `half_bin` is half the distance of two pixel
    values (1/255 for 8 bits). The denoiser's variance takes part. Sigmas must lie on the ladder.
    """

    levels: NoiseLevels
    half_bin: float = 1 / 255

    def loss(self, denoise: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor) -> Loss:
        """Return the terms of these levels times T, [B]."""
        x = add_noise(x0, sigma, noise)
        x0_given_x = denoise(x, sigma)
        value = self.terms(denoise, x0, x, x0_given_x, sigma)
        return Loss(value, _squared_error(x0_given_x.mean.detach(), x0).detach())

    def terms(
        self, denoise: Denoiser, x0: Tensor, x: Tensor, x0_given_x: Gaussian, sigma: Tensor
    ) -> Tensor:
        """Return the same of a distribution that is known already, [B]."""
        mean, var = x0_given_x.mean, x0_given_x.var.expand_as(x0_given_x.mean)
        index = self.levels.condition(sigma).long()
        first, above = (index == 0).nonzero()[:, 0], (index > 0).nonzero()[:, 0]

        terms = x0.new_zeros(len(x0))
        if len(above):
            below = self.levels.sigma[index[above] - 1]
            at = to_like(above, x0, above.dtype)  # a GPU would wait for indices of the host
            kl = level_term(x0[at], x[at], Gaussian(mean[at], var[at]), sigma[above], below)
            terms = terms.index_copy(0, at, kl)
        if len(first):
            at = to_like(first, x0, first.dtype)
            part = Gaussian(mean[at], var[at])
            nats = decoder_term(x0[at], part, denoise.decoder_var, self.half_bin)
            terms = terms.index_copy(0, at, nats)
        return len(self.levels) / x0[0].numel() * terms


@dataclass(frozen=True, eq=False)
class Hybrid:
    """Improved DDPM's L_hybrid (eq. 16): L_simple, and a little of the bound for the variance.

    The noise's mean squared error plus `weight` times the bound, in bits per dimension and summed
    over the ladder, as improved-diffusion counts it. The mean takes no part in the latter, so that
    its gradient is L_simple's.
    """

    bound: Bound
    weight: float = 0.001

    def loss(self, denoise: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor) -> Loss:
        """Return both together, [B]."""
        x = add_noise(x0, sigma, noise)
        x0_given_x = denoise(x, sigma)
        error = _squared_error(x0_given_x.mean, x0)
        still = Gaussian(x0_given_x.mean.detach(), x0_given_x.var)
        nats = self.bound.terms(denoise, x0, x, still, sigma)
        bits = bits_per_dim(nats, 1)  # nats are a dimension's already
        return Loss(
            to_like(Simple().weight(sigma), error) * error + self.weight * bits, error.detach()
        )


@dataclass(frozen=True, eq=False)
class DDIMBound(Weighted):
    """DDIM's J_sigma for eta in (0, 1] on a ladder, without its constants (theorem 1).

    T times a level's KL(q_sigma(x_s | x, x0) || the same with D for x0), in nats per dimension:
    (1 - sqrt(s^2 - v) / sigma)^2 / (2 v) times the squared error, v = eta^2 s^2 (1 - k) the step's
    variance. That is the exact gamma_t; the paper's printed one leaves out factors. eta = 1 is
    DDPM's bound with var = 0. At the first level v is the decoder's, eta^2 times the second
    level's. Raises ValueError for eta outside (0, 1].
    """

    levels: NoiseLevels
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise ValueError(f"J_sigma needs eta in (0, 1], not {self.eta}")

    def weight(self, sigma: Tensor) -> Tensor:
        """Return T times the weight of the mean squared error at levels [*] of the ladder."""
        s = self.levels.below(sigma)
        v = self.eta**2 * s**2 * (1 - (s / sigma) ** 2)
        first = self.eta**2 * first_decoder_var(self.levels.sigma[0], self.levels.sigma[1])
        inner = (1 - (s**2 - v).clamp(min=0).sqrt() / sigma) ** 2 / (2 * v.clamp(min=1e-300))
        return len(self.levels) * torch.where(s > 0, inner, 1 / (2 * first))


@dataclass(frozen=True, eq=False)
class MeanError(Weighted):
    """The error of the mean of x_{t-1} as a network on a ladder sees it (DDPM Table 2, first row).

    With s the level below sigma and k = (s / sigma)^2. Sigmas must lie on the ladder.
    """

    levels: NoiseLevels

    def weight(self, sigma: Tensor) -> Tensor:
        """Return ((1 - k) scale(s))^2; for DDPM abar_{t-1} beta_t^2 / (1 - abar_t)^2."""
        s = self.levels.below(sigma)
        return ((1 - (s / sigma) ** 2) * self.levels.scale(s)) ** 2


def normalised(error: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """Return the error of D over that of the best linear denoiser of data with this deviation.

    It is EDM's weighted loss: about 1 where nothing but mean and variance can be learned (very
    small and very large sigma), below 1 where the network knows more.
    """
    return error * expand(sigma**-2 + sigma_data**-2, error)


def _squared_error(mean: Tensor, x0: Tensor) -> Tensor:
    return (mean - x0).square().flatten(1).mean(1)
