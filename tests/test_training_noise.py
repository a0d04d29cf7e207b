"""Distributions of noise levels, learning rates and averages against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from sfumato.noise import VE, VP, NoiseLevels, SubVP, linear_betas
from sfumato.training.ema import Constant, Ema, HalfLife
from sfumato.training.noise_sampling import (
    Distribution,
    LogNormal,
    LogUniform,
    UniformLevels,
    UniformTime,
    draw,
)
from sfumato.training.optimizer import (
    Adam,
    CosineDecay,
    InverseSquareRoot,
    LearningRate,
    LinearDecay,
    clip_gradients,
    gradient_norm,
)

F64 = torch.float64
CONTINUOUS: list[Distribution] = [
    LogNormal(),
    LogNormal(0.3, 0.7),
    LogUniform(0.02, 100.0),
    UniformTime(VP()),
    UniformTime(SubVP()),
]
LADDER = NoiseLevels.from_betas(linear_betas(50))


def density(distribution: Distribution, log_sigma: float) -> float:
    return float(distribution.density(torch.tensor([math.exp(log_sigma)], dtype=F64)))


@pytest.mark.parametrize("distribution", CONTINUOUS, ids=str)
def test_density_is_that_of_the_quantile_function(distribution: Distribution) -> None:
    u = torch.tensor([0.02, 0.3, 0.55, 0.9], dtype=F64)
    at = distribution.quantile(u).log().tolist()
    for low, high, mass in zip(at, at[1:], u.diff().tolist(), strict=False):
        found, _ = integrate.quad(lambda v: density(distribution, v), low, high, epsabs=1e-10)
        assert found == pytest.approx(mass, abs=1e-8)


@pytest.mark.parametrize("distribution", [*CONTINUOUS, UniformLevels(LADDER)], ids=str)
def test_density_integrates_to_one(distribution: Distribution) -> None:
    grid = torch.linspace(-14, 8, 200_001, dtype=F64)
    total = torch.trapezoid(distribution.density(grid.exp()), grid)
    assert float(total) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("distribution", CONTINUOUS, ids=str)
@pytest.mark.parametrize("antithetic", [False, True])
def test_draws_follow_the_distribution(distribution: Distribution, antithetic: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [draw(distribution, 16, generator, antithetic=antithetic)[0] for _ in range(200)]
    grid = torch.linspace(-14, 8, 20_001, dtype=F64)
    cdf = torch.cumulative_trapezoid(distribution.density(grid.exp()), grid)
    values = torch.cat(batches).log().numpy()
    test = stats.kstest(values, lambda v: np.interp(v, grid[1:].numpy(), cdf.numpy()))
    assert test.pvalue > 1e-3


def test_log_normal_is_scipys() -> None:
    u = torch.linspace(0.001, 0.999, 9, dtype=F64)
    ours = LogNormal(-1.2, 1.2).quantile(u)
    theirs = stats.lognorm(s=1.2, scale=math.exp(-1.2)).ppf(u.numpy())
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12)


def test_antithetic_draws_fill_every_stratum() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 7, 64):
        sigma, weight = draw(LogNormal(), count, generator)
        u = stats.norm.cdf((sigma.log().numpy() + 1.2) / 1.2)
        assert len(set(np.floor((u - u.min() + 1e-9) * count))) == count
        assert torch.equal(weight, torch.ones(count, dtype=F64))
    sigma, _ = draw(UniformLevels(LADDER), 50, generator)
    assert torch.equal(sigma.sort().values, LADDER.sigma)
    sigma, _ = draw(UniformLevels(LADDER), 50, generator, antithetic=False)
    assert len(sigma.unique()) < 50


def test_extreme_quantiles_are_finite() -> None:
    class Edge(LogNormal):
        def quantile(self, u: torch.Tensor) -> torch.Tensor:
            assert u.min() > 0
            assert u.max() < 1
            return super().quantile(u)

    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        assert draw(Edge(), 1000, generator)[0].isfinite().all()


def test_uniform_time_of_ve_is_log_uniform() -> None:
    """Score-SDE's VE has sigma(t) = low (high / low)^t, so uniform t is uniform ln sigma."""
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    limits = VE().range
    torch.testing.assert_close(
        LogUniform(limits.low, limits.high).quantile(t), 0.02 * 5000.0**t, rtol=1e-12, atol=0
    )


def test_half_life_means_half() -> None:
    """Weights that jump from 0 to 1 are averaged to 1/2 after one half-life, in any batch size."""
    for batch in (10, 50):
        average, rule = 0.0, HalfLife(1000, ramp_up=0)
        for step in range(1000 // batch):
            beta = rule.decay(batch, step * batch, step)
            average = beta * average + (1 - beta)
        assert average == pytest.approx(0.5, abs=1e-12)


def test_ramped_half_life_copies_first_and_is_capped_by_images_seen() -> None:
    rule = HalfLife(500_000, 0.05)
    assert rule.decay(512, 0, 0) == 0
    assert rule.decay(512, 51_200, 100) == pytest.approx(0.5 ** (512 / 2560))
    assert rule.decay(512, 10**9, 10**6) == pytest.approx(0.5 ** (512 / 500_000))


def test_constant_average_closed_form() -> None:
    rule, average = Constant(0.99), 0.0
    for step in range(100):
        beta = rule.decay(7, 7 * step, step)
        average = beta * average + (1 - beta) * 1.0
    assert average == pytest.approx(1 - 0.99**100)
    warm = Constant(0.9999, warm_up=True)
    assert [warm.decay(1, 0, s) for s in (0, 90)] == [0.1, 0.91]
    assert warm.decay(1, 0, 10**6) == 0.9999


def test_ema_averages_parameters_and_copies_buffers() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = Ema(network)
    start = {k: v.clone() for k, v in network.state_dict().items()}
    for p in network.parameters():
        p.data.add_(1.0)
    network(torch.randn(5, 3))
    ema.update(network, 0.75)
    for name, p in ema.network.named_parameters():
        torch.testing.assert_close(p, start[name] + 0.25)
        assert not p.requires_grad
    for (_, mine), (_, theirs) in zip(
        ema.network.named_buffers(), network.named_buffers(), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert not ema.network.training
    ema.update(network, 0.0)
    for mine, theirs in zip(ema.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_learning_rate_ramps_from_its_first_share_and_decays() -> None:
    rate = LearningRate(2.0, ramp_images=100)
    assert [rate.at(i, 25) for i in (0, 25, 75, 100)] == [0.5, 1.0, 2.0, 2.0]
    assert LearningRate(2.0).at(0, 8) == 2.0
    cosine = LearningRate(1.0, decay=CosineDecay(1000, final=0.1))
    assert [cosine.at(i, 1) for i in (0, 500, 1000, 9999)] == pytest.approx([1, 0.55, 0.1, 0.1])
    assert LinearDecay(1000).factor(250) == 0.75
    assert InverseSquareRoot(100).factor(50) == 1
    assert InverseSquareRoot(100).factor(400) == 0.5


def test_gradient_norm_and_clipping() -> None:
    network = nn.Linear(2, 2)
    network.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    network.bias.grad = torch.tensor([12.0, 0.0])
    norm = gradient_norm(network.parameters())
    assert float(norm) == pytest.approx(13)
    clip_gradients(network.parameters(), norm, 1.3)
    assert float(network.bias.grad[0]) == pytest.approx(1.2)


def test_adam_takes_the_textbook_step() -> None:
    network = nn.Linear(1, 1, bias=False)
    start = float(network.weight.detach())
    optimizer = Adam().over(network)
    optimizer.param_groups[0]["lr"] = 0.1
    m = v = 0.0
    w = start
    for step, gradient in enumerate((0.5, -2.0, 1.0), 1):
        network.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= 0.1 * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
    assert float(network.weight.detach()) == pytest.approx(w, rel=1e-5)
