"""The stochastic solvers: strong and weak order against closed forms, and what they keep.

On Gaussian data every solver is linear in x and in its noise, so its moments and its mean squared
distance to the exact solution for the same Brownian path are computed, not sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from oracles import F64, GaussianOracle, Mixture
from sfumato.gaussian import Gaussian
from sfumato.noise import VE, VP, NoiseLevels, NoiseRange, SubVP, karras, linear_betas, uniform
from sfumato.parameterization import unit_gaussian
from sfumato.protocols import Denoise, Solver
from sfumato.randomness import BrownianNoise, Noise, Purpose, brownian_for, noise_for
from sfumato.sampling import sample
from sfumato.solvers import DDIM, Ancestral, Churn, Euler, Heun, Multistep, SingleStep
from sfumato.solvers.cost import evaluations
from sfumato.solvers.exponential_sde import ExponentialSDE, Overshoot
from sfumato.solvers.langevin import AnnealedLangevin, Corrector
from sfumato.solvers.predictors import EulerMaruyama, ReverseDiffusion
from sfumato.solvers.restart import Interval, Restart
from stochastic_helpers import (
    DATA,
    HIGH,
    LOW,
    end,
    exact_gain,
    log_grid,
    response,
    strong_error,
    variance_error,
)

MIXTURE = Mixture()
PROCESSES = [VP(), SubVP(), VE()]
RESTART = (Interval(0.3, 1.0, times=2, steps=100),)

# name -> (solver, weak order, strong order or None, heat of the SDE it follows)
Row = tuple[Solver[Any], int, int | None, float]
ORDERS: dict[str, list[Row]] = {
    "ReverseDiffusion": [(ReverseDiffusion(p), 1, 1, 1.0) for p in PROCESSES],
    "EulerMaruyama": [(EulerMaruyama(p), 1, 1, 1.0) for p in PROCESSES],
    "ExponentialSDE": [
        *((ExponentialSDE(n, heat), n, 1, heat) for n in (1, 2) for heat in (0.5, 1.0, 2.0)),
        (ExponentialSDE(2, 1.0, published=True), 2, 1, 1.0),
        (ExponentialSDE(1, 0.0), 1, None, 0.0),
        (ExponentialSDE(2, 0.0), 2, None, 0.0),
        (ExponentialSDE(2, 0.0, published=True), 2, None, 0.0),
    ],
    "Overshoot": [
        (Overshoot(Euler()), 1, 1, 1.0),
        (Overshoot(Heun()), 2, 1, 1.0),
        (Overshoot(SingleStep(2), 0.5), 2, 1, 0.25),
    ],
    "Restart": [(Restart(Heun(), RESTART), 2, None, 0.0)],
    "Corrector": [(Corrector(Euler()), 1, None, 0.0)],
    "AnnealedLangevin": [(AnnealedLangevin(), 0, None, 0.0)],
}
ROWS = [row for rows in ORDERS.values() for row in rows]
STOCHASTIC = [row for row in ROWS if row[2] is not None]
ON_GRIDS = [row for row in ROWS if type(row[0]).__name__ in
            ("ReverseDiffusion", "EulerMaruyama", "ExponentialSDE", "Overshoot")]  # fmt: skip


def slope(coarse: float, fine: float) -> float:
    return math.log2(coarse / fine)


def test_rows_say_what_their_solvers_do():
    for name, rows in ORDERS.items():
        for solver, order, strong, heat in rows:
            assert type(solver).__name__ == name
            assert solver.order == order
            if name == "ExponentialSDE":
                assert solver.invertible == (strong is None) == (heat == 0)
            else:
                assert not solver.invertible


# --- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "weak", "strong", "heat"), ON_GRIDS, ids=str)
def test_weak_order_of_the_variance(
    solver: Solver[Any], weak: int, strong: int | None, heat: float
):
    errors = [variance_error(solver, log_grid(n)) for n in (200, 400)]
    assert slope(*errors) == pytest.approx(weak, abs=0.1)


@pytest.mark.parametrize(("solver", "weak", "strong", "heat"), STOCHASTIC, ids=str)
def test_weak_order_of_the_mean(solver: Solver[Any], weak: int, strong: int | None, heat: float):
    """E[x | x at the start] of the SDE. (`Overshoot` has the marginals of its solver's order, but
    a kernel of order 1; where D is linear, k x + (1 - k) D and its like of heat 1 are exact.)"""
    weak = 1 if isinstance(solver, Overshoot) else weak

    def error(steps: int) -> float:
        gain = response(solver, log_grid(steps)).gain
        return float((gain - exact_gain(heat, HIGH, LOW)).abs().max())

    assert error(100) < 1e-14 or slope(error(100), error(200)) > weak - 0.1


@pytest.mark.parametrize(("solver", "weak", "strong", "heat"), STOCHASTIC, ids=str)
def test_strong_order(solver: Solver[Any], weak: int, strong: int, heat: float):
    """Root mean squared distance to the exact solution of the same Brownian path."""
    errors = [float(strong_error(solver, log_grid(n), heat).max()) for n in (64, 128)]
    assert slope(*errors) == pytest.approx(strong, abs=0.05)


PATHS = brownian_for(7, 1)
WIDTH = 1000


@cache
def walk(solver: Solver[Any], steps: int, denoise: Denoise = DATA, noise: Noise = PATHS) -> Tensor:
    """Where WIDTH paths for each eigenvalue end, always from the same starts."""
    x = noise_for(7, 1).normal([WIDTH * 4], Purpose.START, F64).reshape(-1, 4)
    x = (x * (DATA.eigenvalues + HIGH**2).sqrt()).reshape(1, -1)

    def rows(x: Tensor, sigma: Tensor) -> Gaussian:
        mean = denoise(x.reshape(-1, 4), sigma).mean.reshape(1, -1)
        return Gaussian(mean, torch.zeros((), dtype=F64))

    return end(rows, solver, log_grid(steps), x, noise).reshape(-1, 4)


@pytest.mark.parametrize(
    "solver",
    [ExponentialSDE(1), ExponentialSDE(2), ReverseDiffusion(VP()), EulerMaruyama(SubVP())],
    ids=str,
)
def test_brownian_noise_follows_one_path(solver: Solver[Any]):
    """All solvers of the reverse SDE, on any grid, tend to one picture, as fast as computed."""
    truth = walk(ExponentialSDE(2), 128)
    for steps in (8, 16):
        measured = (walk(solver, steps) - truth).square().mean(0).sqrt()
        torch.testing.assert_close(
            measured, strong_error(solver, log_grid(steps)), rtol=0.15, atol=0
        )


def test_strong_order_on_the_mixture():
    """With a curved D, and there is nothing to compare with but the path itself, refined."""
    ends = {n: walk(ExponentialSDE(2), n, MIXTURE) for n in (8, 16, 32, 128)}
    errors = [float((ends[n] - ends[128]).square().mean().sqrt()) for n in (8, 16, 32)]
    assert slope(*errors[:2]) == pytest.approx(1, abs=0.3)
    assert slope(*errors[1:]) == pytest.approx(1, abs=0.3)


def test_plain_noise_follows_no_path():
    ends = [walk(ExponentialSDE(2), n, noise=noise_for(7, 1)) for n in (16, 32)]
    assert float((ends[0] - ends[1]).square().mean().sqrt()) > 0.5


# --- what equals what ----------------------------------------------------------------------------


def point(x: Tensor, sigma: Tensor) -> Gaussian:
    return Gaussian(MIXTURE(x, sigma).mean, torch.zeros((), dtype=F64))


def unit(x: Tensor, sigma: Tensor) -> Gaussian:
    return Gaussian(MIXTURE(x, sigma).mean, unit_gaussian(sigma))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (ExponentialSDE(1, 1.0), DDIM(1.0)),
        (ExponentialSDE(1, 0.0), Euler()),
        (ExponentialSDE(1, 1.0), Ancestral()),
        (ExponentialSDE(2, 0.0), Multistep(2)),
        (ExponentialSDE(2, 0.0, published=True), Multistep(2, published=True)),
        (Overshoot(Euler(), 0.4), DDIM(0.4)),
        (Overshoot(Euler(), 1.0), Ancestral()),
        (Overshoot(Heun(), 0.0), Heun()),
    ],
    ids=str,
)
def test_these_are_the_same(a: Solver[Any], b: Solver[Any]):
    grid, noise = karras(12), noise_for(0, 6)
    x = noise.normal([3], Purpose.START, F64) * grid[0]
    torch.testing.assert_close(
        end(point, a, grid, x, noise), end(point, b, grid, x, noise), rtol=1e-12, atol=1e-12
    )


def test_ancestral_with_unit_gaussian_variance_is_score_sdes_ancestral_predictor():
    """(x' + b score') / sqrt(1 - b) + sqrt(b) z in DDPM's coordinates, b the forward variance."""
    levels = NoiseLevels.from_betas(linear_betas(1000))
    noise = noise_for(0, 3)
    x = noise.normal([4], Purpose.START, F64)
    for now, below in ((999, 998), (500, 400), (7, 2)):
        sigma, s = levels.sigma[now], levels.sigma[below]
        scale = levels.scale(sigma)
        b = 1 - (scale / levels.scale(s)) ** 2
        score = (unit(x, sigma).mean - x) / sigma**2 / scale
        z = noise.like(x, Purpose.TRANSITION)
        theirs = (x * scale + b * score) / (1 - b).sqrt() + b.sqrt() * z
        ours, _ = Ancestral().step(unit, x, sigma, s, None, noise)
        torch.testing.assert_close(ours * levels.scale(s), theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_ancestral_with_unit_gaussian_variance_is_ddims_sigma_hat(steps: int):
    """DDIM's Table 1, last row: the posterior mean of the sub-sequence with noise of sigma-hat.

    sigma-hat = sqrt(1 - abar / abar_below), in DDPM's coordinates (DDIM section 5).
    """
    betas = linear_betas(1000)
    abar = torch.cumprod(1 - betas, 0)
    levels = NoiseLevels.from_betas(betas)
    indices = uniform(1000, steps)
    noise = noise_for(0, 3)
    x = noise.normal([4], Purpose.START, F64) * levels.sigma[-1]
    theirs = x * abar[indices[-1]].sqrt()
    walk = sample(unit, Ancestral(), levels.descending(indices), x, noise)
    for step, now, below in zip(walk, indices[::-1], [*indices[-2::-1], None], strict=True):
        a, a_below = abar[now], torch.ones((), dtype=F64) if below is None else abar[below]
        x0 = unit(theirs / a.sqrt(), levels.sigma[now]).mean
        b = 1 - a / a_below
        mean = a_below.sqrt() * b / (1 - a) * x0
        mean = mean + (1 - b).sqrt() * (1 - a_below) / (1 - a) * theirs
        z = noise.at(step.index).like(x, Purpose.TRANSITION)
        theirs = mean if below is None else mean + b.sqrt() * z
        torch.testing.assert_close(step.x * a_below.sqrt(), theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("process", [VP(), SubVP()], ids=str)
@pytest.mark.parametrize("exact", [True, False])
def test_predictors_in_the_papers_coordinates(process: VP | SubVP, exact: bool):
    """x' = scale x walked by the printed formulas, b(t) = .1 + 19.9 t written out.

    Reverse diffusion: x' - f + G^2 score' + G z with the forward step's f = (r - 1) x' and G.
    Euler-Maruyama: drift and g times the time step; g^2 = b, sub-VP (1 - exp(-2 int b)) b.
    """
    t, t_below = torch.tensor([0.73, 0.7], dtype=F64)
    total, total_below = (9.95 * u**2 + 0.1 * u for u in (t, t_below))
    b = 0.1 + 19.9 * t

    def mean_and_var(total: Tensor) -> tuple[Tensor, Tensor]:
        loss = -torch.expm1(-total)
        return (-total / 2).exp(), loss if isinstance(process, VP) else loss**2

    (scale, var), (scale_below, var_below) = mean_and_var(total), mean_and_var(total_below)
    sigma, s = var.sqrt() / scale, var_below.sqrt() / scale_below
    noise = noise_for(0, 3)
    x = noise.normal([4], Purpose.START, F64) * (1 + sigma)
    z, x_scaled = noise.like(x, Purpose.TRANSITION), x * scale
    score = (scale * point(x, sigma).mean - x_scaled) / var
    if exact:
        r = scale / scale_below
        drift, square = (r - 1) * x_scaled, var - r**2 * var_below
    else:
        g_square = b if isinstance(process, VP) else b * -torch.expm1(-2 * total)
        drift, square = -0.5 * b * x_scaled * (t - t_below), g_square * (t - t_below)
    theirs = x_scaled - drift + square * score + square.sqrt() * z
    solver = ReverseDiffusion(process) if exact else EulerMaruyama(process)
    ours, _ = solver.step(point, x, sigma, s, None, noise)
    torch.testing.assert_close(ours * scale_below, theirs, rtol=1e-10, atol=1e-12)


# --- correction ----------------------------------------------------------------------------------


def test_langevin_at_one_level_tends_to_its_known_stationary_variance():
    """Unadjusted Langevin on N(0, v): v / (1 - size / (2 v)), for each eigenvalue by itself."""
    grid = torch.tensor([0.5, 0.4], dtype=F64)
    solver = AnnealedLangevin(step_size=0.3, steps=300)
    size = 0.3 / 2 * (0.5 / 0.4) ** 2
    v = DATA.eigenvalues + 0.25
    for start in (0.0, 9.0):
        out = response(solver, grid).var(torch.full_like(v, start))
        torch.testing.assert_close(out, v / (1 - size / (2 * v)), rtol=1e-6, atol=0)


def test_annealed_langevin_ends_with_denoising():
    """x + lowest^2 score: the variance after it is e^2 / (e + lowest^2), for any e."""
    grid = torch.tensor([5.0, 2.0, 1.0, 0.5, 0.0], dtype=F64)
    e = torch.tensor([0.05, 1.0], dtype=F64)
    data = GaussianOracle.diagonal(e.tolist())
    solver = AnnealedLangevin(2e-2, 200)
    out = response(solver, grid, data, 2).var(e + 25)
    torch.testing.assert_close(out, e**2 / (e + 0.25), rtol=0.06, atol=0)
    assert evaluations(solver, 4) == 801
    x = torch.tensor([[0.3, -2.0]], dtype=F64)
    tiny = AnnealedLangevin(1e-300, 1)
    last, _ = tiny.step(data, x, grid[3], grid[4], tiny.start(x, grid), noise_for(0, 1))
    torch.testing.assert_close(last, data(x, grid[3]).mean, rtol=1e-12, atol=0)


def test_annealed_langevins_error_falls_with_its_step():
    """Its only one, given enough steps: halved with the step (order 1 in step_size)."""
    grid = torch.tensor([1.0, 0.5, 0.25, 0.2], dtype=F64)
    v = DATA.eigenvalues + 0.25**2  # the last level is not corrected at: x stays

    def error(size: float, steps: int) -> float:
        out = response(AnnealedLangevin(size, steps), grid).var(v)
        return float(((out - v) / v).abs().max())

    assert slope(error(0.04, 400), error(0.02, 800)) == pytest.approx(1, abs=0.15)


def test_the_correctors_step_is_the_papers():
    """2 alpha (r |z| / |g|)^2, g the score, norms an image's own or averaged (Algorithms 4, 5)."""
    levels = NoiseLevels.from_betas(linear_betas(1000))
    grid = levels.sigma[[900, 899, 898]]
    noise = noise_for(0, 3)
    x = noise.normal([2, 5], Purpose.START, F64) * torch.tensor([1.0, 5.0, 50.0])[:, None, None]
    z = noise.like(x, Purpose.CORRECTOR)
    sigma, scale = grid[1], levels.scale(grid[1])
    score = (point(x, sigma).mean - x) / sigma**2 / scale  # in DDPM's coordinates
    alpha = 1 - linear_betas(1000)[899]

    def norm(x: Tensor, shared: bool) -> Tensor:
        norm = x.flatten(1).norm(dim=1)
        return norm.mean().expand(3) if shared else norm

    for shared in (False, True):
        size = 2 * alpha * (0.2 * norm(z, shared) / norm(score, shared)) ** 2
        size = size[:, None, None]
        theirs = x * scale + size * score + (2 * size).sqrt() * z
        solver = Corrector(None, 0.2, shared_norms=shared, process=levels)
        ours, _ = solver.step(point, x, grid[0], sigma, solver.start(x, grid), noise)
        torch.testing.assert_close(ours * scale, theirs, rtol=1e-10, atol=1e-12)


@dataclass(frozen=True)
class Isotropic:
    """The denoiser of N(0, var) in any number of dimensions."""

    var: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        gain = self.var / (self.var + sigma**2)
        return Gaussian(gain * x, gain * sigma**2)


def test_correction_at_one_level_tends_to_its_known_stationary_variance():
    """On N(0, v), many dimensions, |z| / |score| = v / |x|: the variance is v (1 + snr^2)."""
    data = Isotropic(2.0)
    grid = torch.tensor([1.0, 0.9], dtype=F64)
    solver = Corrector(None, snr=0.3, steps=60)
    x = 3 * noise_for(0, 1).normal([20_000], Purpose.START, F64)
    out = end(data, solver, grid, x, noise_for(1, 1))
    assert float(out.square().mean()) == pytest.approx(2.81 * (1 + 0.3**2), rel=0.03)


def test_predictor_and_corrector_keep_the_marginals():
    """Exact transitions and corrections: at most the corrector's own excess, snr^2, at each level.

    And the correction pulls a start of the wrong variance to the right one.
    """
    data = Isotropic(0.5)
    grid = torch.tensor([3.0, 2.0, 1.4, 1.0], dtype=F64)
    for steps, start in ((1, 9.5), (100, 30.0)):
        solver = Corrector(Ancestral(), snr=0.16, steps=steps)
        x = start**0.5 * noise_for(0, 1).normal([20_000], Purpose.START, F64)
        for step in sample(data, solver, grid, x, noise_for(1, 1)):
            v = 0.5 + step.sigma_next**2
            assert 0.97 < float(step.x.square().mean()) / v < 1.03 + 0.16**2


class Asked:
    """A denoiser of a delta at 0 that records the levels it is asked at."""

    def __init__(self, limits: NoiseRange | None = None) -> None:
        self.levels: list[float] = []
        self.range = limits

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        self.levels.append(float(sigma))
        return Gaussian(torch.zeros_like(x), torch.zeros((), dtype=F64))


GRID = torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=F64)
X = torch.ones(2, 3, dtype=F64)


@pytest.mark.parametrize(
    ("solver", "levels"),
    [
        (Corrector(Ancestral(), steps=2), [4, 2, 2, 2, 1, 1, 1]),
        (Corrector(Ancestral(), corrects_first=True), [4, 4, 2, 2, 1, 1]),
        (Corrector(Heun(), steps=1), [4, 2, 2, 2, 1, 1, 1]),
        (Corrector(None), [2, 1, 1]),
        (Corrector(None, corrects_first=True), [4, 2, 1, 1]),
        (AnnealedLangevin(0.1, 2), [4, 4, 2, 2, 1, 1, 1]),
        (ReverseDiffusion(VE()), [4, 2, 1]),
        (EulerMaruyama(VP()), [4, 2, 1]),
        (ExponentialSDE(2), [4, 2, 1]),
        (Overshoot(Heun(), 1.0), [4, 1, 2, 0.5, 1]),
        (Restart(Euler(), (Interval(2.1, 3.0, times=2, steps=1),)), [4, 3, 3, 2, 1]),
    ],
    ids=str,
)
def test_levels_at_which_the_denoiser_is_asked(solver: Solver[Any], levels: list[float]):
    """In the paper's order, and in that of its code; and that `evaluations` counts them."""
    denoise = Asked()
    end(denoise, solver, GRID, X, noise_for(0, 2))
    assert denoise.levels == pytest.approx(levels, rel=1e-12)
    assert evaluations(solver, 3) == len(levels)


def test_both_orders_of_correction_are_one_but_for_the_first_level():
    """Corrected once by hand at the first level, the paper's order gives what the code's does."""
    noise = noise_for(0, 4)
    x = 4 * noise.normal([3], Purpose.START, F64)
    first = Corrector(DDIM(0), corrects_first=True)
    paper = Corrector(DDIM(0))
    alone = Corrector[None](None, corrects_first=True)
    corrected, _ = alone.step(point, x, GRID[0], GRID[1], alone.start(x, GRID), noise.at(0))

    def numbered(step: int) -> Noise:  # the code's order numbers a level's draw one later
        return noise.at(step + 1)

    state = paper.start(x, GRID)
    for index, (sigma, s) in enumerate(pairwise(GRID)):
        corrected, state = paper.step(point, corrected, sigma, s, state, numbered(index))
    torch.testing.assert_close(corrected, end(point, first, GRID, x, noise), rtol=1e-12, atol=1e-12)


# --- restart -------------------------------------------------------------------------------------


class ExactFlow:
    """The probability flow of Gaussian data in closed form, as a solver."""

    order, invertible, stages = 99, True, 1

    def start(self, x: Tensor, sigmas: Tensor) -> None:
        return None

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: None,
        noise: Noise | None,
    ) -> tuple[Tensor, None]:
        return DATA.flow(x, sigma, sigma_next), None


def test_exact_walks_with_restarts_or_overshoots_keep_the_marginals():
    start = DATA.eigenvalues + 80.0**2
    twice = (Interval(0.06, 0.3, 5, 2), Interval(1.0, 20.0, 3, 1))
    for solver in (Restart(ExactFlow(), twice), Overshoot(ExactFlow(), 0.7)):
        out = response(solver, karras(18), DATA).var(start)
        torch.testing.assert_close(out, DATA.eigenvalues, rtol=1e-12, atol=0)


def test_restart_tends_to_the_marginals_at_its_solvers_order():
    def error(steps: int) -> float:
        solver = Restart(Heun(), (Interval(0.3, 1.0, times=2, steps=steps // 2),))
        return variance_error(solver, log_grid(steps))

    assert slope(error(100), error(200)) == pytest.approx(2, abs=0.1)


def test_restarts_contract_what_went_wrong_above():
    """A start of the wrong variance: each restart keeps only a part of the error (Xu et al.)."""
    wrong = DATA.eigenvalues + HIGH**2 + 10

    def error(times: int) -> Tensor:
        solver = Restart(ExactFlow(), (Interval(0.3, 2.0, times=times, steps=1),))
        return response(solver, log_grid(10)).var(wrong) - DATA.eigenvalues - LOW**2

    per_time = (DATA.eigenvalues + 0.3**2) / (DATA.eigenvalues + 2.0**2)
    place = log_grid(10)[(log_grid(10).log() - math.log(0.3)).abs().argmin()]
    per_time = (DATA.eigenvalues + place**2) / (DATA.eigenvalues + 4)
    torch.testing.assert_close(error(3) / error(2), per_time, rtol=1e-9, atol=0)


def test_the_main_walk_draws_what_it_draws_without_restarts():
    noise = noise_for(0, 2)
    *_, before, _ = sample(point, DDIM(1.0), GRID, X, noise)
    solver = Restart(DDIM(1.0), (Interval(1.0, 3.0, 2, 2),), inflation=1e-300)

    a = [step.x for step in sample(point, solver, GRID, X, noise)]
    b = [step.x for step in sample(point, DDIM(1.0), GRID, X, noise)]
    assert a[0].equal(b[0])
    assert not a[1].isclose(before.x).any()


@pytest.mark.parametrize("inner", [DDIM(1.0), Churn(Heun(), 4.0), Corrector(Ancestral(), steps=2)])
def test_restarts_draw_nothing_twice(inner: Solver[Any]):
    """`Impulses` refuses a second use of a draw."""
    solver = Restart(inner, (Interval(0.3, 1.0, 3, 2), Interval(1.0, 2.0, 2, 3)))
    if not isinstance(inner, Corrector):  # not linear
        response(solver, log_grid(9))
    noise = noise_for(0, 2)
    assert end(point, solver, log_grid(9), X, noise).isfinite().all()


def test_a_solver_with_a_memory_forgets_what_was_before_the_restart():
    """After it the walk is that of a new start on the rest of the grid."""
    solver, grid = Multistep(2), log_grid(9)
    restarting = Restart(solver, (Interval(0.3, 1.0, 2, 2),))
    place = int((grid.log() - math.log(0.3)).abs().argmin())
    steps = list(sample(point, restarting, grid, X, noise_for(0, 2)))
    rest = end(point, solver, grid[place:], steps[place - 1].x)
    assert steps[-1].x.equal(rest)


def test_restarts_round_to_the_ladder():
    levels = torch.tensor([1.0, 1.2, 2.0, 2.2, 2.6, 4.0], dtype=F64)
    denoise = Asked(NoiseRange(1.0, 4.0, levels))
    end(denoise, Restart(Euler(), (Interval(2.0, 2.7, 1, 4),)), GRID, X, noise_for(0, 2))
    assert denoise.levels == [4.0, 2.6, 2.2, 2.0, 1.0]


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS[:-1], ids=lambda row: str(row[0]))
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_step_to_0_returns_the_mean_and_keeps_the_dtype(row: Row, dtype: torch.dtype):
    solver = row[0]
    x = torch.tensor([[40.0], [-3.0]], dtype=dtype)
    grid = torch.tensor([80.0, 1.0, 0.4, 0.0], dtype=F64)
    if isinstance(solver, Restart):
        solver = Restart(Heun(), (Interval(0.4, 1.0),))
    steps = list(sample(MIXTURE, solver, grid, x, noise_for(0, 2)))
    last = MIXTURE(steps[-2].x, grid[2]).mean
    assert steps[-1].x.dtype == dtype
    torch.testing.assert_close(steps[-1].x, last, rtol=1e-6, atol=1e-6)
    assert steps[-1].evaluations == evaluations(solver, 3)


@pytest.mark.parametrize(
    "solver", [row[0] for row in ROWS if row[2] or isinstance(row[0], Corrector)], ids=str
)
def test_stochastic_solvers_ask_for_noise(solver: Solver[Any]):
    with pytest.raises(ValueError, match="pass noise=noise_for"):
        end(MIXTURE, solver, karras(4), torch.zeros(1, 1, dtype=F64))


def test_noise_of_a_step_is_drawn_between_its_levels_of_the_clock():
    """u = sigma^(-2 heat), upwards; no other draw."""
    answer = response(ExponentialSDE(2, 0.5), torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=F64))
    assert [a for a, _ in answer.stretches] == pytest.approx([0.25, 0.5, 1.0])
    assert [b for _, b in answer.stretches] == pytest.approx([0.5, 1.0, 2.0])
    assert isinstance(PATHS.at(3), BrownianNoise)


def broken() -> list[tuple[Any, str]]:
    return [
        (lambda: ExponentialSDE(3), "order 1 or 2, not 3"),
        (lambda: ExponentialSDE(2, -0.1), "heat must be at least 0"),
        (lambda: ExponentialSDE(2, math.nan), "heat must be at least 0"),
        (lambda: Overshoot(Euler(), 1.1), r"eta lies in \[0, 1\]"),
        (lambda: Overshoot(Ancestral()), "deterministic solver"),
        (lambda: Corrector(Euler(), 0.0), "snr must be above 0"),
        (lambda: Corrector(Euler(), 0.1, 0), "number of steps must be above 0"),
        (lambda: AnnealedLangevin(-1.0), "size of a step must be above 0"),
        (lambda: AnnealedLangevin(1.0).start(X, GRID * 0.1), "diverge .* less than 0.04"),
        (lambda: Interval(2.0, 1.0), "0 < low < high"),
        (lambda: Interval(1.0, 2.0, times=0), "number of restarts must be above 0"),
        (lambda: Interval(1.0, 2.0, rho=math.inf), "rho must be above 0"),
        (lambda: Restart(Euler(), ()), "at least one interval"),
        (lambda: Restart(Euler(), RESTART, inflation=0.0), "inflation must be above 0"),
        (lambda: Restart(Euler(), (Interval(0.1, 0.5),)).start(X, GRID), "level 1, which is above"),
        (
            lambda: Restart(Euler(), (Interval(1, 3), Interval(1.2, 3))).start(X, GRID),
            "another's: take more steps",
        ),
        (lambda: Restart(Euler(), RESTART).start(X, GRID[[0, 3]]), "between its first and 0"),
    ]


@pytest.mark.parametrize("at", range(len(broken())))
def test_bad_arguments(at: int):
    make, words = broken()[at]
    with pytest.raises(ValueError, match=words):
        make()
