"""Solvers against exact flows and exact covariance recursions; no reference solver, no sampling.

In one dimension the probability flow is the quantile map, and on Gaussian data every step is an
affine map whose variance is computed exactly. A solver without a row in ORDERS does not exist.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from oracles import GaussianOracle, Mixture
from sfumato import solvers
from sfumato.gaussian import Gaussian
from sfumato.noise import NoiseLevels, NoiseRange, cosine_betas, karras, linear_betas
from sfumato.parameterization import unit_gaussian
from sfumato.protocols import Denoise, Solver
from sfumato.randomness import Noise, Purpose, noise_for
from sfumato.sampling import sample
from sfumato.solvers import DDIM, Ancestral, Churn, Euler, Heun
from test_non_stationary import ORDERS as TABLE_ORDERS
from test_orders_deterministic import ORDERS as DETERMINISTIC_ORDERS
from test_orders_stochastic import ORDERS as STOCHASTIC_ORDERS

F64 = torch.float64
MIXTURE = Mixture()
HIGH, LOW = 5.0, 0.1

# name in sfumato.solvers -> (solver, order): pathwise for deterministic, weak for stochastic ones
ORDERS: dict[str, list[tuple[Solver[Any], int]]] = {
    "Euler": [(Euler(), 1)],
    "Heun": [(Heun(), 2), (Heun(alpha=0.5), 2), (Heun(alpha=2 / 3), 2)],
    "DDIM": [(DDIM(), 1), (DDIM(0.5), 1), (DDIM(1.0), 1)],
    "Churn": [(Churn(Heun()), 2), (Churn(Euler()), 1), (Churn(Heun(), 4.0), 2),
              (Churn(Euler(), 4.0), 1)],
    "Ancestral": [(Ancestral(), 1)],
}  # fmt: skip
ROWS = [row for rows in ORDERS.values() for row in rows]
DETERMINISTIC = [
    (s, n) for s, n in ROWS if s.invertible or (isinstance(s, Churn) and s.amount == 0)
]


def test_every_solver_has_a_row():
    assert set(solvers.__all__) == {
        *ORDERS,
        *DETERMINISTIC_ORDERS,
        *STOCHASTIC_ORDERS,
        *TABLE_ORDERS,
    }
    for name, rows in ORDERS.items():
        assert rows
        for solver, order in rows:
            assert type(solver).__name__ == name
            assert solver.order == order


def end(denoise: Denoise, solver: Solver[Any], grid: Tensor, x: Tensor, noise: Noise | None = None):
    *_, last = sample(denoise, solver, grid, x, noise)
    return last.x


def log_grid(steps: int, high: float = HIGH, low: float = LOW) -> Tensor:
    return torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=F64)


@pytest.mark.parametrize(("solver", "order"), DETERMINISTIC, ids=lambda v: str(v))
def test_order_on_the_mixture(solver: Solver[Any], order: int):
    x = torch.linspace(-12, 12, 13, dtype=F64)[:, None]
    exact = MIXTURE.flow(x, HIGH, LOW)

    def error(steps: int) -> float:
        return float((end(MIXTURE, solver, log_grid(steps), x) - exact).abs().max())

    assert math.log2(error(256) / error(512)) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize("solver", [s for s, _ in DETERMINISTIC if s.invertible], ids=str)
def test_inversion_on_the_mixture_has_the_same_order(solver: Solver[Any]):
    """Up the ascending grid to the exact flow; and up and down again to where it began."""
    x = MIXTURE.flow(torch.linspace(-12, 12, 13, dtype=F64)[:, None], HIGH, LOW)
    exact = MIXTURE.flow(x, LOW, HIGH)

    def errors(steps: int) -> tuple[float, float]:
        up = log_grid(steps).flip(0)
        top = end(MIXTURE, solver, up, x)
        back = end(MIXTURE, solver, up.flip(0), top)
        return float((top - exact).abs().max()), float((back - x).abs().max())

    for coarse, fine in zip(errors(256), errors(512), strict=True):
        # up and down, the leading errors of even orders cancel: it may converge faster, not slower
        slope = math.log2(coarse / fine)
        assert slope > solver.order - 0.1
    assert math.log2(errors(256)[0] / errors(512)[0]) == pytest.approx(solver.order, abs=0.1)


def test_ddim_without_noise_is_euler():
    x = torch.linspace(-300, 300, 13, dtype=F64)[:, None]
    for grid in (karras(18), log_grid(40).flip(0)):
        a, b = end(MIXTURE, DDIM(0), grid, x), end(MIXTURE, Euler(), grid, x)
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_exact_flow_of_correlated_gaussian_data():
    """Heun from sigma 80 to 0 reaches the closed form c_k ~ sqrt(eigenvalue_k + sigma^2)."""
    covariance = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.2, 0.0], [0.1, 0.0, 0.05]], dtype=F64)
    oracle = GaussianOracle.full(torch.tensor([0.3, -0.2, 0.1], dtype=F64), covariance)
    x = torch.tensor([[50.0, -80.0, 3.0], [1.0, 2.0, 300.0]], dtype=F64)
    out = end(oracle, Heun(), karras(400), x)
    torch.testing.assert_close(out, oracle.flow(x, 80.0, 0.0), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("solver", "order"), ROWS, ids=lambda v: str(v))
def test_one_step_works(solver: Solver[Any], order: int):
    """The step to 0 returns the mean (with churn: at the raised level)."""
    x = torch.tensor([[40.0], [-3.0]], dtype=F64)
    out = end(MIXTURE, solver, karras(1), x, noise_for(0, 2))
    if not isinstance(solver, Churn) or solver.amount == 0:
        torch.testing.assert_close(out, MIXTURE(x, karras(1)[0]).mean, rtol=1e-13, atol=1e-13)
    assert out.isfinite().all()


# --- stochastic solvers: exact recursion of the variance -----------------------------------------


@dataclass(frozen=True)
class Fixed(Noise):
    """Noise that is a given number everywhere."""

    value: float = 0.0

    def at(self, number: int) -> Fixed:
        return self

    def like(self, x: Tensor, purpose: Purpose) -> Tensor:
        return torch.full_like(x, self.value)


@dataclass(frozen=True)
class WithVariance:
    """An oracle's mean with another model of the variance."""

    oracle: GaussianOracle
    unit: bool

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        var = unit_gaussian(sigma) if self.unit else torch.zeros_like(sigma)
        return Gaussian(self.oracle(x, sigma).mean, var)


def final_variance(denoise: Denoise, solver: Solver[Any], grid: Tensor, var: Tensor) -> Tensor:
    """Variance [D] of x at the end of the grid: each step is x -> a x + b noise, a and b exact."""
    zero = torch.zeros(1, len(var), dtype=F64)
    state = solver.start(zero, grid)
    for sigma, s in pairwise(grid):
        offset, _ = solver.step(denoise, zero, sigma, s, state, Fixed((0,)))
        a, _ = solver.step(denoise, zero + 1, sigma, s, state, Fixed((0,)))
        b, _ = solver.step(denoise, zero, sigma, s, state, Fixed((0,), value=1.0))
        var = ((a - offset) ** 2 * var + (b - offset) ** 2)[0]
    return var


DATA = GaussianOracle.diagonal([0.05, 0.3, 1.0, 4.0])


@pytest.mark.parametrize(
    ("solver", "order"), [(s, n) for s, n in ROWS if (s, n) not in DETERMINISTIC], ids=str
)
def test_weak_order_on_gaussian_data(solver: Solver[Any], order: int):
    denoise = WithVariance(DATA, unit=False)

    def error(steps: int) -> float:
        start = DATA.eigenvalues + HIGH**2
        out = final_variance(denoise, solver, log_grid(steps), start)
        return float((out - DATA.eigenvalues - LOW**2).abs().max())

    assert math.log2(error(500) / error(1000)) == pytest.approx(order, abs=0.1)


def test_ancestral_with_the_exact_variance_is_exact():
    """Whatever the grid: p(x_s | x) is then the true reverse kernel of Gaussian data."""
    grid = torch.tensor([80.0, 3.0, 1.0, 0.2, 0.01], dtype=F64)
    out = final_variance(DATA, Ancestral(), grid, DATA.eigenvalues + 80.0**2)
    torch.testing.assert_close(out, DATA.eigenvalues + 1e-4, rtol=1e-12, atol=0)


def test_ancestral_with_the_unit_gaussians_variance():
    """Exact for unit Gaussian data on any ladder; converges to the variance of other data."""
    unit = GaussianOracle.diagonal([1.0])
    for betas in (cosine_betas(10), linear_betas(50)):
        levels = NoiseLevels.from_betas(betas)
        grid = levels.descending()[:-1]
        start = unit.eigenvalues + grid[0] ** 2
        out = final_variance(WithVariance(unit, unit=True), Ancestral(), grid, start)
        assert float(out) == pytest.approx(1 + float(grid[-1]) ** 2, rel=1e-10)

    def error(steps: int) -> Tensor:
        grid = log_grid(steps)
        out = final_variance(
            WithVariance(DATA, unit=True), Ancestral(), grid, DATA.eigenvalues + HIGH**2
        )
        return (out - DATA.eigenvalues - LOW**2).abs()

    ratio = (error(500) / error(1000))[[0, 1, 3]]  # the third is unit Gaussian: no error at all
    torch.testing.assert_close(ratio.log2(), torch.ones(3, dtype=F64), rtol=0, atol=0.05)
    assert error(10)[2] < 1e-12


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddims_marginals_do_not_depend_on_eta(eta: float):
    """DDIM Lemma 1: with x0 known, x_s has mean x0 and variance s^2 for every eta."""
    x0 = torch.tensor([[0.7]], dtype=F64)

    def knows(x: Tensor, sigma: Tensor) -> Gaussian:
        return Gaussian(x0.expand_as(x), torch.zeros((), dtype=F64))

    grid = torch.tensor([80.0, 3.0, 1.0, 0.2, 0.01], dtype=F64)
    for stop in range(2, 6):
        part = grid[:stop]
        out = final_variance(knows, DDIM(eta), part, torch.tensor([6400.0], dtype=F64))
        assert float(out) == pytest.approx(float(part[-1]) ** 2, rel=1e-12)
    fixed_point, _ = DDIM(eta).step(knows, x0, grid[1], grid[2], None, Fixed((0,)))
    torch.testing.assert_close(fixed_point, x0)


def test_ddims_noise_is_the_papers():
    """Eq. (16), in DDPM's coordinates, with its alpha = abar."""
    levels = NoiseLevels.from_betas(linear_betas(1000))
    abar = torch.cumprod(1 - linear_betas(1000), 0)
    x = torch.zeros(1, 1, dtype=F64)
    zero = GaussianOracle.diagonal([1e-30])
    for eta in (0.2, 1.0):
        for now, before in ((999, 979), (400, 100), (1, 0)):
            b, _ = DDIM(eta).step(
                zero, x, levels.sigma[now], levels.sigma[before], None, Fixed((0,), value=1.0)
            )
            paper = eta * math.sqrt((1 - abar[before]) / (1 - abar[now]))
            paper *= math.sqrt(1 - abar[now] / abar[before])
            assert float(b) * math.sqrt(abar[before]) == pytest.approx(paper, rel=1e-9)


@pytest.mark.parametrize(
    "grid", [karras(18), NoiseLevels.from_betas(linear_betas(40)).descending()]
)
def test_ddim_of_eta_one_is_ancestral_without_variance(grid: Tensor):
    def point(x: Tensor, sigma: Tensor) -> Gaussian:
        return Gaussian(MIXTURE(x, sigma).mean, torch.zeros((), dtype=F64))

    noise = noise_for(0, 6)
    x = noise.normal([3], Purpose.START, F64) * grid[0]
    pairs = zip(
        sample(point, DDIM(1.0), grid, x, noise),
        sample(point, Ancestral(), grid, x, noise),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a.x, b.x, rtol=5e-15 * 16, atol=5e-15 * float(grid[0]))


@pytest.mark.parametrize("solver", [DDIM(0.5), Ancestral(), Churn(Euler(), 1.0)], ids=str)
def test_stochastic_solvers_ask_for_noise(solver: Solver[Any]):
    with pytest.raises(ValueError, match="pass noise=noise_for"):
        end(MIXTURE, solver, karras(4), torch.zeros(1, 1, dtype=F64))


# --- churn ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExactFlow:
    """The probability flow of Gaussian data in closed form, as a solver."""

    oracle: GaussianOracle
    order: int = 99
    invertible: bool = True

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
        return self.oracle.flow(x, sigma, sigma_next), None


@pytest.mark.parametrize("amount", [1.0, 7.0, 1e9])
def test_churn_preserves_the_marginals(amount: float):
    """Noise up, exact flow down: the variance at every level is the data's plus sigma^2."""
    grid = karras(18)
    solver = Churn(ExactFlow(DATA), amount, low=0.05, high=50.0)
    out = final_variance(DATA, solver, grid, DATA.eigenvalues + grid[0] ** 2)
    torch.testing.assert_close(out, DATA.eigenvalues, rtol=1e-12, atol=0)


def test_churn_without_amount_is_the_wrapped_solver():
    x = torch.linspace(-80, 80, 7, dtype=F64)[:, None]
    churned = end(MIXTURE, Churn(Heun(2 / 3), 0.0), karras(10), x)
    assert churned.equal(end(MIXTURE, Heun(2 / 3), karras(10), x))


@dataclass
class Asked:
    """A denoiser of a delta at 0 that records the levels it is asked at."""

    levels: list[float]
    range: NoiseRange | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        self.levels.append(float(sigma))
        return Gaussian(torch.zeros_like(x), torch.zeros((), dtype=F64))


@pytest.mark.parametrize(
    ("amount", "gamma"),
    [(2.0, 0.25), (3.2, 0.4), (3.4, math.sqrt(2) - 1), (1e6, math.sqrt(2) - 1)],
)
def test_churn_raises_by_gamma_and_never_more_than_root_two(amount: float, gamma: float):
    """gamma = min(S_churn / N, sqrt(2) - 1), N = 8 steps; levels in [S_tmin, S_tmax] inclusive."""
    grid = torch.tensor([9.0, 8.0, 7.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.0], dtype=F64)
    denoise = Asked([])
    end(
        denoise, Churn(Euler(), amount, low=2.0, high=7.0), grid, torch.zeros(1, 1), noise_for(0, 1)
    )
    expected = [s * (1 + gamma) if 2 <= s <= 7 else s for s in grid[:-1].tolist()]
    assert denoise.levels == pytest.approx(expected, rel=1e-14)


def test_churn_inflates_its_noise():
    """x_hat = x + S_noise sqrt(raised^2 - sigma^2) z, before the step's slope is taken."""
    grid = torch.tensor([2.0, 1.0], dtype=F64)
    solver = Churn(Euler(), 0.25, inflation=1.1)
    x = torch.tensor([[3.0]], dtype=F64)
    state = solver.start(x, grid)
    out, _ = solver.step(Asked([]), x, grid[0], grid[1], state, Fixed((0,), value=1.0))
    raised = 2.0 * 1.25
    assert float(out) == pytest.approx((3 + 1.1 * math.sqrt(raised**2 - 4)) / raised, rel=1e-14)


def test_churn_rounds_to_the_ladder_and_stays_in_range():
    """Rounded before the noise is computed; at the top level there is nowhere to go."""
    levels = torch.tensor([1.0, 1.2, 2.0, 2.2, 2.6], dtype=F64)
    denoise = Asked([], NoiseRange(1.0, 2.6, levels))
    grid = torch.tensor([2.6, 2.0, 1.0, 0.0], dtype=F64)
    solver = Churn(Euler(), 3 * 0.12)  # to 2.6 (capped), 2.24 -> 2.2, 1.12 -> 1.2
    end(denoise, solver, grid, torch.zeros(1, 1), noise_for(0, 1))
    assert denoise.levels == [2.6, 2.2, 1.2]
    x, _ = solver.step(
        denoise,
        torch.zeros(1, 1, dtype=F64),
        grid[1],
        grid[2],
        solver.start(grid, grid),
        Fixed((0,), value=1.0),
    )
    assert float(x) == pytest.approx(math.sqrt(2.2**2 - 4) / 2.2, rel=1e-14)
    capped = Asked([], NoiseRange(0.1, 2.6))
    end(capped, Churn(Euler(), 1e3), grid, torch.zeros(1, 1), noise_for(0, 1))
    assert capped.levels == pytest.approx([2.6, 2.6, math.sqrt(2)])


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [-0.1, 1.01, float("nan")])
def test_eta_outside_its_range(eta: float):
    with pytest.raises(ValueError, match=r"eta lies in \[0, 1\]"):
        DDIM(eta)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.1, float("nan")])
def test_alpha_outside_its_range(alpha: float):
    with pytest.raises(ValueError, match=r"alpha lies in \(0, 1\]"):
        Heun(alpha)


@pytest.mark.parametrize(
    "values",
    [(-1.0, 0.0, 1.0, 1.0), (1.0, 2.0, 1.0, 1.0), (1.0, 0.0, 1.0, 0.0), (math.nan, 0.0, 1.0, 1.0)],
)
def test_churn_refuses_nonsense(values: tuple[float, float, float, float]):
    amount, low, high, inflation = values
    with pytest.raises(ValueError, match="churn needs"):
        Churn(Euler(), amount, low, high, inflation)
