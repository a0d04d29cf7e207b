"""Wrappers that add noise to a solver's walk."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from sfumato.diffusion import expand
from sfumato.protocols import Denoise, Solver
from sfumato.randomness import Noise, Purpose
from sfumato.solvers.support import needed, trained

State = TypeVar("State")


@dataclass(frozen=True)
class Churned(Generic[State]):
    """State of `Churn`: the most by which sigma is raised, and the inner solver's state."""

    gamma: float
    inner: State


@dataclass(frozen=True)
class Churn(Generic[State]):
    """EDM's stochastic sampler (EDM Algorithm 2) around any solver of the ODE.

    Before each step whose sigma lies in [low, high] it raises the level to sigma (1 + gamma),
    gamma = min(amount / N, sqrt(2) - 1), N the number of steps, adding noise of standard deviation
    inflation * sqrt(raised^2 - sigma^2). On a ladder the raised level is rounded first; it never
    exceeds the trained range. amount, low, high, inflation are S_churn, S_tmin, S_tmax, S_noise.
    Raises ValueError for amount < 0, low > high or inflation <= 0, and for a solver that goes by
    its past steps or chooses them itself: raised levels are no part of either.
    """

    solver: Solver[State]
    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    inflation: float = 1.0
    invertible: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if getattr(self.solver, "remembers", False):
            raise ValueError(
                f"churn needs a solver that knows one step only, such as Euler or Heun; "
                f"{type(self.solver).__name__} goes by its other steps"
            )
        if not (self.amount >= 0 and self.low <= self.high and self.inflation > 0):
            raise ValueError(
                "churn needs amount >= 0, low <= high and inflation > 0, not "
                f"amount={self.amount}, low={self.low}, high={self.high}, "
                f"inflation={self.inflation}"
            )

    @property
    def order(self) -> int:
        """The order of the wrapped solver where no noise is added."""
        return self.solver.order

    def start(self, x: Tensor, sigmas: Tensor) -> Churned[State]:
        """Fix gamma for this number of steps."""
        gamma = min(self.amount / (len(sigmas) - 1), math.sqrt(2) - 1)
        return Churned(gamma, self.solver.start(x, sigmas))

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: Churned[State],
        noise: Noise | None,
    ) -> tuple[Tensor, Churned[State]]:
        """Raise the level, then take the wrapped solver's step from there."""
        raised = sigma
        if state.gamma > 0 and self.low <= sigma <= self.high:
            raised = trained(denoise, sigma * (1 + state.gamma))
        if raised > sigma:
            std = self.inflation * (raised**2 - sigma**2).sqrt()
            x = x + expand(std, x) * needed(noise).like(x, Purpose.CHURN)
        else:
            raised = sigma
        x, inner = self.solver.step(denoise, x, raised, sigma_next, state.inner, noise)
        return x, Churned(state.gamma, inner)
