"""Tables of weights hold every solver of one call a step, and refuse what they cannot hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from flow_helpers import F64, HIGH, LOW, MIXTURE, end, log_grid
from sfumato.noise import karras
from sfumato.protocols import Solver
from sfumato.solvers import (
    DEIS,
    IPNDM,
    AdamsBashforth,
    Ancestral,
    Euler,
    Heun,
    Multistep,
    NonStationary,
    SingleStep,
    UniPC,
)
from sfumato.solvers.non_stationary import linear_form

# The orders of tables taken from solvers without a start-up error; learned ones have none.
ORDERS: dict[str, list[int]] = {"NonStationary": [1, 2, 3]}
SOURCES: dict[int, Solver[Any]] = {1: Euler(), 2: SingleStep(2), 3: SingleStep(3)}
ONE_CALL: list[Solver[Any]] = [
    Euler(),
    *[AdamsBashforth(n) for n in (2, 3, 4)],
    *[DEIS(n) for n in (2, 3, 4)],
    *[IPNDM(n) for n in (2, 3, 4)],
    *[Multistep(n) for n in (2, 3, 4)],
    Multistep(3, published=True),
    *[UniPC(n) for n in (1, 2, 3)],
    SingleStep(2),
    SingleStep(3, plus=False),
]


def grid_of(table: NonStationary) -> torch.Tensor:
    return torch.tensor(table.sigmas, dtype=F64)


@pytest.mark.parametrize("order", ORDERS["NonStationary"])
def test_order_on_the_mixture(order: int):
    x = HIGH * torch.linspace(-2.4, 2.4, 13, dtype=F64)[:, None]
    exact = MIXTURE.flow(x, HIGH, LOW)

    def error(steps: int) -> float:
        table = linear_form(SOURCES[order], log_grid(steps))
        assert table.order == order
        return float((end(MIXTURE, table, grid_of(table), x) - exact).abs().max())

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", ONE_CALL, ids=str)
@pytest.mark.parametrize("grid", [karras(7), log_grid(6)], ids=["to 0", "to 0.1"])
def test_a_table_walks_as_the_solver_it_was_taken_from(solver: Solver[Any], grid: torch.Tensor):
    x = float(grid[0]) * torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    table = linear_form(solver, grid)
    assert table.sigmas[0] == grid[0]
    assert table.sigmas[-1] == grid[-1]
    ours = end(MIXTURE, table, grid_of(table), x)
    torch.testing.assert_close(ours, end(MIXTURE, solver, grid, x), rtol=1e-10, atol=1e-10)


def test_it_counts_a_call_a_step_and_keeps_float32():
    table = linear_form(Multistep(2), karras(5))
    out = end(MIXTURE, table, grid_of(table), torch.linspace(-80, 80, 5)[:, None])
    assert out.dtype == torch.float32
    assert (table.stages, len(table.weights)) == (1, 5)


def test_what_a_table_cannot_hold():
    with pytest.raises(ValueError, match="do not descend one by one"):
        linear_form(Heun(), karras(4))
    with pytest.raises(ValueError, match="fresh noise"):
        linear_form(Ancestral(), karras(4))


def test_another_grid_is_refused_with_both():
    table = linear_form(Euler(), karras(4))
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"belong to the levels 80, .*walk its own grid"):
        end(MIXTURE, table, karras(5), x)
    with pytest.raises(ValueError, match="belong to the levels"):
        end(MIXTURE, table, karras(4, rho=5.0), x)


@pytest.mark.parametrize(
    ("sigmas", "start", "weights", "reason"),
    [
        ((1.0, 0.5, 0.0), (0.5,), ((0.5,),), "a solver of 2 steps needs"),
        ((1.0, 0.0), (0.5,), ((0.5, 0.1),), "rows of 1, 2"),
        ((1.0,), (), (), "a solver of 0 steps"),
        ((1.0, 2.0), (0.5,), ((0.5,),), "must descend"),
        ((1.0, -1.0), (0.5,), ((0.5,),), "must descend"),
        ((1.0, 0.0), (math.nan,), ((0.5,),), "must be finite"),
    ],
)
def test_a_table_of_another_form_is_refused(sigmas: Any, start: Any, weights: Any, reason: str):
    with pytest.raises(ValueError, match=reason):
        NonStationary(sigmas, start, weights)
