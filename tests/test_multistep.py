"""Weights of multistep solvers against antiderivatives; their memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from flow_helpers import F64, MIXTURE, end, log_grid
from sfumato.noise import karras
from sfumato.protocols import Solver
from sfumato.solvers import (
    DDIM,
    DEIS,
    IPNDM,
    PLMS,
    PNDM,
    AdamsBashforth,
    Multistep,
    SingleStep,
    UniPC,
)
from sfumato.solvers.multistep import EQUAL_STEPS
from sfumato.solvers.weights import clocked_weights, exponential_weights, linear_weights

LEVELS = (3.0, 2.2, 1.9, 1.0)


@pytest.mark.parametrize("points", [1, 2, 3, 4])
@pytest.mark.parametrize("s", [0.7, 0.05, 4.0])
def test_weights_integrate_polynomials_exactly(points: int, s: float):
    """Against antiderivatives, and the closed recursion of int exp(v - h) v^k dv."""
    sigmas = LEVELS[-points:]
    h = math.log(1.0 / s)
    moment = -math.expm1(-h)
    for k in range(points):
        linear = sum(w * r**k for w, r in zip(linear_weights(sigmas, 1.0, s), sigmas, strict=True))
        assert linear == pytest.approx((s ** (k + 1) - 1) / (k + 1), rel=1e-11)
        if k:
            moment = h**k - k * moment
        found = sum(
            w * (-math.log(r)) ** k
            for w, r in zip(exponential_weights(sigmas, 1.0, s), sigmas, strict=True)
        )
        assert found == pytest.approx(moment, rel=1e-10)


def test_a_clock_that_is_sigma_gives_adams_bashforth():
    a = clocked_weights(LEVELS, 1.0, 0.4, lambda sigma: sigma)
    assert a == pytest.approx(linear_weights(LEVELS, 1.0, 0.4), rel=1e-11)


def test_equal_steps_have_the_textbook_weights():
    for points, weights in enumerate(EQUAL_STEPS, 1):
        levels = tuple(float(9 - k) for k in range(points))
        s = levels[-1] - 1
        assert linear_weights(levels, levels[-1], s) == pytest.approx([-w for w in weights])


@pytest.mark.parametrize("solver", [Multistep(1), DEIS(1), AdamsBashforth(1), IPNDM(1)], ids=str)
def test_one_point_is_ddim(solver: Solver[Any]):
    x = torch.linspace(-300, 300, 13, dtype=F64)[:, None]
    for grid in (karras(18), log_grid(40).flip(0)):
        ddim = end(MIXTURE, DDIM(0), grid, x)
        torch.testing.assert_close(end(MIXTURE, solver, grid, x), ddim, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [Multistep(3), DEIS(3), UniPC(3)], ids=str)
def test_lower_order_at_the_end(solver: Any):
    """The last step uses one point, the one before two: as if the memory had been lost there."""
    x = torch.linspace(-12, 12, 5, dtype=F64)[:, None]
    grid = log_grid(6)
    a = end(MIXTURE, replace(solver, lower_at_end=True), grid, x)
    state, y = solver.start(x, grid), x
    for k, (sigma, sigma_next) in enumerate(pairwise(grid)):
        points = min(3, 6 - k)
        lower = replace(solver, points=points)
        y, state = lower.step(MIXTURE, y, sigma, sigma_next, state, None)
    torch.testing.assert_close(a, y, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(a, end(MIXTURE, solver, grid, x), rtol=1e-6)


def test_a_memory_is_a_value():
    """The same state steps twice to the same x, and a walk resumes from it."""
    x, grid = torch.linspace(-12, 12, 5, dtype=F64)[:, None], log_grid(6)
    for solver in (Multistep(3), DEIS(3), AdamsBashforth(4), IPNDM(), PLMS(), PNDM(), UniPC(3)):
        state = solver.start(x, grid)
        y = x
        for sigma, sigma_next in itertools.islice(pairwise(grid), 4):
            twice = [solver.step(MIXTURE, y, sigma, sigma_next, state, None) for _ in range(2)]
            assert twice[0][0].equal(twice[1][0])
            y, state = twice[0]


def test_raised_levels_are_refused():
    x, grid = torch.ones(1, 1, dtype=F64), torch.tensor([2.0, 1.0, 0.5], dtype=F64)
    solver = Multistep(3)
    state = solver.start(x, grid)
    for sigma in (2.0, 1.0):
        _, state = solver.step(MIXTURE, x, torch.tensor(sigma).double(), grid[2], state, None)
    with pytest.raises(ValueError, match="monotone levels"):
        solver.step(MIXTURE, x, torch.tensor(1.5).double(), grid[2], state, None)


@pytest.mark.parametrize(
    "build",
    [
        *[lambda n=n, c=c: c(n) for n in (0, 5) for c in (AdamsBashforth, DEIS, IPNDM, Multistep)],
        lambda: UniPC(5),
        lambda: SingleStep(1),
        lambda: SingleStep(4),
        lambda: Multistep(4, published=True),
    ],
)
def test_points_outside_their_range(build: Callable[[], object]):
    with pytest.raises(ValueError, match=r"1 to 4 points|2 or 3|1 to 3 points"):
        build()
