"""One step of the chain and the terms of the bound, in DDPM's own coordinates and formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles import GaussianOracle, Mixture
from sfumato.diffusion import (
    add_noise,
    bits_per_dim,
    decoder_term,
    first_decoder_var,
    level_term,
    posterior,
    prior_term,
    transition,
)
from sfumato.gaussian import Gaussian
from sfumato.noise import NoiseLevels, constant_betas, cosine_betas, linear_betas
from sfumato.parameterization import unit_gaussian

F64 = torch.float64
BETA = linear_betas(1000)
ABAR = torch.cumprod(1 - BETA, 0)
LADDER = NoiseLevels.from_betas(BETA)
ZERO = torch.zeros((), dtype=F64)
TIMES = [2, 3, 10, 349, 700, 1000]  # the paper's t, from 1


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def level(t: int) -> Tensor:
    return LADDER.sigma[t - 1]


def abar(t: int) -> Tensor:
    return ABAR[t - 1]


def beta_tilde(t: int) -> Tensor:
    return BETA[t - 1] * (1 - abar(t - 1)) / (1 - abar(t))


def seen(gaussian: Gaussian, t: int) -> Gaussian:
    """A Gaussian over x as one over DDPM's x_t."""
    return Gaussian(gaussian.mean * abar(t).sqrt(), gaussian.var * abar(t))


def test_add_noise_is_ddpms_forward_process():
    x0, z = numbers(4, 3, 2, 2), numbers(4, 3, 2, 2, seed=1)
    t = torch.tensor([1, 10, 500, 1000])
    a = ABAR[t - 1].reshape(4, 1, 1, 1)
    expected = a.sqrt() * x0 + (1 - a).sqrt() * z
    x = add_noise(x0, LADDER.sigma[t - 1], z)
    torch.testing.assert_close(x * a.sqrt(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(add_noise(x0, LADDER.sigma[9], z)[1], x[1])


@pytest.mark.parametrize("t", TIMES)
def test_bayes_rule(t: int):
    """q(x_{t-1} | x_t, x0) q(x_t | x0) = q(x_t | x_{t-1}) q(x_{t-1} | x0), in log densities."""
    x0, before, now = numbers(5), numbers(5, seed=1), numbers(5, seed=2)
    scaled = now / abar(t).sqrt()
    back = seen(posterior(x0, scaled, level(t), level(t - 1)), t - 1)

    def q(step: int) -> Gaussian:
        return Gaussian(abar(step).sqrt() * x0, 1 - abar(step))

    forward = Gaussian((1 - BETA[t - 1]).sqrt() * before, BETA[t - 1])
    torch.testing.assert_close(
        back.log_prob(before) + q(t).log_prob(now),
        forward.log_prob(now) + q(t - 1).log_prob(before),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("t", TIMES)
def test_transition_is_ddpms(t: int):
    """Eq. (7): mean, beta-tilde for var = 0, beta for the unit Gaussian's variance."""
    x0, x_t = numbers(5), numbers(5, seed=1)
    b, a, before = BETA[t - 1], abar(t), abar(t - 1)
    mean = before.sqrt() * b / (1 - a) * x0 + (1 - b).sqrt() * (1 - before) / (1 - a) * x_t
    x = x_t / a.sqrt()
    small = seen(transition(Gaussian(x0, ZERO), x, level(t), level(t - 1)), t - 1)
    large_var = unit_gaussian(level(t))
    large = seen(transition(Gaussian(x0, large_var), x, level(t), level(t - 1)), t - 1)
    for p in (small, large):
        torch.testing.assert_close(p.mean, mean, rtol=1e-10, atol=1e-10)
    assert float(small.var) == pytest.approx(float(beta_tilde(t)), rel=1e-10)
    assert float(large.var) == pytest.approx(float(b), rel=1e-10)


def test_posterior_with_a_level_per_image_equals_one_by_one():
    x0, x = numbers(3, 2, 2), numbers(3, 2, 2, seed=1)
    sigma, s = LADDER.sigma[[5, 50, 500]], LADDER.sigma[[4, 20, 499]]
    together = posterior(x0, x, sigma, s)
    for i in range(3):
        alone = posterior(x0[i : i + 1], x[i : i + 1], sigma[i], s[i])
        torch.testing.assert_close(together.mean[i], alone.mean[0], rtol=0, atol=0)
        torch.testing.assert_close(together.var[i].squeeze(), alone.var, rtol=0, atol=0)


def test_transitions_compose():
    """Walking q in two steps equals one: the posterior is a Markov chain's."""
    x0, x = numbers(5), numbers(5, seed=1)
    high, middle, low = torch.tensor([3.0, 2.0, 0.5], dtype=F64)
    first = posterior(x0, x, high, middle)
    keep = (low / middle) ** 2
    direct = posterior(x0, x, high, low)
    step = posterior(x0, first.mean, middle, low)
    torch.testing.assert_close(step.mean, direct.mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(step.var + keep**2 * first.var, direct.var, rtol=1e-13, atol=0)


@pytest.mark.parametrize("t", TIMES)
def test_level_term_has_ddpms_coefficients(t: int):
    """Eq. (12): beta^2 / (2 var alpha (1 - abar)) |noise - predicted|^2, plus variances."""
    x0, z, guess = numbers(2, 5), numbers(2, 5, seed=1), numbers(2, 5, seed=2)
    sigma, s, b = level(t), level(t - 1), BETA[t - 1]
    x = x0 + sigma * z
    x0_hat = x - sigma * guess
    error = (z - guess).square().sum(1)
    cases = ((ZERO, beta_tilde(t)), (unit_gaussian(sigma), b), (0.3 * sigma**0, None))
    for var, model_var in cases:
        if model_var is None:  # any variance: the general formula in x_{t-1}'s coordinates
            model_var = beta_tilde(t) + (1 - s**2 / sigma**2) ** 2 * var * abar(t - 1)
        ratio = beta_tilde(t) / model_var
        expected = error * b**2 / (2 * model_var * (1 - b) * (1 - abar(t)))
        expected = expected + 5 * 0.5 * (ratio - 1 - ratio.log())
        term = level_term(x0, x, Gaussian(x0_hat, var), sigma, s)
        torch.testing.assert_close(term, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("t", "large", "small"),
    [(2, 0.2727, 0.5997), (3, None, 0.3180), (10, 0.0737, None), (100, 0.01008, None),
     (1000, 0.010204, None)],
)  # fmt: skip
def test_level_term_has_the_published_weights(t: int, large: float | None, small: float | None):
    """With x0 and its estimate one unit of noise apart and variance terms taken off."""
    sigma, s = level(t), level(t - 1)
    x = numbers(1, 1)
    at = Gaussian(x - sigma, ZERO)
    for var, published in ((unit_gaussian(sigma), large), (ZERO, small)):
        near = level_term(x, x, Gaussian(x, var), sigma, s)
        far = level_term(x, x, Gaussian(at.mean, var), sigma, s)
        if published is not None:
            assert float(far - near) == pytest.approx(published, rel=1e-3)


def test_level_term_without_variance_is_half_the_drop_of_the_signal_to_noise_ratio():
    x0, guess = numbers(3, 4), numbers(3, 4, seed=1)
    sigma = torch.tensor([0.02, 1.0, 80.0], dtype=F64)
    s = torch.tensor([0.01, 0.7, 3.0], dtype=F64)
    term = level_term(x0, numbers(3, 4, seed=2), Gaussian(guess, ZERO), sigma, s)
    expected = 0.5 * (1 / s**2 - 1 / sigma**2) * (x0 - guess).square().sum(1)
    torch.testing.assert_close(term, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("square", "published"), [(0.25, 0.73e-5), (1.0, 2.9e-5)])
def test_prior_term_has_the_published_size(square: float, published: float):
    """KL(q(x_T | x0) || N(0, 1)) in bits per dimension, linear betas, T = 1000."""
    x0 = torch.full((1, 8), math.sqrt(square), dtype=F64)
    prior = Gaussian(ZERO, torch.tensor(LADDER.prior_var, dtype=F64))
    nats = prior_term(x0, LADDER.sigma[-1], prior)
    assert float(bits_per_dim(nats, 8)) == pytest.approx(published, rel=0.01)
    a = ABAR[-1]
    expected = 0.5 * (-1 - torch.log1p(-a) + (1 - a) + a * square)
    assert float(nats / 8) == pytest.approx(float(expected), rel=1e-6)


def test_decoder_term_is_the_discretised_likelihood():
    """A flat decoder gives every bin its width; a sharp one no cost at all."""
    x0 = torch.tensor([[-0.2, 0.4]], dtype=F64) // (2 / 255) * (2 / 255) + 1 / 255
    sharp = decoder_term(x0, Gaussian(x0, ZERO), torch.tensor(1e-8, dtype=F64), 1 / 255)
    assert float(sharp) == pytest.approx(0, abs=1e-12)
    wide = decoder_term(x0, Gaussian(x0, ZERO), torch.tensor(9.0, dtype=F64), 1 / 255)
    density = -math.log(2 / 255) + 0.5 * math.log(2 * math.pi * 9)
    assert float(wide) == pytest.approx(2 * density, rel=1e-6)


def test_first_decoder_var_is_beta_tilde_of_the_second_level():
    assert float(first_decoder_var(*LADDER.sigma[:2])) == pytest.approx(5.4532e-5, rel=1e-5)
    assert float(first_decoder_var(*LADDER.sigma[:2])) == pytest.approx(float(beta_tilde(2)))


def test_float32_keeps_its_digits():
    """Coefficients are float64 before they meet a float32 batch."""
    x0, x = numbers(2, 3), numbers(2, 3, seed=1) * 157
    for t in TIMES:
        exact = posterior(x0, x, level(t), level(t - 1))
        rough = posterior(x0.float(), x.float(), level(t), level(t - 1))
        assert rough.mean.dtype == torch.float32
        torch.testing.assert_close(rough.mean.double(), exact.mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(rough.var.double(), exact.var, rtol=1e-7, atol=0)


# --- the whole bound -----------------------------------------------------------------------------


def gaussian_bound(oracle: GaussianOracle, levels: NoiseLevels, *, large: bool) -> float:
    """Expected negative ELBO per dimension in nats, continuous decoder, exact denoiser.

    Every term is quadratic in x0 - D(x), whose variance is the posterior's; so x0 = its square
    root with D = 0 makes a term equal to its expectation. The decoder has the best variance.
    """
    lam = oracle.eigenvalues[None]
    zeros = torch.zeros_like(lam)
    prior = Gaussian(ZERO, torch.tensor(levels.prior_var, dtype=F64))
    total = prior_term(lam.sqrt(), levels.sigma[-1], prior)
    for s, sigma in zip(levels.sigma[:-1], levels.sigma[1:], strict=True):
        error = (lam * sigma**2 / (lam + sigma**2)).sqrt()
        var = unit_gaussian(sigma) if large else ZERO
        total = total + level_term(error, zeros, Gaussian(zeros, var), sigma, s)
    last = (lam * levels.sigma[0] ** 2 / (lam + levels.sigma[0] ** 2)).mean()
    return float(total) / lam.numel() + 0.5 * math.log(2 * math.pi * math.e * float(last))


SPREAD = GaussianOracle.diagonal([2.0 ** (-k / 2) for k in range(16)])


def test_bound_of_gaussian_data_falls_to_the_entropy():
    """Above the entropy at every T, decreasing in T, and within 0.01 bits of it at the end."""
    entropy = SPREAD.entropy() / 16
    bounds = [
        gaussian_bound(SPREAD, NoiseLevels.from_betas(linear_betas(t)), large=True)
        for t in (30, 100, 1000, 4000)
    ]
    assert all(a > b for a, b in zip(bounds, [*bounds[1:], entropy], strict=True))
    assert bounds[-1] - entropy < 0.02 * math.log(2)


def test_bound_of_unit_gaussian_data_is_tight_for_any_chain():
    """Fixed-large is the exact reverse chain there, so the bound equals the entropy."""
    unit = GaussianOracle.diagonal([1.0])
    for betas in (cosine_betas(5), linear_betas(40), linear_betas(1000)):
        bound = gaussian_bound(unit, NoiseLevels.from_betas(betas), large=True)
        assert bound == pytest.approx(unit.entropy(), abs=1e-9)


def test_fixed_small_stays_half_of_eulers_constant_above():
    """Near t = 0 beta-tilde / beta is (t - 1) / t: sum_t (1 / (t - 1) - ln(t / (t - 1))) / 2.

    The limit is Euler's gamma / 2 nats, 0.416 bits per dimension: it never tends to 0.
    """
    unit = GaussianOracle.diagonal([1.0])
    steps, value = 4000, 1e-6
    levels = NoiseLevels.from_betas(constant_betas(steps, value))
    gap = gaussian_bound(unit, levels, large=False) - gaussian_bound(unit, levels, large=True)
    expected = 0.5 * (sum(1 / t for t in range(1, steps)) - math.log(steps))
    assert gap == pytest.approx(expected, rel=5e-3)
    assert gap / math.log(2) == pytest.approx(0.416, abs=0.005)


def test_bound_of_the_mixture_falls_to_its_entropy():
    """Expectations over x by quadrature: x0 given x has the oracle's mean and variance."""
    mixture = Mixture()
    bounds: list[float] = []
    for steps in (10, 100, 1000):
        levels = NoiseLevels.from_betas(cosine_betas(steps))
        prior = Gaussian(ZERO, torch.tensor(levels.prior_var, dtype=F64))
        spread = math.sqrt(mixture.var() + mixture.mean() ** 2)
        total = prior_term(torch.full((1, 1), spread, dtype=F64), levels.sigma[-1], prior)
        for s, sigma in zip(levels.sigma[:-1], levels.sigma[1:], strict=True):
            x = torch.linspace(-10, 10, 801, dtype=F64)[:, None] * (1 + float(sigma)) * 0.7
            x0 = mixture(x, sigma)
            weight = mixture.pdf(x, sigma) * (x[1] - x[0])
            at = Gaussian(x0.mean - x0.var.sqrt(), unit_gaussian(sigma))
            term = level_term(x0.mean, x, at, sigma, s)[:, None]
            total = total + (weight * term).sum()
        x = torch.linspace(-8, 8, 8001, dtype=F64)
        first = levels.sigma[0]
        last = (mixture.pdf(x, first) * mixture(x, first).var).sum() * (x[1] - x[0])
        bounds.append(float(total) + 0.5 * math.log(2 * math.pi * math.e * float(last)))
    entropy = mixture.entropy()
    assert bounds[0] > bounds[1] > bounds[2] > entropy
    assert bounds[2] - entropy < 0.05
