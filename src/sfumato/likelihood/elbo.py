"""The variational bound on -log p(x0), term by term (DDPM eq. 5).

Along a grid g_0 > g_1 > ... > g_{N-1} the bound is KL(q(x at g_0) || prior), for each pair of
neighbours KL(q(x_{i+1} | x_i, x0) || p(x_{i+1} | x_i)), and -log p(x0 | x at g_{N-1}), the
discretised decoder. E[-log P(x0)] is at most its mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.denoiser import Clipped
from sfumato.diffusion import Mass, add_noise, bits_per_dim, decoder_term, level_term, prior_term
from sfumato.gaussian import Gaussian
from sfumato.likelihood.search import golden_section
from sfumato.noise import F64, NoiseRange, check_grid, geometric
from sfumato.protocols import Denoiser
from sfumato.randomness import Noise, Purpose


@dataclass(frozen=True, eq=False)
class Bound:
    """The terms of the bound, in nats per example.

    `sigmas` [N] is the grid, descending. `prior` [B]. `levels` [B, N - 1]: entry i is the KL of the
    step from sigmas[i] to sigmas[i + 1]; where levels were drawn, its unbiased estimate, 0 for
    those that were not. `decoder` [B]. `error` [B, N]: squared error of D's mean at each level,
    summed over an image's values, NaN where it was not asked.
    """

    sigmas: Tensor
    prior: Tensor
    levels: Tensor
    decoder: Tensor
    error: Tensor
    dimensions: int

    @property
    def total(self) -> Tensor:
        """The bound, [B]."""
        return self.prior + self.levels.sum(1) + self.decoder

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound in bits per dimension, [B]."""
        return bits_per_dim(self.total, self.dimensions)


def bound_grid(limits: NoiseRange, steps: int) -> Tensor:
    """Return levels to take the bound along: both ends, and the rest in geometric progression.

    On a ladder they are rounded to its levels, so there may be fewer. Steps even in log sigma need
    few levels for a bound near the whole ladder's; even in the ladder's index they need most of it.
    Raises ValueError for fewer than two.
    """
    if steps < 2:
        raise ValueError(f"the bound needs two levels at least, not {steps}")
    return limits.snap(geometric(steps, limits.low, limits.high)[:-1]).unique().flip(0)


@torch.no_grad()
def elbo(
    denoise: Denoiser,
    x0: Tensor,
    sigmas: Tensor | Sequence[float],
    noise: Noise,
    *,
    half_bin: float = 1 / 255,
    mass: Mass = Gaussian.log_mass,
) -> Bound:
    """Return every term of the bound for images x0 [B, *data] in [-1, 1]: N network calls.

    `sigmas` is a grid as samplers walk it (a last 0 is left out), `noise` has a seed an image;
    half_bin is half the distance of two pixel values (1/255 for 8 bits, 1/65535 for 16); `mass` is
    the decoder's, `tanh_log_mass` for parity with DDPM's code. Raises
    ValueError for pixels between those values, for a clipped denoiser, whose D is not the one the
    bound holds for, and for a grid that does not descend or leaves the trained range.
    """
    bound, grid = _bound(denoise, x0, sigmas, half_bin)
    terms = [_term(bound, x0, grid, i, noise, half_bin, mass) for i in range(len(grid))]
    nats = torch.stack([term for term, _ in terms], 1)
    return Bound(
        grid,
        prior_term(x0.to(F64), grid[0], bound.prior).cpu(),
        nats[:, :-1],
        nats[:, -1],
        torch.stack([error for _, error in terms], 1),
        x0[0].numel(),
    )


@torch.no_grad()
def estimate_elbo(
    denoise: Denoiser,
    x0: Tensor,
    sigmas: Tensor | Sequence[float],
    noise: Noise,
    *,
    draws: int = 32,
    half_bin: float = 1 / 255,
    mass: Mass = Gaussian.log_mass,
) -> Bound:
    """Return an unbiased estimate of the bound by `draws` levels an image: draws + 1 network calls.

    The N - 1 steps are cut into `draws` strata of nearly equal size; of each, every image draws one
    step of its own, whose term counts for the whole stratum. Prior and decoder are exact but for
    the decoder's noise. Raises ValueError as `elbo` does, and unless 1 <= draws.
    """
    if draws < 1:
        raise ValueError(f"at least one level is drawn, not {draws}")
    bound, grid = _bound(denoise, x0, sigmas, half_bin)
    steps = len(grid) - 1
    draws = min(draws, steps)
    nats = torch.zeros(len(x0), steps, dtype=F64)
    error = torch.full((len(x0), len(grid)), torch.nan, dtype=F64)
    decoder, error[:, -1] = _term(bound, x0, grid, steps, noise, half_bin, mass)
    rows = torch.arange(len(x0))
    if draws:
        edges = torch.arange(draws + 1) * steps // draws
        # A uniform number of each image and stratum, from a normal one: it needs no other stream.
        uniform = torch.special.ndtr(noise.normal((draws,), Purpose.LEVELS, F64))
        sizes = edges.diff()
        chosen = edges[:-1] + (uniform * sizes).long().clamp(max=sizes - 1)
        for stratum in range(draws):
            index = chosen[:, stratum]
            drawn = _terms_at(bound, x0, grid, index, noise)
            nats[rows, index] = sizes[stratum] * drawn[0]
            error[rows, index] = drawn[1]
    prior = prior_term(x0.to(F64), grid[0], bound.prior).cpu()
    return Bound(grid, prior, nats, decoder, error, x0[0].numel())


def _bound(
    denoise: Denoiser, x0: Tensor, sigmas: Tensor | Sequence[float], half_bin: float
) -> tuple[Denoiser, Tensor]:
    """Check what is asked; return the denoiser bound to the grid, and the grid without 0."""
    refuse_clipped(denoise)
    check_pixels(x0, half_bin)
    grid = torch.as_tensor(sigmas, dtype=F64, device="cpu")
    if len(grid) > 1 or not len(grid):
        check_grid(grid, may_ascend=False)
    grid = grid[grid > 0]
    if not len(grid):
        raise ValueError("the bound needs at least one level above 0")
    denoise.range.check(grid)
    return denoise.on(grid), grid


def _term(
    denoise: Denoiser, x0: Tensor, grid: Tensor, index: int, noise: Noise, half_bin: float,
    mass: Mass,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The term of one level for all images, the decoder's at the last, and D's squared error."""
    if index < len(grid) - 1:
        return _terms_at(denoise, x0, grid, torch.full((len(x0),), index), noise)
    sigma = grid[-1].expand(len(x0))
    x = add_noise(x0.to(F64), sigma, _noise(noise, x0, torch.full((len(x0),), index)))
    x0_given_x = denoise(x, sigma)
    nats = decoder_term(x0.to(F64), x0_given_x, denoise.decoder_var, half_bin, mass)
    return nats.cpu(), _squared(x0, x0_given_x)


def _terms_at(
    denoise: Denoiser, x0: Tensor, grid: Tensor, index: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """The KL of each image's own step [B], and D's squared error there."""
    sigma, s = grid[index], grid[index + 1]
    x = add_noise(x0.to(F64), sigma, _noise(noise, x0, index))
    x0_given_x = denoise(x, sigma)
    return level_term(x0.to(F64), x, x0_given_x, sigma, s).cpu(), _squared(x0, x0_given_x)


def _noise(noise: Noise, x0: Tensor, index: Tensor) -> Tensor:
    """The noise of each image at its level: the same whichever levels are asked together."""
    parts = [
        Noise((seed,)).at(int(i)).normal(x0.shape[1:], Purpose.BOUND, F64, x0.device)
        for seed, i in zip(noise.seeds, index.tolist(), strict=True)
    ]
    return torch.cat(parts)


def _squared(x0: Tensor, x0_given_x: Gaussian) -> Tensor:
    return (x0_given_x.mean - x0).to(F64).square().flatten(1).sum(1).cpu()


def refuse_clipped(denoise: Denoiser) -> None:
    """Raise ValueError for a denoiser whose predictions are clamped."""
    if isinstance(denoise, Clipped):
        raise ValueError(
            "a likelihood of a clipped denoiser means nothing: clamping x0 changes the model whose "
            "density this would be; leave out --clip"
        )


def check_pixels(x0: Tensor, half_bin: float) -> None:
    """Raise ValueError where images in [-1, 1] hold values that no pixel has."""
    if not half_bin > 0:
        raise ValueError(f"half_bin is half the distance of two pixel values, not {half_bin}")
    steps = (x0.to(F64) + 1) / (2 * half_bin)
    off = (steps - steps.round()).abs()
    if bool((off > 1e-2).any()) or bool((x0.abs() > 1 + 1e-6).any()):
        where = int(off.flatten().argmax())
        raise ValueError(
            f"the discretised decoder gives probabilities to pixels, -1, {-1 + 2 * half_bin:g}, "
            f"..., 1, and these images hold {float(x0.flatten()[where]):.6g}: give whole pixels of "
            "this bit depth, or use the flow's likelihood, which takes any number"
        )


@torch.no_grad()
def fit_decoder_var(
    denoise: Denoiser, x0: Tensor, sigma: Tensor, noise: Noise, *, half_bin: float = 1 / 255
) -> float:
    """Return the decoder's variance at the lowest level of a grid that costs these images least.

    For denoisers without a ladder: fitted once, on images that are not measured. One network call,
    then a golden-section search over log variance between that of a thousandth of a pixel's bin and
    1. Raises ValueError as `elbo` does.
    """
    refuse_clipped(denoise)
    check_pixels(x0, half_bin)
    level = sigma.to(F64).expand(len(x0))
    x = add_noise(x0.to(F64), level, _noise(noise, x0, torch.zeros(len(x0), dtype=torch.long)))
    found = denoise(x, level)

    def cost(log_var: float) -> float:
        var = torch.tensor(math.exp(log_var), dtype=F64)
        return float(decoder_term(x0.to(F64), found, var, half_bin).mean())

    return math.exp(golden_section(cost, 2 * math.log(1e-3 * half_bin), 0.0))
