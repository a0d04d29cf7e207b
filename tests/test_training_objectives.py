"""Objectives against closed forms on Gaussian data and against what they equal as other errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from sfumato.diffusion import expand
from sfumato.gaussian import Gaussian
from sfumato.noise import NoiseLevels, NoiseRange, linear_betas
from sfumato.parameterization import (
    edm_preconditioned,
    predicts_mean,
    predicts_noise,
    predicts_score,
    predicts_v,
    predicts_x0,
    unit_gaussian,
)
from sfumato.training.noise_sampling import LogNormal, LogUniform, UniformLevels, draw
from sfumato.training.objectives import (
    EDM,
    Bound,
    ContinuousBound,
    MeanError,
    MinSNR,
    PlainX0,
    Simple,
    TruncatedSNR,
    V,
    Weighted,
    normalised,
)
from sfumato.training.plan import Adapted

F64 = torch.float64
LADDER = NoiseLevels.from_betas(linear_betas(30))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Exact:
    """The exact denoiser of N(0, std^2) data on a ladder, its variance modelled or not."""

    def __init__(self, std: float, *, with_variance: bool = False) -> None:
        self.std, self.with_variance = std, with_variance

    range = NoiseRange(0.01, 100.0)
    prior = Gaussian(torch.zeros(()), torch.ones(()))
    decoder_var = torch.tensor(2e-4, dtype=F64)

    def on(self, sigmas: Tensor) -> Exact:
        return self

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        share = self.std**2 / (self.std**2 + sigma**2)
        var = share * sigma**2 if self.with_variance else torch.zeros_like(sigma)
        return Gaussian(expand(share, x) * x, expand(var, x))


@pytest.mark.parametrize(
    ("objective", "weight"),
    [
        (Simple(), lambda s: 1 / s**2),
        (PlainX0(), lambda s: 1.0),
        (TruncatedSNR(), lambda s: max(1 / s**2, 1)),
        (V(), lambda s: 1 + 1 / s**2),
        (MinSNR(5.0), lambda s: min(1 / s**2, 5)),
        (EDM(0.5), lambda s: (s**2 + 0.25) / (0.5 * s) ** 2),
        (ContinuousBound(LogUniform(0.01, 100)), lambda s: math.log(1e4) / s**2),
    ],
    ids=lambda o: type(o).__name__,
)
def test_expected_loss_of_the_exact_denoiser(objective: Weighted, weight: object) -> None:
    """E w |x0 - D|^2 = w sigma^2 s^2 / (sigma^2 + s^2) for N(0, s^2) data."""
    std = 0.6
    x0 = std * rand(3, 1, 200, 200)
    sigma = torch.tensor([0.1, 0.7, 20.0], dtype=F64)
    loss = objective.loss(Exact(std), x0, sigma, rand(3, 1, 200, 200, seed=1))
    for i, s in enumerate(sigma.tolist()):
        error = s**2 * std**2 / (s**2 + std**2)
        assert float(loss.error[i]) == pytest.approx(error, rel=0.03)
        assert float(loss.value[i]) == pytest.approx(weight(s) * error, rel=0.03)  # type: ignore[operator]


def batch(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    sigma, _ = draw(UniformLevels(LADDER), n, torch.Generator().manual_seed(2))
    return 0.5 * rand(n, 2, 3, 3, seed=3), sigma, rand(n, 2, 3, 3, seed=4)


class Fixed:
    """A network that answers with a fixed tensor, and remembers what it saw."""

    def __init__(self, out: Tensor) -> None:
        self.out = out

    def __call__(self, x: Tensor, noise_label: Tensor) -> Tensor:
        self.seen = x
        return self.out


def mse(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).mean(1)


def test_each_weight_is_the_error_of_its_own_target() -> None:
    x0, sigma, noise = batch()
    out = rand(6, 2, 3, 3, seed=5)
    r = expand((1 + sigma**2).sqrt(), x0)
    s = expand(sigma, x0)
    v = (noise - s * x0) / r

    def check(objective: Weighted, denoise: Adapted, expected: Tensor) -> None:
        value = objective.loss(denoise, x0, sigma, noise).value
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)

    check(Simple(), predicts_noise(Fixed(out), LADDER), mse(out, noise))
    check(V(), predicts_v(Fixed(out), LADDER), mse(out, v))
    check(PlainX0(), predicts_x0(Fixed(out), LADDER), mse(out, x0))
    # DDPM's mu tilde (eq. 7), in its own variables.
    index = LADDER.condition(sigma).long()
    betas = linear_betas(30)
    abar = torch.cat([torch.ones(1, dtype=F64), torch.cumprod(1 - betas, 0)])
    beta, now, below = (expand(part, x0) for part in (betas[index], abar[index + 1], abar[index]))
    mu = (
        below.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - below) * now.sqrt() * (x0 + s * noise)
    ) / (1 - now)
    check(MeanError(LADDER), predicts_mean(Fixed(out), LADDER), mse(out, mu))
    # NCSN: sigma^2 |s + noise / sigma|^2, with levels seen unscaled.
    unscaled = NoiseLevels(LADDER.sigma, scaled=False)
    target = sigma**2 * mse(out, -noise / s)
    check(Simple(), predicts_score(Fixed(out), unscaled), target)
    # EDM's F: target (x0 - c_skip x) / c_out, weight 1.
    sd = 0.5
    total = s**2 + sd**2
    x = x0 + s * noise
    f = (x0 - sd**2 / total * x) / (s * sd / total.sqrt())
    check(EDM(sd), edm_preconditioned(Fixed(out), sd), mse(out, f))


def test_the_same_denoiser_has_the_same_loss_however_its_network_predicts() -> None:
    """Networks in front of one D: EDM weighting with sigma_data = 1 is V's."""
    x0, sigma, noise = batch()
    first = V().loss(Exact(0.6), x0, sigma, noise).value
    second = EDM(1.0).loss(Exact(0.6), x0, sigma, noise).value
    torch.testing.assert_close(first, second)


def test_normalised_loss_is_one_for_the_best_linear_denoiser() -> None:
    std, sigma = 0.6, torch.tensor([0.01, 0.5, 30.0], dtype=F64)
    error = sigma**2 * std**2 / (sigma**2 + std**2)
    torch.testing.assert_close(normalised(error, sigma, std), torch.ones(3, dtype=F64))


def exact_decoder_nats(std: float, sigma: float, var: float, half_bin: float) -> float:
    """E[-log P(bin of x0)] over x0 ~ N(0, std^2) and noise, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    x0 = std * nodes[:, None]
    mean = std**2 / (std**2 + sigma**2) * (x0 + sigma * nodes[None, :])
    upper = stats.norm.cdf(x0 + half_bin, mean, math.sqrt(var))
    lower = stats.norm.cdf(x0 - half_bin, mean, math.sqrt(var))
    mass = np.where(x0 < -1 + half_bin / 2, upper, upper - lower)
    mass = np.where(x0 > 1 - half_bin / 2, 1 - lower, mass)
    return float((weights[:, None] * weights * -np.log(np.maximum(mass, 1e-300))).sum())


def test_bound_without_variance_is_the_exact_elbo_of_gaussian_data() -> None:
    """Sum over levels of (1/s^2 - 1/sigma^2)/2 E|x0 - D|^2, plus the decoder at the first."""
    std, half_bin = 0.25, 1 / 255
    sigma = LADDER.sigma.numpy()
    error = sigma**2 * std**2 / (sigma**2 + std**2)
    kl = 0.5 * (1 / sigma[:-1] ** 2 - 1 / sigma[1:] ** 2) * error[1:]
    var = 0.02
    decoder = exact_decoder_nats(std, float(sigma[0]), var, half_bin)

    denoise = Exact(std)
    denoise.decoder_var = torch.tensor(var, dtype=F64)
    x0, noise = std * rand(30, 1, 400, 400), rand(30, 1, 400, 400, seed=1)
    value = Bound(LADDER, half_bin).loss(denoise, x0, LADDER.sigma, noise).value
    assert float(value[0] / 30) == pytest.approx(decoder, rel=5e-3)
    for i in range(1, 30):
        assert float(value[i] / 30) == pytest.approx(float(kl[i - 1]), rel=0.015)
    assert float(value.mean()) == pytest.approx(decoder + kl.sum(), rel=5e-3)


@pytest.mark.parametrize("with_variance", [False, True])
def test_bound_terms_are_kl_divergences_of_the_reverse_step(with_variance: bool) -> None:
    """One value, one level: KL(q || p) by numerical integration of DDPM's own Gaussians."""
    betas = linear_betas(30)
    ladder = NoiseLevels.from_betas(betas)
    abar = torch.cumprod(1 - betas, 0).tolist()
    beta = betas.tolist()
    t, x0, noise = 17, 0.4, -0.7
    sigma = ladder.sigma[t]
    denoise = Exact(0.6, with_variance=with_variance)
    one = torch.full((1, 1), x0, dtype=F64)
    value = Bound(ladder).loss(denoise, one, sigma[None], torch.full((1, 1), noise, dtype=F64))

    # In DDPM's own variables, eqs. 6-7.
    xt = math.sqrt(abar[t]) * (x0 + float(sigma) * noise)
    c0 = math.sqrt(abar[t - 1]) * beta[t] / (1 - abar[t])
    ct = math.sqrt(1 - beta[t]) * (1 - abar[t - 1]) / (1 - abar[t])
    small = beta[t] * (1 - abar[t - 1]) / (1 - abar[t])
    share = 0.36 / (0.36 + float(sigma) ** 2)
    estimate = share * (x0 + float(sigma) * noise)
    extra = share * float(sigma) ** 2 * c0**2 if with_variance else 0.0
    q = stats.norm(c0 * x0 + ct * xt, math.sqrt(small))
    p = stats.norm(c0 * estimate + ct * xt, math.sqrt(small + extra))
    low, high = q.mean() - 12 * q.std(), q.mean() + 12 * q.std()
    kl, _ = integrate.quad(lambda y: q.pdf(y) * (q.logpdf(y) - p.logpdf(y)), low, high)
    assert float(value.value) == pytest.approx(30 * kl, rel=1e-6)


def test_random_levels_average_to_the_whole_bound() -> None:
    std = 0.25
    bound, denoise = Bound(LADDER, 1 / 255), Exact(std, with_variance=True)
    denoise.decoder_var = torch.tensor(0.02, dtype=F64)
    x0, noise = std * rand(30, 400, seed=1), rand(30, 400, seed=2)
    whole = bound.loss(denoise, x0, LADDER.sigma, noise).value.mean()
    values = []
    generator = torch.Generator().manual_seed(0)
    for seed in range(120):
        sigma, weight = draw(UniformLevels(LADDER), 30, generator, antithetic=False)
        loss = bound.loss(denoise, std * rand(30, 400, seed=9 + seed), sigma, rand(30, 400)).value
        values.append(float((weight * loss).mean()))
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - float(whole)) < 4 * error + 0.02 * abs(float(whole))


def test_continuous_bound_is_the_limit_of_the_discrete_one() -> None:
    """For Gaussian data the integral of s^2 / (sigma^2 + s^2) over ln sigma is known."""
    std, low, high = 0.5, 0.05, 20.0
    exact = 0.5 * math.log((1 + std**2 / low**2) / (1 + std**2 / high**2))
    for distribution in (LogUniform(low, high), LogNormal(-0.5, 1.5)):
        objective = ContinuousBound(distribution)
        sigma, _ = draw(distribution, 20_000, torch.Generator().manual_seed(3))
        inside = (sigma > low) & (sigma < high)
        x0, noise = std * rand(20_000, 16, seed=5), rand(20_000, 16, seed=6)
        value = torch.where(inside, objective.loss(Exact(std), x0, sigma, noise).value, 0.0)
        assert float(value.mean()) == pytest.approx(exact, rel=0.02)


def test_bound_reaches_every_parameter_without_non_finite_gradients() -> None:
    levels = NoiseLevels.from_betas(linear_betas(1000))
    gain = torch.zeros((), requires_grad=True)
    denoise = predicts_noise(lambda x, _: gain * x + 1.5 * x, levels, unit_gaussian)
    sigma = levels.sigma[torch.tensor([0, 0, 1, 500, 999])]
    x0 = rand(5, 1, 8, 8).float().clamp(-1, 1)
    loss = Bound(levels).loss(denoise, x0, sigma, rand(5, 1, 8, 8, seed=1).float())
    assert loss.value.isfinite().all()
    (slope,) = torch.autograd.grad(loss.value.mean(), gain)
    assert slope.isfinite()
    assert float(slope) != 0
