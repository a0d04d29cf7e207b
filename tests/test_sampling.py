"""The loop: what a step holds, what is refused, and that an image depends on its own seed only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oracles import GaussianOracle, Mixture
from sfumato.denoiser import Clipped
from sfumato.gaussian import Gaussian
from sfumato.noise import VP, NoiseLevels, SubVP, karras, linear_betas, uniform
from sfumato.parameterization import (
    Adapted,
    edm_preconditioned,
    predicts_noise,
    predicts_v,
    predicts_x0,
    unit_gaussian,
)
from sfumato.protocols import Solver
from sfumato.randomness import Noise, Purpose, noise_for
from sfumato.sampling import generate, sample, start_from_prior
from sfumato.solvers import (
    DDIM,
    PLMS,
    AdamsBashforth,
    Adaptive,
    Ancestral,
    Churn,
    Euler,
    Heun,
    Multistep,
    UniPC,
)

F64 = torch.float64
MIXTURE = Mixture()
LADDER = NoiseLevels.from_betas(linear_betas(1000))
SOLVERS: list[Solver[Any]] = [Euler(), Heun(), DDIM(0.5), Ancestral(), Churn(Heun(), 3.0)]


class Convolution(nn.Module):
    """A fixed float32 network whose sums depend on the order a processor takes them in."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.first = nn.Parameter(torch.from_numpy(rng.standard_normal((16, 1, 3, 3))).float() / 3)
        self.second = nn.Parameter(torch.from_numpy(rng.standard_normal((1, 16, 3, 3))).float() / 9)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        hidden = nn.functional.conv2d(x, self.first, padding=1) + told[:, None, None, None]
        return nn.functional.conv2d(hidden.tanh(), self.second, padding=1)


def pictures(solver: Solver[Any], seeds: list[int], batch: int = 8) -> Tensor:
    denoise = edm_preconditioned(Convolution(), var=unit_gaussian)
    with torch.no_grad():
        return torch.cat([*generate(denoise, solver, karras(4), [1, 8, 8], seeds, batch=batch)])


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_an_image_is_the_same_for_any_number_and_order_of_seeds(solver: Solver[Any]):
    many = pictures(solver, list(range(70)), batch=16)
    assert many.shape == (70, 1, 8, 8)
    assert (many.flatten(1).unique(dim=0)).shape[0] == 70
    assert pictures(solver, [0], batch=16).equal(many[:1])
    assert pictures(solver, [3, 1, 4, 69, 5], batch=16).equal(many[[3, 1, 4, 69, 5]])
    assert pictures(solver, list(reversed(range(70))), batch=16).equal(many.flip(0))


def test_generate_refuses_nothing():
    with pytest.raises(ValueError, match="at least one image"):
        next(iter(generate(edm_preconditioned(Convolution()), Euler(), karras(4), [1, 8, 8], [])))


def test_generated_images_are_the_papers_algorithm_by_hand():
    """DDPM Algorithm 2 in its own coordinates with the same noise, fixed-large."""
    betas = linear_betas(25)
    levels = NoiseLevels.from_betas(betas)
    abar = torch.cumprod(1 - betas, 0)

    def eps(x: Tensor, i: Tensor) -> Tensor:
        return torch.tanh(0.7 * x + 0.05 * i[:, None])

    denoise = predicts_noise(eps, levels, unit_gaussian)
    seeds = (5, 6, 7)
    noise = Noise(seeds)
    x = start_from_prior(denoise, levels.sigma[-1], [2], noise, dtype=F64)
    *_, last = sample(denoise, Ancestral(), levels.descending(), x, noise)

    y = noise.normal([2], Purpose.START, F64)
    for step, i in enumerate(range(24, -1, -1)):
        index = torch.full((3,), float(i), dtype=F64)
        y = y - betas[i] / (1 - abar[i]).sqrt() * eps(y, index)
        y = y / (1 - betas[i]).sqrt()
        if i > 0:
            y = y + betas[i].sqrt() * noise.at(step).normal([2], Purpose.TRANSITION, F64)
    torch.testing.assert_close(last.x, y, rtol=1e-10, atol=1e-10)


def test_steps_tell_where_they_are():
    x = torch.linspace(-80, 80, 5, dtype=F64)[:, None]
    grid = karras(6)
    steps = list(sample(MIXTURE, Heun(), grid, x))
    assert [s.index for s in steps] == list(range(6))
    assert [s.sigma for s in steps] == grid[:-1].tolist()
    assert [s.sigma_next for s in steps] == grid[1:].tolist()
    assert [s.evaluations for s in steps] == [2, 4, 6, 8, 10, 11]  # 2N - 1
    assert [s.evaluations for s in sample(MIXTURE, Euler(), grid, x)] == [1, 2, 3, 4, 5, 6]
    before = x
    for step in sample(MIXTURE, Euler(), grid, x):
        exact = MIXTURE(before, torch.tensor(step.sigma, dtype=F64)).mean
        torch.testing.assert_close(step.x0, exact)
        before = step.x
    assert steps[-1].x.equal(steps[-1].x0)


def test_the_loop_is_lazy_and_leaves_its_input_alone():
    x = torch.ones(1, 1, dtype=F64)
    walk = sample(MIXTURE, Euler(), karras(1000), x)
    next(walk)
    assert x.item() == 1.0


def test_grids_may_be_lists():
    x = torch.ones(1, 1, dtype=F64)
    (step,) = sample(MIXTURE, Euler(), [2.0, 0.5], x)
    assert (step.sigma, step.sigma_next) == (2.0, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_state_keeps_its_dtype_and_float32_follows_float64(
    solver: Solver[Any], dtype: torch.dtype
):
    denoise = edm_preconditioned(Convolution().double() if dtype == F64 else Convolution())
    noise = noise_for(0, 2)
    x = start_from_prior(denoise, 80.0, [1, 8, 8], noise, dtype=dtype)
    steps = list(sample(denoise, solver, karras(4), x, noise))
    assert all(s.x.dtype == s.x0.dtype == dtype for s in steps)
    exact = edm_preconditioned(Convolution().double())
    *_, last = sample(exact, solver, karras(4), x.double(), noise)
    torch.testing.assert_close(steps[-1].x.double(), last.x, rtol=0, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_states_are_refused(dtype: torch.dtype):
    with pytest.raises(ValueError, match="float32 or float64"):
        sample(MIXTURE, Euler(), karras(4), torch.zeros(1, 1, dtype=dtype))


# --- refusals happen before the first step -------------------------------------------------------


@pytest.mark.parametrize("solver", [Ancestral(), DDIM(0.1), Churn(Euler(), 1.0)], ids=str)
def test_stochastic_solvers_do_not_walk_up(solver: Solver[Any]):
    with pytest.raises(ValueError, match="cannot walk up"):
        sample(MIXTURE, solver, [0.1, 1.0], torch.zeros(1, 1), noise_for(0, 1))


@pytest.mark.parametrize("solver", [Euler(), Heun(), DDIM(0.0)], ids=str)
def test_deterministic_solvers_walk_up_from_above_zero(solver: Solver[Any]):
    sample(MIXTURE, solver, [0.1, 1.0], torch.zeros(1, 1))
    with pytest.raises(ValueError, match="not at 0"):
        sample(MIXTURE, solver, [0.0, 1.0], torch.zeros(1, 1))


def test_bad_grids_are_refused():
    for grid in ([1.0, 1.0, 0.0], [1.0], [1.0, 2.0, 0.5]):
        with pytest.raises(ValueError, match="grid"):
            sample(MIXTURE, Euler(), grid, torch.zeros(1, 1))


def test_levels_the_network_does_not_know_are_refused():
    x = torch.zeros(1, 1)
    wrapped = Clipped(edm_preconditioned(Convolution()))
    with pytest.raises(ValueError, match="outside the trained range"):
        sample(wrapped, Euler(), karras(4, high=100.0), x)
    ladder = predicts_noise(Convolution(), LADDER)
    with pytest.raises(ValueError, match="not a trained level; the nearest"):
        sample(ladder, Euler(), karras(4, low=0.02), x)
    sample(ladder, Euler(), LADDER.descending(uniform(1000, 7)), x)
    sample(ladder, Euler(), ladder.range.snap(karras(4, low=0.02)), x)


def test_denoisers_are_bound_to_the_grid():
    """`on` is called with the grid, once, before the first step, through combinators too."""
    bound: list[Tensor] = []

    class Watched(Adapted):
        def on(self, sigmas: Tensor) -> Adapted:
            bound.append(sigmas)
            return self

    inner = predicts_x0(lambda x, t: x, VP())
    watched = Watched(inner.network, inner.process, inner.coefficients)
    grid = [3.0, 1.0, 0.0]
    sample(Clipped(watched), Euler(), grid, torch.zeros(1, 1))
    assert [b.tolist() for b in bound] == [grid]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_that_returns_nan_stops_the_walk(bad: float):
    def denoise(x: Tensor, sigma: Tensor) -> Gaussian:
        broken = torch.where(torch.arange(len(x))[:, None] == 1, bad, 0.0)
        return Gaussian(broken * (sigma < 3) if bad != bad or sigma < 3 else x * 0, sigma * 0)

    walk = sample(denoise, Euler(), [9.0, 4.0, 2.0, 1.0, 0.0], torch.zeros(3, 1))
    if bad == bad:
        next(walk)
        next(walk)
    with pytest.raises(FloatingPointError, match=r"from sigma .* to .*, in 1 of 3 images \(1\)"):
        for _ in walk:
            pass


# --- priors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("denoise", "excess"),
    [
        (predicts_noise(lambda x, t: x, LADDER), 1.0),
        (predicts_v(lambda x, t: x, VP()), 1.0),
        (predicts_v(lambda x, t: x, SubVP()), 2.0),
        (edm_preconditioned(lambda x, t: x), 0.0),
        (predicts_noise(lambda x, t: x, NoiseLevels.geometric(10, 0.01, 50.0)), 0.0),
    ],
)
def test_start_from_prior_has_the_priors_variance(denoise: Adapted, excess: float):
    """N(0, 1 + high^2) for processes that end in a unit Gaussian, N(0, high^2) for the others."""
    noise = noise_for(0, 2)
    unit = noise.normal([3], Purpose.START, F64)
    high = denoise.range.high
    top = start_from_prior(denoise, high, [3], noise, dtype=F64)
    torch.testing.assert_close(top, unit * float(denoise.prior.var) ** 0.5, rtol=1e-9, atol=0)
    low = start_from_prior(denoise, 2.0, [3], noise, dtype=F64)
    torch.testing.assert_close(
        (low / unit) ** 2 - 4, torch.full_like(low, excess), rtol=0, atol=1e-3
    )


def test_ancestral_samples_of_gaussian_data_have_its_covariance():
    """With the exact posterior variance no grid is too coarse: only sampling error is left."""
    oracle = GaussianOracle.diagonal([0.3, 1.0, 2.0], mean=0.5)
    count, grid = 10_000, torch.tensor([80.0, 5.0, 1.0, 0.3], dtype=F64)
    noise = noise_for(0, count)
    unit = noise.normal([3], Purpose.START, F64)
    x = oracle.mean + (oracle.eigenvalues + grid[0] ** 2).sqrt() * unit
    *_, last = sample(oracle, Ancestral(), grid, x, noise)
    var = oracle.eigenvalues + grid[-1] ** 2
    whitened = (last.x - oracle.mean) / var.sqrt()
    assert whitened.mean(0).abs().max() < 4.5 * count**-0.5
    assert (whitened.T.cov() - torch.eye(3, dtype=F64)).abs().max() < 4.5 * (2 / count) ** 0.5


@pytest.mark.parametrize("solver", [Multistep(2), UniPC(), PLMS(), AdamsBashforth(2), Adaptive()])
def test_churn_refuses_solvers_that_remember(solver: Solver[Any]):
    with pytest.raises(ValueError, match="knows one step only"):
        Churn(solver, 10)


@pytest.mark.parametrize("batch", [0, -4])
def test_a_batch_below_one_is_refused(batch: int) -> None:
    denoise = edm_preconditioned(lambda x, _: x)
    drawn = generate(denoise, Euler(), karras(3), (1,), range(3), batch=batch)
    with pytest.raises(ValueError, match=f"batch must be at least 1, got {batch}"):
        next(drawn)
