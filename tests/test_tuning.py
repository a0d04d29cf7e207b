"""Learning few steps from many: levels by the shortest path, weights by least squares, gradients.

Gaussian data are the truth here: the flow multiplies each direction by a known number, and what a
step of Euler's misses by is known too. The mixture is where nothing is linear.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from flow_helpers import F64, MIXTURE
from oracles import GaussianOracle
from sfumato.noise import karras
from sfumato.solvers import IPNDM, Euler, Heun, Multistep, UniPC
from sfumato.solvers.non_stationary import NonStationary, linear_form
from sfumato.tuning import Lesson, Moments, fit, miss, refine, shortest_path, step_costs, teach
from sfumato.tuning import refine as refining

LEVELS = karras(20, 0.01, 20.0)


def gaussian_lesson(data: GaussianOracle, count: int = 64, seed: int = 0) -> Lesson:
    """Trajectories along the exact flow."""
    noise = torch.randn(
        count, *data.shape, dtype=F64, generator=torch.Generator().manual_seed(seed)
    )
    start = LEVELS[0] * noise
    states = torch.stack([data.flow(start, float(LEVELS[0]), float(s)) for s in LEVELS])
    means = torch.stack([data(x, s).mean for x, s in zip(states, LEVELS[:-1], strict=False)])
    return Lesson(data, LEVELS, states, means)


def mixture_lessons(count: int, seed: int) -> list[Lesson]:
    noise = torch.randn(count, 4, 8, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return [teach(MIXTURE, Multistep(3), karras(40, 0.01, 20.0), 20.0 * x) for x in noise]


def error_of(lessons: list[Lesson], table: NonStationary) -> float:
    sigmas = torch.tensor(table.sigmas, dtype=F64)
    return float(miss(lessons, table, sigmas).mean())


def test_a_teacher_keeps_the_way_of_its_solver():
    x = 20.0 * torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    lesson = teach(MIXTURE, Multistep(2), LEVELS, x)
    assert len(lesson) == 5
    assert lesson.states.shape == (21, 5, 1)
    for state, mean, sigma in zip(lesson.states, lesson.means, LEVELS, strict=False):
        torch.testing.assert_close(mean, MIXTURE(state, sigma).mean)
    torch.testing.assert_close(lesson.target, lesson.means[-1])


def test_a_teacher_that_cannot_teach_is_refused():
    x = torch.ones(1, 1, dtype=F64)
    with pytest.raises(ValueError, match="calls the network 39 times in 20 steps"):
        teach(MIXTURE, Heun(), LEVELS, x)
    with pytest.raises(ValueError, match="walks to sigma 0"):
        teach(MIXTURE, Euler(), LEVELS[:-1], x)


def test_the_cost_of_a_step_is_what_eulers_misses_by_on_gaussian_data():
    """One direction of variance c: x = sqrt(c + sigma^2) z, D = c x / (c + sigma^2)."""
    c = 0.25
    lesson = gaussian_lesson(GaussianOracle.diagonal([c] * 16), count=512)
    costs = step_costs(Moments.of([lesson]))
    z = float((lesson.target / math.sqrt(c)).square().mean().sqrt())
    std = float(lesson.target.std())
    for i, j in ((0, 5), (3, 4), (10, 20)):
        sigma, s = float(LEVELS[i]), float(LEVELS[j])
        x, exact = math.sqrt(c + sigma**2), math.sqrt(c + s**2)
        euler = s / sigma * x + (1 - s / sigma) * c / (c + sigma**2) * x
        carried = std / math.sqrt(std**2 + s**2)
        assert float(costs[i, j]) == pytest.approx(abs(euler - exact) * z * carried, rel=1e-6)
    assert costs.tril().isinf().sum() == 21 * 22 / 2


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6])
def test_the_shortest_path_is_the_shortest_of_all(steps: int):
    size = 7
    costs = torch.rand(size, size, dtype=F64, generator=torch.Generator().manual_seed(steps))
    costs = torch.where(torch.ones(size, size).triu(1) > 0, costs, torch.inf)

    def length(path: tuple[int, ...]) -> float:
        return sum(float(costs[i, j]) for i, j in itertools.pairwise(path))

    every = [
        (0, *inner, size - 1) for inner in itertools.combinations(range(1, size - 1), steps - 1)
    ]
    assert tuple(shortest_path(costs, steps)) == min(every, key=length)


def test_no_path_is_longer_than_the_levels():
    with pytest.raises(ValueError, match="has 1 to 6 steps, not 7"):
        shortest_path(torch.zeros(7, 7), 7)


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_least_squares_solves_what_it_can_solve(calls: int):
    """n calls give n + 1 weights a row: as many directions of Gaussian data end where they must."""
    variances = [0.02, 0.3, 1.0, 2.0][: calls + 1]
    lesson = gaussian_lesson(GaussianOracle.diagonal(variances * 3))
    path = [*[0, 8, 13, 17][:calls], 20]
    assert error_of([lesson], fit([lesson], path)) < 1e-4
    others = gaussian_lesson(GaussianOracle.diagonal(variances * 3), seed=1)
    assert error_of([others], fit([lesson], path)) < 1e-4
    assert error_of([lesson], linear_form(Multistep(2), LEVELS[path])) > 0.02


def test_the_last_row_is_the_best_there_is():
    """No change of one weight of the last row comes nearer to the teacher in mean square."""
    lessons = mixture_lessons(4, 0)
    table = fit(lessons, [0, 12, 20, 28, 40])

    def square(one: NonStationary) -> float:
        return float(miss(lessons, one, torch.tensor(one.sigmas, dtype=F64)).square().mean())

    least = square(table)
    for place, change in itertools.product(range(4), (-0.01, 0.01)):
        row = list(table.weights[-1])
        row[place] += change
        moved = NonStationary(table.sigmas, table.start_weights, (*table.weights[:-1], tuple(row)))
        assert square(moved) > least


def test_fit_and_refine_beat_every_fixed_solver_on_other_trajectories():
    learned, held_out, unseen = (mixture_lessons(16, seed) for seed in (0, 1, 2))
    moments = Moments.of(learned)
    for calls in (3, 5):
        path = shortest_path(step_costs(moments), calls)
        fitted = fit(learned, path)
        *_, last = refine(
            learned, held_out, fitted, moments.data_std, iterations=150, seed=0, every=10
        )
        grid = karras(calls, 0.01, 20.0)
        fixed = min(
            error_of(unseen, linear_form(solver, grid))
            for solver in (Euler(), IPNDM(3), Multistep(2), Multistep(3), UniPC(2))
        )
        assert error_of(unseen, fitted) < fixed
        assert error_of(unseen, last.solver) < 0.75 * fixed
        assert error_of(held_out, last.solver) == pytest.approx(last.held_out, rel=1e-9)
        assert last.held_out < error_of(held_out, fitted)


def test_gradients_alone_improve_eulers_method_and_levels_move_only_where_they_may():
    learned, held_out = mixture_lessons(8, 0), mixture_lessons(8, 1)
    start = linear_form(Euler(), karras(4, 0.01, 20.0))
    std = Moments.of(learned).data_std
    for move_levels in (True, False):
        *_, last = refine(
            learned, held_out, start, std, iterations=200, every=20, move_levels=move_levels
        )
        assert last.held_out < 0.6 * error_of(held_out, start)
        assert (last.solver.sigmas == start.sigmas) is not move_levels
        assert (last.solver.sigmas[0], last.solver.sigmas[-1]) == (start.sigmas[0], 0.0)


def test_what_is_exact_is_not_spoilt():
    lesson = gaussian_lesson(GaussianOracle.diagonal([0.3, 1.0] * 2))
    exact = fit([lesson], [0, 20])
    *_, last = refine([lesson], [lesson], exact, 0.8, iterations=5, every=1)
    assert error_of([lesson], last.solver) <= error_of([lesson], exact) < 1e-5


def test_recomputing_in_place_of_keeping_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    learned, held_out = mixture_lessons(4, 0), mixture_lessons(4, 1)
    start = linear_form(Euler(), karras(4, 0.01, 20.0))

    def learn() -> NonStationary:
        *_, last = refine(learned, held_out, start, 1.0, iterations=6, every=2)
        return last.solver

    kept = learn()
    monkeypatch.setattr(refining_module(), "MOST_BYTES", 0)
    assert learn() == kept


def refining_module() -> object:
    import sys

    return sys.modules[refining.__module__]


def test_a_trajectory_that_is_not_finite_teaches_nothing():
    good, held_out = mixture_lessons(2, 0), mixture_lessons(2, 1)
    bad = Lesson(good[0].denoise, good[0].sigmas, good[0].states * torch.nan, good[0].means)
    start = linear_form(Euler(), karras(4, 0.01, 20.0))
    *_, last = refine([good[0], bad], held_out, start, 1.0, iterations=40, every=4)
    assert last.held_out < 0.9 * error_of(held_out, start)
