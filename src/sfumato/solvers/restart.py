"""The Restart sampler: forth and back between two levels, by noise up and by a solver down."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

from torch import Tensor

from sfumato.noise import check_bounds, karras
from sfumato.protocols import Denoise, Solver
from sfumato.randomness import Noise, Purpose
from sfumato.solvers.cost import evaluations
from sfumato.solvers.support import needed, positive, trained

State = TypeVar("State")

# Walks inside a restart number their draws far from those of the main walk, which stay what they
# are without restarts.
_FAR = 2**32


@dataclass(frozen=True)
class Interval:
    """Where and how to restart: `times` between low and high, `steps` solver steps each way down.

    The levels between are spaced as EDM's, with exponent rho. Raises ValueError unless 0 < low <
    high and times, steps, rho are above 0.
    """

    low: float
    high: float
    times: int = 1
    steps: int = 3
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_bounds(self.low, self.high)
        positive("the number of restarts", self.times)
        positive("the number of steps", self.steps)
        positive("rho", self.rho)

    def levels(self, low: float) -> Tensor:
        """Return steps + 1 descending levels from `high` to the level at which it restarts."""
        levels = karras(self.steps + 1, low, self.high, self.rho)[:-1]
        levels[-1] = low  # rounding apart
        return levels


@dataclass(frozen=True)
class Restarting(Generic[State]):
    """State of `Restart`: the grid, where on it to restart, and the wrapped solver's state."""

    sigmas: Tensor
    at: dict[float, Interval]
    inner: State


@dataclass(frozen=True)
class Restart(Generic[State]):
    """Restart sampling around a solver (Xu et al. 2023, section 3.1).

    Each interval's low is rounded to the nearest level of the grid. When the walk arrives there,
    `times` times: noise of standard deviation inflation * sqrt(high^2 - low^2) is added, and the
    solver walks from high to low again. It costs times * steps solver steps more. On a ladder the
    levels between are rounded. Noise up and an exact walk down keep the marginals while errors
    made above shrink; the order is the wrapped solver's where these walks are refined too.
    Raises ValueError without intervals, for inflation that is not above 0 and, at the start, for an
    interval that has no place on the grid or shares it with another.
    """

    solver: Solver[State]
    intervals: tuple[Interval, ...]
    inflation: float = 1.0
    invertible: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        positive("inflation", self.inflation)
        if not self.intervals:
            raise ValueError("Restart needs at least one interval: Interval(low, high, times)")

    @property
    def order(self) -> int:
        """The wrapped solver's."""
        return self.solver.order

    def evaluations(self, steps: int) -> int:
        """Return what so many steps to 0 cost, less where a ladder rounds an interval's levels."""
        again = sum(i.times * (evaluations(self.solver, i.steps + 1) - 1) for i in self.intervals)
        return evaluations(self.solver, steps) + again

    def start(self, x: Tensor, sigmas: Tensor) -> Restarting[State]:
        """Find the intervals' places on the grid."""
        levels = sigmas[1:][sigmas[1:] > 0]
        at: dict[float, Interval] = {}
        for interval in self.intervals:
            if not len(levels):
                raise ValueError("Restart needs a grid with a level between its first and 0")
            place = float(levels[(levels.log() - math.log(interval.low)).abs().argmin()])
            if not place < interval.high or place in at:
                raise ValueError(
                    f"the interval {interval.low:g} to {interval.high:g} restarts at the grid's "
                    f"level {place:.6g}, which is above it or another's: take more steps, or "
                    "other intervals"
                )
            at[place] = interval
        return Restarting(sigmas, at, self.solver.start(x, sigmas))

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: Restarting[State],
        noise: Noise | None,
    ) -> tuple[Tensor, Restarting[State]]:
        """Take the wrapped solver's step, and restart where an interval ends there."""
        x, inner = self.solver.step(denoise, x, sigma, sigma_next, state.inner, noise)
        interval = state.at.get(float(sigma_next))
        if interval is None:
            return x, Restarting(state.sigmas, state.at, inner)
        given = needed(noise)
        levels = trained(denoise, interval.levels(float(sigma_next))).unique_consecutive()
        std = self.inflation * float((levels[0] ** 2 - sigma_next**2).sqrt())
        for time in range(interval.times):
            x = x + std * given.at(_far(given, time)).like(x, Purpose.RESTART)
            x = self._down(denoise, x, levels, given, time * interval.steps)
        rest = state.sigmas[state.sigmas <= sigma_next]
        inner = self.solver.start(x, rest) if len(rest) > 1 else inner
        return x, Restarting(state.sigmas, state.at, inner)

    def _down(
        self, denoise: Denoise, x: Tensor, levels: Tensor, noise: Noise, first: int
    ) -> Tensor:
        state = self.solver.start(x, levels)
        for index, (sigma, s) in enumerate(pairwise(levels)):
            here = noise.at(_far(noise, first + index))
            x, state = self.solver.step(denoise, x, sigma, s, state, here)
        return x


def _far(noise: Noise, index: int) -> int:
    return noise.number + (1 + index) * _FAR
