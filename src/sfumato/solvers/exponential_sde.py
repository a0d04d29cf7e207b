"""DPM-Solver++ for the diffusion SDE, and solvers of the ODE that walk too far and add noise.

With lambda = -log(sigma), the SDEs whose marginals are those of the probability flow are

    dx = -(1 + heat) (x - D) d(lambda) + sqrt(2 heat) sigma dW

for every constant heat >= 0: 0 is the flow, 1 the reverse SDE. All but D is linear and is solved
exactly, noise included: it is s^(1 + heat) times the step of a Brownian motion on the clock
sigma^(-2 heat). With heat = 1 and y = x / sigma^2 that reads dy = D du + dW, u = 1 / sigma^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from sfumato.protocols import Denoise, Solver
from sfumato.randomness import Noise
from sfumato.solvers.support import fresh

State = TypeVar("State")


@dataclass(frozen=True)
class Previous:
    """The level before the last step, and the mean there."""

    sigma: Tensor
    x0: Tensor


@dataclass(frozen=True)
class ExponentialSDE:
    """SDE-DPM-Solver++ of weak order 1 or 2 (Lu et al. 2022, "DPM-Solver++").

    order = 2 (2M) continues D along the line through its last two values, linear in log sigma,
    after a first step of order 1. The published form weights the slope as at the middle of the
    step (`published=True`: k-diffusion's dpmpp_2m_sde and its default "midpoint"); ours integrates
    it exactly (k-diffusion's "heun"). `heat` (k-diffusion's eta) is that of the SDE above, 0 for
    the probability flow, which may also walk up. With order = 1, heat = 1 it is DDIM(1), with heat
    = 0 Euler. Raises ValueError for another order or a heat that is negative or infinite.
    """

    order: int = 2
    heat: float = 1.0
    published: bool = False
    stages: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"DPM-Solver++ for the SDE has order 1 or 2, not {self.order}")
        if not 0 <= self.heat < math.inf:
            raise ValueError(f"heat must be at least 0 and finite, not {self.heat}")

    @property
    def invertible(self) -> bool:
        """Only without noise."""
        return self.heat == 0

    def start(self, x: Tensor, sigmas: Tensor) -> None:
        """Return no history."""

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: Previous | None,
        noise: Noise | None,
    ) -> tuple[Tensor, Previous]:
        """Solve the linear part exactly, with D constant or linear in log sigma."""
        x0 = denoise(x, sigma).mean
        done = Previous(sigma, x0)
        if sigma_next == 0:
            return x0, done
        step = (sigma / sigma_next).log()
        decay = (1 + self.heat) * step
        gain = -(-decay).expm1()
        out = float((-decay).exp()) * x + float(gain) * x0
        if state is not None and self.order == 2:
            weight = gain / 2 if self.published else 1 - gain / decay
            ratio = step / (state.sigma / sigma).log()
            out = out + float(weight * ratio) * (x0 - state.x0)
        if self.heat > 0:
            std = sigma_next * (-(-2 * self.heat * step).expm1()).sqrt()
            out = out + float(std) * fresh(noise, x, sigma, sigma_next, self.heat)
        return out, done


@dataclass(frozen=True)
class Overshoot(Generic[State]):
    """Ancestral sampling with any solver of the ODE: walk below the next level, add noise back.

    From sigma to s it walks down to sqrt(s^2 - up^2), up = eta s sqrt(1 - (s / sigma)^2) being
    DDIM's noise (DDIM eq. 16), and adds up * z. Around `Euler` it is DDIM(eta) (k-diffusion's
    euler_ancestral), around DPM-Solver++ 2S its dpmpp_2s_ancestral. Noise up after an exact walk
    keeps the marginals, so the weak order is the wrapped solver's. The level walked to is on no
    ladder: a solver that asks for D there needs a denoiser without one. Raises ValueError for eta
    outside [0, 1] and for a solver that draws noise itself.
    """

    solver: Solver[State]
    eta: float = 1.0
    invertible: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"Overshoot's eta lies in [0, 1], not {self.eta}")
        if not self.solver.invertible:
            raise ValueError(f"Overshoot needs a deterministic solver, not {self.solver}")

    @property
    def order(self) -> int:
        """The wrapped solver's."""
        return self.solver.order

    def start(self, x: Tensor, sigmas: Tensor) -> State:
        """Start the wrapped solver."""
        return self.solver.start(x, sigmas)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: State,
        noise: Noise | None,
    ) -> tuple[Tensor, State]:
        """Walk to the lower level, then back up by noise."""
        up_var = self.eta**2 * sigma_next**2 * (1 - (sigma_next / sigma) ** 2)
        down = (sigma_next**2 - up_var).sqrt()
        x, state = self.solver.step(denoise, x, sigma, down, state, noise)
        if up_var > 0:
            z = fresh(noise, x, sigma, sigma_next, self.eta**2)
            x = x + float(up_var.sqrt()) * z
        return x, state
