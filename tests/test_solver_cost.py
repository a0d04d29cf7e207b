"""What solvers cost in evaluations, and which costs are possible."""

from __future__ import annotations

from typing import Any

import pytest

from sfumato.protocols import Solver
from sfumato.solvers import (
    DDIM,
    PLMS,
    PNDM,
    Adaptive,
    Ancestral,
    Churn,
    Euler,
    Heun,
    SingleStep,
    UniPC,
)
from sfumato.solvers.cost import evaluations, steps_for


@pytest.mark.parametrize(
    ("solver", "costs"),
    [
        (Euler(), [1, 2, 3, 4, 5]),
        (DDIM(), [1, 2, 3, 4, 5]),
        (Ancestral(), [1, 2, 3, 4, 5]),
        (Heun(), [1, 3, 5, 7, 9]),
        (Churn(Heun(), 3.0), [1, 3, 5, 7, 9]),
        (SingleStep(3), [1, 4, 7, 10, 13]),
        (UniPC(), [1, 2, 3, 4, 5]),
        (PLMS(), [1, 3, 4, 5, 6]),
        (PNDM(), [1, 5, 9, 13, 14]),
    ],
    ids=str,
)
def test_costs(solver: Solver[Any], costs: list[int]):
    assert [evaluations(solver, n) for n in range(1, 6)] == costs
    assert [steps_for(solver, nfe) for nfe in costs] == [1, 2, 3, 4, 5]
    impossible = set(range(1, costs[-1])) - set(costs)
    for nfe in impossible:
        with pytest.raises(ValueError, match=f"cannot spend exactly {nfe} evaluations"):
            steps_for(solver, nfe)


def test_an_impossible_cost_names_its_neighbours():
    with pytest.raises(ValueError, match=r"spends 1, 3, 5, 7, .*nearest is 5 or 7"):
        steps_for(Heun(), 6)
    with pytest.raises(ValueError, match="at least one evaluation"):
        steps_for(Heun(), 0)
    with pytest.raises(ValueError, match="at least one step"):
        evaluations(Heun(), 0)
    with pytest.raises(ValueError, match="chooses its steps itself"):
        steps_for(Adaptive(), 20)
