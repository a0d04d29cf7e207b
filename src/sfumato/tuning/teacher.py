"""The teacher: where a solver of many steps takes some latents, with all it passes on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sfumato.denoiser import Counted
from sfumato.noise import F64
from sfumato.protocols import Denoise, Solver
from sfumato.sampling import sample

State = TypeVar("State")


@dataclass(frozen=True, eq=False)
class Lesson:
    """One batch of trajectories: `states` [M + 1, B, *data] at `sigmas` [M + 1], the last level 0.

    `means` [M, B, *data] are D at every state but the last; `denoise` is bound to the batch's
    conditions, so that it may be asked again.
    """

    denoise: Denoise
    sigmas: Tensor
    states: Tensor
    means: Tensor

    @property
    def start(self) -> Tensor:
        """The latents, x at the first level: [B, *data]."""
        return self.states[0]

    @property
    def target(self) -> Tensor:
        """Where they lead: [B, *data]."""
        return self.states[-1]

    def __len__(self) -> int:
        return self.states.shape[1]


@torch.no_grad()
def teach(denoise: Denoise, solver: Solver[State], sigmas: Tensor, x: Tensor) -> Lesson:
    """Walk latents x [B, *data] down the grid by a deterministic solver and keep the whole way.

    Raises ValueError for a grid that does not end with 0 and for a solver that calls the network
    more or less than once a step, for then the means are not those of the states.
    """
    grid = torch.as_tensor(sigmas, dtype=F64)
    if grid[-1] != 0:
        raise ValueError(f"a teacher walks to sigma 0, not to {float(grid[-1]):.6g}")
    counted = Counted(denoise)
    states, means = [x], list[Tensor]()
    for step in sample(counted, solver, grid, x):
        states.append(step.x)
        means.append(step.x0)
    if counted.evaluations != len(means):
        raise ValueError(
            f"{solver} calls the network {counted.evaluations} times in {len(means)} steps: a "
            "teacher calls it once a step, such as Multistep(3)"
        )
    return Lesson(denoise, grid, torch.stack(states), torch.stack(means))
