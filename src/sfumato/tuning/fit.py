"""Weights of a solver by least squares: one pass down a given path of the teacher's levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sfumato.noise import F64
from sfumato.protocols import Solver
from sfumato.sampling import sample
from sfumato.solvers.non_stationary import NonStationary
from sfumato.tuning.teacher import Lesson

State = TypeVar("State")

RIDGE = 1e-9
"""Added to the diagonal of the products, relative: the means at neighbouring levels are alike."""


@torch.no_grad()
def fit(lessons: Sequence[Lesson], path: Sequence[int]) -> NonStationary:
    """Return the solver whose every step comes as near to the teacher's next state as it can.

    The student walks by itself, so a row of weights also undoes what the rows before it missed. The
    last row is the best that any last step can do in mean square.
    """
    grid = lessons[0].sigmas[list(path)]
    seen = [[lesson.start] for lesson in lessons]
    states = [lesson.start for lesson in lessons]
    rows: list[list[float]] = []
    for place, level in zip(path[1:], grid[:-1], strict=True):
        for lesson, known, x in zip(lessons, seen, states, strict=True):
            known.append(lesson.denoise(x, level).mean)
        products, target = torch.zeros((), dtype=F64), torch.zeros((), dtype=F64)
        for lesson, known in zip(lessons, seen, strict=True):
            a = torch.stack(known).flatten(1).to(F64)
            products = products + a @ a.T
            target = target + a @ lesson.states[place].flatten().to(F64)
        products = products + RIDGE * torch.diag(products.diag())
        weights = torch.linalg.solve(products, target).cpu()
        rows.append(weights.tolist())
        states = [torch.tensordot(weights.to(known[0]), torch.stack(known), 1) for known in seen]
    return NonStationary(
        tuple(grid.tolist()),
        tuple(row[0] for row in rows),
        tuple(tuple(row[1:]) for row in rows),
    )


def miss(lessons: Sequence[Lesson], solver: Solver[State], sigmas: Tensor) -> Tensor:
    """Return each image's per-dimension RMSE between the solver's end and the teacher's, [B]."""
    errors: list[Tensor] = []
    for lesson in lessons:
        x = lesson.start
        for step in sample(lesson.denoise, solver, sigmas, x):
            x = step.x
        errors.append((x - lesson.target).to(F64).square().flatten(1).mean(1).sqrt())
    return torch.cat(errors).cpu()
