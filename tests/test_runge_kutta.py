"""Tableaus against the conditions of rooted trees; coordinates against EDM's Table 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flow_helpers import DATA, F64, MIXTURE, end
from sfumato.gaussian import Gaussian
from sfumato.noise import VP, geometric, karras, vp
from sfumato.solvers import Euler, Heun, RungeKutta
from sfumato.solvers.coordinates import (
    Coordinates,
    Identity,
    VarianceExploding,
    VariancePreserving,
)
from sfumato.solvers.runge_kutta import combine
from sfumato.solvers.tableau import (
    CLASSIC4,
    EULER,
    HEUN,
    KUTTA3,
    MIDPOINT,
    RALSTON,
    TABLEAUS,
    Tableau,
)

# --- tableaus: the conditions of rooted trees ----------------------------------------------------

RootedTree = tuple[Any, ...]  # of its subtrees


def trees(size: int) -> set[RootedTree]:
    """All rooted trees of so many vertices."""
    if size == 1:
        return {()}
    out: set[RootedTree] = set()
    for smaller in trees(size - 1):
        out |= set(grown(smaller))
    return out


def grown(tree: RootedTree) -> list[RootedTree]:
    """The trees made by one more leaf."""
    out = [tuple(sorted((*tree, ())))]
    for k, branch in enumerate(tree):
        out += [tuple(sorted((*tree[:k], g, *tree[k + 1 :]))) for g in grown(branch)]
    return out


def vertices(tree: RootedTree) -> int:
    return 1 + sum(map(vertices, tree))


def density(tree: RootedTree) -> int:
    return vertices(tree) * math.prod(map(density, tree))


def stage_weights(a: np.ndarray, tree: RootedTree) -> np.ndarray:
    out = np.ones(len(a))
    for branch in tree:
        out = out * (a @ stage_weights(a, branch))
    return out


def conditions(a: np.ndarray, b: np.ndarray, order: int) -> list[float]:
    """What b and a miss of 1 / density, for all trees up to the order."""
    found = [tree for size in range(1, order + 1) for tree in trees(size)]
    return [float(b @ stage_weights(a, tree)) - 1 / density(tree) for tree in found]


def matrix(tableau: Tableau, rows: int) -> np.ndarray:
    padded = [(*row, *[0.0] * (rows - len(row))) for row in (*tableau.a, tableau.b)]
    return np.array(padded[:rows])


@pytest.mark.parametrize("tableau", TABLEAUS, ids=lambda t: t.name)
def test_tableaus_meet_the_conditions_of_their_order_and_no_higher(tableau: Tableau):
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]
    a, b = matrix(tableau, tableau.stages), np.array(tableau.b)
    assert np.abs(conditions(a, b, tableau.order)).max() < 1e-14
    assert np.abs(conditions(a, b, tableau.order + 1)).max() > 1e-4


def test_the_embedded_method_is_of_order_four():
    (pair,) = [t for t in TABLEAUS if t.error]
    a = matrix(pair, 7)
    embedded = np.array([*pair.b, 0.0]) - np.array(pair.error)
    assert np.abs(conditions(a, embedded, 4)).max() < 1e-14
    assert np.abs(conditions(a, embedded, 5)).max() > 1e-5


def test_a_tableau_is_checked():
    with pytest.raises(ValueError, match="needs i weights"):
        Tableau("bad", 2, ((), ()), (0.5, 0.5))
    with pytest.raises(ValueError, match=r"sum to 0\.9"):
        Tableau("bad", 1, ((),), (0.9,))
    with pytest.raises(ValueError, match=r"lie in \(0, 1\]"):
        Tableau("bad", 2, ((), (1.5,)), (0.5, 0.5))
    with pytest.raises(ValueError, match="one error weight more"):
        Tableau("bad", 1, ((),), (1.0,), (0.0,))


@pytest.mark.parametrize(("alpha", "tableau"), [(1, HEUN), (0.5, MIDPOINT), (2 / 3, RALSTON)])
def test_heuns_family_is_in_the_tableaus(alpha: float, tableau: Tableau):
    x = torch.linspace(-80, 80, 7, dtype=F64)[:, None]
    a = end(MIXTURE, Heun(alpha), karras(10), x)
    torch.testing.assert_close(a, end(MIXTURE, RungeKutta(tableau), karras(10), x))


# --- coordinates ---------------------------------------------------------------------------------

TABLE_1: dict[Coordinates, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    Identity(): (lambda t: t, torch.ones_like),
    VarianceExploding(): (torch.sqrt, torch.ones_like),
    VariancePreserving(): (
        lambda t: (torch.exp(19.9 * t**2 / 2 + 0.1 * t) - 1).sqrt(),
        lambda t: 1 / torch.exp(19.9 * t**2 / 2 + 0.1 * t).sqrt(),
    ),
}


@pytest.mark.parametrize("coordinates", TABLE_1, ids=str)
@pytest.mark.parametrize("time", [1e-3, 0.03, 0.4, 1.0])
def test_coordinates_are_edms_and_their_rates_the_derivatives(
    coordinates: Coordinates, time: float
):
    sigma, scale = TABLE_1[coordinates]
    t = torch.tensor(time, dtype=F64, requires_grad=True)
    rate = torch.autograd.grad(sigma(t), t)[0]
    # 0 * t: s may be constant
    scale_rate = torch.autograd.grad(scale(t) + 0 * t, t)[0]
    assert coordinates.sigma(time) == pytest.approx(sigma(t).item(), rel=1e-9)
    assert coordinates.sigma_rate(time) == pytest.approx(float(rate), rel=1e-9)
    assert coordinates.scale(time) == pytest.approx(scale(t).item(), rel=1e-9)
    assert coordinates.scale_rate(time) == pytest.approx(float(scale_rate), rel=1e-9)
    assert coordinates.time(coordinates.sigma(time)) == pytest.approx(time, rel=1e-12)


def test_coordinates_agree_with_the_process():
    t = torch.linspace(1e-4, 1, 9, dtype=F64)
    ours = [VariancePreserving().sigma(float(u)) for u in t]
    torch.testing.assert_close(torch.tensor(ours, dtype=F64), VP().sigma(t))


@pytest.mark.parametrize("coordinates", TABLE_1, ids=str)
@pytest.mark.parametrize("heun", [False, True])
def test_the_scaled_walk_is_edms_equation(coordinates: Coordinates, heun: bool):
    """One step of Euler's and of Heun's on EDM eq. 81, with f and g from the table by autodiff."""
    sigma, scale = TABLE_1[coordinates]

    def drift(y: Tensor, time: float) -> Tensor:
        t = torch.tensor(time, dtype=F64, requires_grad=True)
        at, s = sigma(t), scale(t)
        rate = torch.autograd.grad(at, t, retain_graph=True)[0]
        scale_rate = torch.autograd.grad(s + 0 * t, t)[0]
        at, s = at.detach(), s.detach()
        mean = MIXTURE(y / s, at).mean
        return (rate / at + scale_rate / s) * y - rate * s / at * mean

    x = torch.linspace(-3, 3, 7, dtype=F64)[:, None]
    t, t_next = 0.5, 0.42
    s, s_next = (float(scale(torch.tensor(u, dtype=F64))) for u in (t, t_next))
    y = s * x
    step = drift(y, t)
    if heun:
        step = (step + drift(y + (t_next - t) * step, t_next)) / 2
    expected = (y + (t_next - t) * step) / s_next
    grid = torch.tensor([coordinates.sigma(u) for u in (t, t_next)], dtype=F64)
    solver = RungeKutta(HEUN if heun else EULER, coordinates)
    torch.testing.assert_close(end(MIXTURE, solver, grid, x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("coordinates", "grids"),
    [(VariancePreserving(), vp), (VarianceExploding(), lambda n: geometric(n, 0.02, 100.0))],
    ids=["vp", "ve"],
)
@pytest.mark.parametrize("tableau", [EULER, HEUN], ids=lambda t: t.name)
def test_edms_columns_converge_on_their_own_grids(
    coordinates: Coordinates, grids: Callable[[int], Tensor], tableau: Tableau
):
    """To the last level above 0, at the order, to the exact flow of correlated Gaussian data."""

    def error(steps: int) -> float:
        grid = grids(steps + 1)[:-1]
        x = grid[0] * torch.tensor([[0.7, -1.2, 0.2]], dtype=F64)
        out = end(DATA, RungeKutta(tableau, coordinates), grid, x)
        return float((out - DATA.flow(x, grid[0], grid[-1])).abs().max())

    assert math.log2(error(200) / error(400)) == pytest.approx(tableau.order, abs=0.1)


def test_the_last_step_in_root_coordinates_takes_half_the_noise():
    """EDM's code does the same: with sigma = sqrt(t), Euler's step to t = 0 is half of x - D."""
    x, grid = torch.tensor([[0.4], [2.1]], dtype=F64), torch.tensor([0.3, 0.0], dtype=F64)
    mean = MIXTURE(x, grid[0]).mean
    out = end(MIXTURE, RungeKutta(HEUN, VarianceExploding()), grid, x)
    torch.testing.assert_close(out, (x + mean) / 2)


def test_bad_coordinates():
    with pytest.raises(ValueError, match="rate > 0"):
        VariancePreserving(rate=0.0)


@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16])
def test_a_denoiser_may_answer_in_another_dtype(other: torch.dtype):
    """The state keeps its own: float32."""

    def denoise(x: Tensor, sigma: Tensor) -> Gaussian:
        return Gaussian((x / (1 + float(sigma) ** 2)).to(other), torch.zeros(()))

    x = torch.linspace(-80, 80, 5)[:, None]
    for solver in (Euler(), Heun(), RungeKutta(CLASSIC4)):
        out = end(denoise, solver, karras(5)[:-1], x)
        assert out.dtype == torch.float32 or other == torch.float64


def test_long_steps_keep_their_digits_in_float32():
    """From 16384 to 0.01 in one step: what is left of x is 1e-2, known to a millionth of that."""
    x = torch.linspace(-2, 2, 41)[:, None] * 2.0**14
    d = torch.linspace(-1, 1, 41)[:, None]
    keep = 0.01 / 2.0**14
    exact = keep * x.double() + (1 - keep) * d.double()
    out = combine((keep, 1 - keep), (x, d))
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-7)


def test_the_sum_of_means_is_as_exact_as_the_slopes_in_float32():
    """On a coarse grid, where weights are large and cancel."""
    grid = karras(5)[:-1]
    x = torch.linspace(-80, 80, 41)[:, None]
    for solver in (Heun(), RungeKutta(KUTTA3), RungeKutta(CLASSIC4)):
        exact = end(MIXTURE, solver, grid, x.double())
        assert float((end(MIXTURE, solver, grid, x) - exact).abs().max()) < 1e-4
