"""Linear solvers with weights of their own for every step: what `sfumato tune` learns.

Every deterministic solver that calls the network once a step is linear in what it has seen:

    x_{i+1} = start[i] x_0 + sum_{j <= i} weights[i][j] D_j,     D_j = D(x_j, sigma_j),

with x_0 the state at the first level. A table of such numbers for one grid therefore holds Euler,
Adams-Bashforth, DEIS, iPNDM, DPM-Solver++ and UniPC alike, and every solver between them
(bespoke non-stationary solvers: Shaul et al. 2024, arXiv:2403.01329, eq. 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from sfumato.gaussian import Gaussian
from sfumato.noise import F64
from sfumato.protocols import Denoise, Solver
from sfumato.randomness import Noise
from sfumato.solvers.runge_kutta import combine

State = TypeVar("State")


@dataclass(frozen=True)
class Seen:
    """The state at the first level, and every mean since, oldest first: [B, *data] each."""

    start: Tensor
    means: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class NonStationary:
    """A linear solver on one descending grid: `start_weights` [N], `weights` (rows of 1, ..., N).

    `sigmas` has N + 1 levels; N steps take N evaluations. `order` is that of the family the table
    was taken from, 1 where it was learned. Raises ValueError for a table of another form, levels
    that do not descend, or numbers that are not finite.
    """

    sigmas: tuple[float, ...]
    start_weights: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    order: int = field(default=1, compare=False)
    invertible: bool = field(default=False, init=False, repr=False)
    remembers: ClassVar[bool] = True
    stages: ClassVar[int] = 1

    def __post_init__(self) -> None:
        steps = len(self.sigmas) - 1
        rows = [len(row) for row in self.weights]
        if steps < 1 or len(self.start_weights) != steps or rows != list(range(1, steps + 1)):
            raise ValueError(
                f"a solver of {max(steps, 0)} steps needs as many start weights and rows of "
                f"1, 2, ... weights, not {len(self.start_weights)} and rows of {rows}"
            )
        numbers = (*self.sigmas, *self.start_weights, *(w for row in self.weights for w in row))
        if not all(map(math.isfinite, numbers)):
            raise ValueError("levels and weights of a solver must be finite")
        if not all(s < sigma for sigma, s in pairwise(self.sigmas)) or self.sigmas[-1] < 0:
            raise ValueError(f"the levels of a solver must descend, not be {self.sigmas}")

    def start(self, x: Tensor, sigmas: Tensor) -> Seen:
        """Return x alone; raises ValueError for another grid than the table's."""
        own = torch.tensor(self.sigmas, dtype=F64)
        if sigmas.shape != own.shape or not torch.allclose(sigmas.to(F64), own, rtol=1e-9, atol=0):
            raise ValueError(
                f"this solver's weights belong to the levels {_listed(self.sigmas)}, not to "
                f"{_listed(sigmas.tolist())}: walk its own grid"
            )
        return Seen(x)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: Seen,
        noise: Noise | None,
    ) -> tuple[Tensor, Seen]:
        """Combine the start with all means so far."""
        means = (*state.means, denoise(x, sigma).mean)
        row = len(means) - 1
        weights = (self.start_weights[row], *self.weights[row])
        return combine(weights, (state.start, *means)), Seen(state.start, means)


def linear_form(solver: Solver[State], sigmas: Tensor | Sequence[float]) -> NonStationary:
    """Return the table of a deterministic solver on a descending grid [N + 1], exactly.

    The solver walks once with symbols in place of images: x_0 is the first unit vector and the
    answer to call j the one after the j-th, so that what comes out are its weights. The table's
    levels are those at which it calls. Raises ValueError for a solver that draws noise, chooses its
    steps, or does not call at descending levels (Heun calls twice at each).
    """
    grid = torch.as_tensor(sigmas, dtype=F64)
    size = 4 * len(grid) + 16
    unit = torch.eye(size, dtype=F64)
    states: list[Tensor] = []
    levels: list[float] = []

    def symbol(x: Tensor, sigma: Tensor) -> Gaussian:
        states.append(x[0])
        levels.append(float(sigma))
        return Gaussian(unit[len(levels)][None], torch.zeros((), dtype=F64))

    x = unit[:1]
    state = solver.start(x, grid)
    for sigma, sigma_next in pairwise(grid):
        x, state = solver.step(symbol, x, sigma, sigma_next, state, None)
    levels.append(float(grid[-1]))
    rows = [*states[1:], x[0]]
    if not all(s < sigma for sigma, s in pairwise(levels)):
        raise ValueError(
            f"{solver} calls the network at {_listed(levels[:-1])}, which do not descend one by "
            "one: a table of weights holds solvers of one call a level"
        )
    return NonStationary(
        tuple(levels),
        tuple(float(row[0]) for row in rows),
        tuple(tuple(row[1 : count + 1].tolist()) for count, row in enumerate(rows, 1)),
        order=solver.order,
    )


def _listed(sigmas: Sequence[float]) -> str:
    shown = [f"{sigma:.4g}" for sigma in sigmas]
    return ", ".join(shown if len(shown) < 9 else [*shown[:4], "...", *shown[-3:]])
