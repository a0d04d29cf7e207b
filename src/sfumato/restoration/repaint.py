"""RePaint: some levels back up by fresh noise, and down again, so that the image agrees."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

from torch import Tensor

from sfumato.protocols import Denoise, Solver
from sfumato.randomness import Noise, Purpose
from sfumato.solvers.support import needed

State = TypeVar("State")

# Draws of repeated walks lie far from those of the main walk.
_FAR = 2**48


@dataclass(frozen=True)
class Repainting(Generic[State]):
    """State of `Repaint`: the grid, and the wrapped solver's state."""

    sigmas: Tensor
    inner: State


@dataclass(frozen=True)
class Repaint(Generic[State]):
    """Time travel around a solver (Lugmayr et al. 2022, section 4.2), for a `Replacement`.

    Every `jump` levels, `times` - 1 times: noise takes x up by `jump` levels of the grid, and the
    solver walks them again. What was filled in hears of its surroundings again. It costs `times`
    walks in all. Raises ValueError for times or jump below 1.
    """

    solver: Solver[State]
    times: int = 5
    jump: int = 1
    invertible: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.times < 1 or self.jump < 1:
            raise ValueError(f"times and jump must be 1 or more, not {self.times}, {self.jump}")

    @property
    def order(self) -> int:
        """The wrapped solver's."""
        return self.solver.order

    def start(self, x: Tensor, sigmas: Tensor) -> Repainting[State]:
        """Keep the grid."""
        return Repainting(sigmas, self.solver.start(x, sigmas))

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: Repainting[State],
        noise: Noise | None,
    ) -> tuple[Tensor, Repainting[State]]:
        """Take the wrapped solver's step, and walk the last levels again."""
        noise = needed(noise)
        grid, inner = state.sigmas, state.inner
        x, inner = self.solver.step(denoise, x, sigma, sigma_next, inner, noise)
        place = int((grid == sigma_next).nonzero()[0, 0])
        back = min(self.jump, place)
        if self.times == 1 or (place % self.jump and place != len(grid) - 1):
            return x, Repainting(grid, inner)
        walk = grid[place - back : place + 1]
        for again in range(self.times - 1):
            number = _FAR * (1 + again) + noise.number * (self.jump + 1)
            up = (float(walk[0]) ** 2 - float(walk[-1]) ** 2) ** 0.5
            x = x + up * noise.at(number).like(x, Purpose.RESTART)
            inner = self.solver.start(x, walk)
            for part, (here, there) in enumerate(pairwise(walk.unbind())):
                at = noise.at(number + 1 + part)
                x, inner = self.solver.step(denoise, x, here, there, inner, at)
        if place < len(grid) - 1:
            inner = self.solver.start(x, grid[place:])
        return x, Repainting(grid, inner)
