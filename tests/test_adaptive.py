"""Adaptive steps: error, cost, independence of the images, and where they give up."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from flow_helpers import F64, HIGH, LOW, MIXTURE, end, log_grid
from sfumato.gaussian import Gaussian
from sfumato.sampling import sample
from sfumato.solvers import (
    Adaptive,
)

HUGE = 1e12
TWO_LEVELS = torch.tensor([80.0, 0.002], dtype=F64)


def test_adaptive_error_follows_the_tolerance_at_order_five():
    x = torch.linspace(-150, 150, 13, dtype=F64)[:, None]
    exact = MIXTURE.flow(x, 80.0, 0.1)
    found: list[tuple[float, int]] = []
    for tolerance in (1e-5, 1e-7, 1e-9):
        *_, last = sample(
            MIXTURE, Adaptive(tolerance, tolerance), torch.tensor([80.0, 0.1]).double(), x
        )
        found.append((float((last.x - exact).abs().max()), last.evaluations))
    for (coarse, few), (fine, many) in pairwise(found):
        assert fine < coarse / 20
        assert math.log(coarse / fine) / math.log(many / few) > 4
    assert found[-1][0] < 1e-7


def test_adaptive_costs_what_scipy_does():
    """scipy's RK45 has the same tableau and another controller: evaluations within a third."""
    integrate = pytest.importorskip("scipy.integrate")
    x = torch.tensor([[57.0]], dtype=F64)

    def field(sigma: float, y: np.ndarray) -> np.ndarray:
        state = torch.tensor(y, dtype=F64)[:, None]
        mean = MIXTURE(state, torch.tensor(sigma, dtype=F64)).mean
        return ((state - mean) / sigma)[:, 0].numpy()

    theirs = integrate.solve_ivp(field, (80.0, 0.002), [57.0], rtol=1e-6, atol=1e-6)
    *_, last = sample(MIXTURE, Adaptive(1e-6, 1e-6), TWO_LEVELS, x)
    assert float(last.x) == pytest.approx(theirs.y[0, -1], abs=1e-5)
    assert last.evaluations < 4 / 3 * theirs.nfev


def test_adaptive_images_do_not_depend_on_each_other():
    x = torch.tensor([[57.0], [-140.0], [0.3], [300.0]], dtype=F64)
    solver = Adaptive(1e-5, 1e-5)
    together = end(MIXTURE, solver, TWO_LEVELS, x)
    for k in range(len(x)):
        assert end(MIXTURE, solver, TWO_LEVELS, x[k : k + 1]).equal(together[k : k + 1])


def test_adaptive_goes_to_zero_and_back():
    x = MIXTURE.flow(torch.linspace(-12, 12, 7, dtype=F64)[:, None], HIGH, LOW)
    solver = Adaptive(1e-9, 1e-9)
    levels = torch.tensor([LOW, HIGH], dtype=F64)
    top = end(MIXTURE, solver, levels, x)
    torch.testing.assert_close(top, MIXTURE.flow(x, LOW, HIGH), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(end(MIXTURE, solver, levels.flip(0), top), x, rtol=0, atol=1e-6)
    to_zero = end(MIXTURE, solver, torch.tensor([HIGH, 0.002, 0.0]).double(), top)
    exact = MIXTURE.flow(top, HIGH, 0.0)
    torch.testing.assert_close(to_zero, exact, rtol=0, atol=1e-4)


def test_adaptive_takes_its_last_slope_along():
    """Within a walk 6 evaluations a step; where somebody moved x, the slope is taken anew."""
    x = torch.tensor([[3.0]], dtype=F64)
    grid = log_grid(8, 2.0, 1.0)
    *_, last = sample(MIXTURE, Adaptive(HUGE, HUGE), grid, x)
    assert last.evaluations == 1 + 6 * 8
    solver = Adaptive(1e-6, 1e-6)
    y, state = solver.step(MIXTURE, x, grid[0], grid[1], None, None)
    moved, _ = solver.step(MIXTURE, y + 1, grid[1], grid[2], state, None)
    fresh, _ = solver.step(MIXTURE, y + 1, grid[1], grid[2], None, None)
    torch.testing.assert_close(moved, fresh)


def test_adaptive_stops_where_it_gets_nowhere():
    x = torch.tensor([[3.0], [50.0]], dtype=F64)
    with pytest.raises(RuntimeError, match=r"3 adaptive steps did not lead images \[0, 1\]"):
        end(MIXTURE, Adaptive(1e-12, 1e-12, max_steps=3), TWO_LEVELS, x)

    def broken(x: Tensor, sigma: Tensor) -> Gaussian:
        mean = torch.where(sigma.reshape(-1, 1) < 1, torch.nan, MIXTURE(x, sigma).mean)
        return Gaussian(mean.expand_as(x), torch.zeros(()))

    with pytest.raises(FloatingPointError, match="slope of image 0 of the batch is not finite"):
        end(broken, Adaptive(), TWO_LEVELS, x)


@pytest.mark.parametrize("bad", [{"rtol": 0.0}, {"atol": -1.0}, {"rtol": math.nan}])
def test_adaptive_refuses_nonsense(bad: dict[str, float]):
    with pytest.raises(ValueError, match="adaptive steps need"):
        Adaptive(**bad)
