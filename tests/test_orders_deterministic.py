"""Every deterministic solver at its order, on the mixture against the quantile map.

Solvers with a memory start from an exact one: otherwise their first steps, of order 1, hide the
method's order. Gaussian data would flatter some (the midpoint method has order 3 there), and a
grid that ends with 0 has a last step whose error does not shrink with the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_helpers import DATA, F64, HIGH, LOW, MIXTURE, end, log_grid
from sfumato.noise import VP, karras
from sfumato.protocols import Solver
from sfumato.sampling import sample
from sfumato.solvers import (
    DEIS,
    IPNDM,
    PLMS,
    PNDM,
    AdamsBashforth,
    Adaptive,
    Multistep,
    RungeKutta,
    SingleStep,
    UniPC,
)
from sfumato.solvers.coordinates import (
    IDENTITY,
    VarianceExploding,
    VariancePreserving,
)
from sfumato.solvers.cost import evaluations
from sfumato.solvers.history import History
from sfumato.solvers.tableau import EULER, HEUN, TABLEAUS
from sfumato.solvers.unipc import Corrected, Variant

HUGE = 1e12

# name in sfumato.solvers -> (solver, order)
ORDERS: dict[str, list[tuple[Solver[Any], int]]] = {
    "RungeKutta": [
        *[(RungeKutta(tableau), tableau.order) for tableau in TABLEAUS],
        (RungeKutta(EULER, VarianceExploding()), 1),
        (RungeKutta(HEUN, VarianceExploding()), 2),
        (RungeKutta(EULER, VariancePreserving()), 1),
        (RungeKutta(HEUN, VariancePreserving()), 2),
    ],
    "Adaptive": [(Adaptive(HUGE, HUGE), 5)],
    "AdamsBashforth": [(AdamsBashforth(n), n) for n in (1, 2, 3, 4)],
    "DEIS": [
        *[(DEIS(n), n) for n in (1, 2, 3, 4)],
        *[(DEIS(n, VP().time), n) for n in (2, 3, 4)],
    ],
    "IPNDM": [(IPNDM(1), 1), (IPNDM(2), 2), (IPNDM(3), 2), (IPNDM(4), 2)],
    "PLMS": [(PLMS(), 2)],
    "PNDM": [(PNDM(), 2)],
    "Multistep": [
        *[(Multistep(n), n) for n in (1, 2, 3, 4)],
        (Multistep(2, published=True), 2),
        (Multistep(3, published=True), 2),
    ],
    "SingleStep": [
        (SingleStep(2), 2),
        (SingleStep(3), 3),
        (SingleStep(2, plus=False), 2),
        (SingleStep(3, plus=False), 3),
    ],
    "UniPC": [(UniPC(points, variant), points + 1) for points in (1, 2, 3) for variant in Variant],
}
ROWS = [row for rows in ORDERS.values() for row in rows]
LINEAR = (AdamsBashforth, DEIS, IPNDM, PLMS, PNDM)
MEMORY = (*LINEAR, Multistep, UniPC)


def exact_memory(solver: Solver[Any], x: Tensor, grid: Tensor) -> Any:
    """The state of a solver that came to grid[0] along the exact flow, at as many levels before."""
    ratio, step = grid[0] / grid[1], grid[0] - grid[1]
    equal = torch.allclose(grid.diff(), grid[1] - grid[0])
    back = [grid[0] + k * step if equal else grid[0] * ratio**k for k in (3, 2, 1)]
    where = [MIXTURE.flow(x, float(grid[0]), float(sigma)) for sigma in back]
    means = [MIXTURE(y, sigma).mean for y, sigma in zip(where, back, strict=True)]
    if isinstance(solver, LINEAR):
        means = [(y - m) / s for y, m, s in zip(where, means, back, strict=True)]
    points = getattr(solver, "points", 4)
    history = History(len(grid) - 1, tuple(map(float, back[-points:])), tuple(means[-points:]))
    return Corrected(history, where[-1], points) if isinstance(solver, UniPC) else history


def walk(solver: Solver[Any], grid: Tensor, x: Tensor) -> Tensor:
    state = exact_memory(solver, x, grid) if isinstance(solver, MEMORY) else solver.start(x, grid)
    if isinstance(state, Corrected):  # the x that comes in is a prediction, which is corrected
        past = state.history.newest(state.used)
        x = solver._predict(state.last, past, float(grid[0]))  # type: ignore[attr-defined]
    for sigma, sigma_next in pairwise(grid):
        x, state = solver.step(MIXTURE, x, sigma, sigma_next, state, None)
    return x


def slope_of(solver: Solver[Any], grids: Callable[[int], Tensor], steps: int) -> float:
    grid = grids(steps)
    x = grid[0] * torch.linspace(-2.4, 2.4, 13, dtype=F64)[:, None]
    exact = MIXTURE.flow(x, float(grid[0]), float(grid[-1]))

    def error(count: int) -> float:
        return float((walk(solver, grids(count), x) - exact).abs().max())

    return math.log2(error(steps) / error(2 * steps))


@pytest.mark.parametrize(("solver", "order"), ROWS, ids=str)
def test_order_on_the_mixture(solver: Solver[Any], order: int):
    assert solver.order == order
    if order < 5:
        assert slope_of(solver, log_grid, 256) == pytest.approx(order, abs=0.1)
    else:  # from 5 to 0.1 rounding is reached before the asymptote
        assert slope_of(solver, lambda n: log_grid(n, 2.0, 0.5), 64) == pytest.approx(5, abs=0.1)


def test_every_row_is_of_its_class():
    for name, rows in ORDERS.items():
        assert all(type(solver).__name__ == name for solver, _ in rows)


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_fixed_weights_are_of_full_order_on_equal_steps(points: int):
    def equal(steps: int) -> Tensor:
        return torch.linspace(4.0, 1.0, steps + 1, dtype=F64)

    for solver in (IPNDM(points), *([PLMS(), PNDM()] if points == 4 else [])):
        assert slope_of(solver, equal, 256) == pytest.approx(points, abs=0.1)


@pytest.mark.parametrize(("solver", "order"), [(PNDM(), 5), (PLMS(), 3), (IPNDM(4), 2)], ids=str)
def test_starts_without_a_memory(solver: Solver[Any], order: int):
    """Error of the first three steps: Runge-Kutta's, Heun's or Euler's of one step."""
    x = torch.linspace(-2.4, 2.4, 13, dtype=F64)[:, None]

    def error(h: float) -> float:
        grid = torch.tensor([1 - k * h for k in range(4)], dtype=F64)
        exact = MIXTURE.flow(x, 1.0, float(grid[-1]))
        return float((end(MIXTURE, solver, grid, x) - exact).abs().max())

    assert math.log2(error(0.025) / error(0.0125)) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("solver", "order"), ROWS, ids=str)
def test_inversion_reaches_the_exact_flow(solver: Solver[Any], order: int):
    """Up the ascending grid by the solver's own start: at its order, or 2 with a memory."""
    x = MIXTURE.flow(torch.linspace(-12, 12, 13, dtype=F64)[:, None], HIGH, LOW)
    exact = MIXTURE.flow(x, LOW, HIGH)

    def error(steps: int) -> float:
        return float((end(MIXTURE, solver, log_grid(steps).flip(0), x) - exact).abs().max())

    least = min(order, 2) if isinstance(solver, MEMORY) else order
    assert math.log2(error(64) / error(128)) > least - 0.25


GRID_TO_ZERO = karras(200)
X80 = torch.tensor([[50.0, -80.0, 3.0], [1.0, 2.0, 300.0]], dtype=F64)


@pytest.mark.parametrize(("solver", "order"), ROWS, ids=str)
def test_all_converge_to_one_x0(solver: Solver[Any], order: int):
    """From sigma 80 to 0, to the closed form of correlated Gaussian data."""
    if isinstance(solver, Adaptive):
        solver = Adaptive(1e-7, 1e-7)
    out = end(DATA, solver, GRID_TO_ZERO, X80)
    tolerance = 4e-3 if order > 1 else 0.3
    torch.testing.assert_close(out, DATA.flow(X80, 80.0, 0.0), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("solver", "order"), ROWS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_a_short_walk_to_zero_costs_what_it_says(solver: Solver[Any], order: int, steps: int):
    x = torch.tensor([[40.0], [-3.0]], dtype=F64)
    *_, last = sample(MIXTURE, solver, karras(steps), x)
    assert last.x.isfinite().all()
    coordinates = getattr(solver, "coordinates", IDENTITY)
    if steps == 1 and coordinates == IDENTITY:
        torch.testing.assert_close(last.x, MIXTURE(x, karras(1)[0]).mean, rtol=1e-12, atol=1e-12)
    if not isinstance(solver, Adaptive):
        assert last.evaluations == evaluations(solver, steps)


@pytest.mark.parametrize("solver", [s for s, _ in ROWS], ids=str)
def test_float32_stays_float32_and_agrees(solver: Solver[Any]):
    if isinstance(solver, Adaptive):
        solver = Adaptive()
    exact = end(MIXTURE, solver, karras(12), torch.linspace(-80, 80, 7, dtype=F64)[:, None])
    out = end(MIXTURE, solver, karras(12), torch.linspace(-80, 80, 7)[:, None])
    assert out.dtype == torch.float32
    assert float((out - exact).abs().max()) < 2e-3  # the mixture is steep between its modes
