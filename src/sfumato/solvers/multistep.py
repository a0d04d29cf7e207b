"""Linear multistep solvers of dx/dsigma = (x - D) / sigma: one evaluation a step, with memory.

`points` counts the slopes that a step uses, the newest included; the first steps use those there
are. With their own start-up (Euler's, an error of order 2) no history solver is of more than
order 2 over the whole walk; `order` is that of the method, from an exact history.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.protocols import Denoise
from sfumato.randomness import Noise
from sfumato.solvers.history import History, check_points
from sfumato.solvers.runge_kutta import combine, explicit_step, slope
from sfumato.solvers.tableau import CLASSIC4, HEUN, Tableau
from sfumato.solvers.weights import Clock, clocked_weights, linear_weights

# Adams-Bashforth for steps of equal length, newest last (Hairer et al., III.1).
EQUAL_STEPS: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (-1 / 2, 3 / 2),
    (5 / 12, -16 / 12, 23 / 12),
    (-9 / 24, 37 / 24, -59 / 24, 55 / 24),
)


@dataclass(frozen=True)
class AdamsBashforth:
    """Adams-Bashforth with exact weights for variable steps in sigma: order `points`, 1 to 4.

    k-diffusion's "lms" and rho-AB-DEIS (Zhang & Chen 2022); with 2 points and equal steps the
    formula of DDIM's appendix. The step to 0 is no exception: D is not asked there.
    Raises ValueError for other `points`.
    """

    points: int = 4
    invertible: bool = field(default=True, init=False, repr=False)
    remembers: ClassVar[bool] = True
    stages: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_points("Adams-Bashforth", self.points)

    @property
    def order(self) -> int:
        """As many as points."""
        return self.points

    def start(self, x: Tensor, sigmas: Tensor) -> History:
        """Return an empty history."""
        return History.empty(sigmas)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: History,
        noise: Noise | None,
    ) -> tuple[Tensor, History]:
        """Integrate the polynomial in sigma through the last slopes."""
        past = state.seen(float(sigma), slope(denoise, x, sigma), self.points)
        weights = linear_weights(past.sigmas, float(sigma), float(sigma_next))
        return combine(weights, past.values, x), past.stepped()


def log_sigma(sigma: Tensor) -> Tensor:
    """Return log sigma, minus half the log signal-to-noise ratio."""
    return torch.log(sigma)


@dataclass(frozen=True)
class DEIS:
    """tAB-DEIS: the polynomial through the last slopes is one in clock(sigma) (DEIS eq. 14-15).

    `clock` is the paper's t as a function of sigma: `VP().time` is its VP process; the default, log
    sigma, is "logrho" of diffusers, and multistep DPM-Solver for noise prediction with exact
    weights. Order `points`, 1 to 4. The step to 0, where a clock may be infinite, is Euler's;
    `lower_at_end` lowers the order to 2 and 1 over the last steps (diffusers: below 15 steps).
    Raises ValueError for other `points`.
    """

    points: int = 3
    clock: Clock = field(default=log_sigma, repr=False)
    lower_at_end: bool = False
    invertible: bool = field(default=True, init=False, repr=False)
    remembers: ClassVar[bool] = True
    stages: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_points("DEIS", self.points)

    @property
    def order(self) -> int:
        """As many as points."""
        return self.points

    def start(self, x: Tensor, sigmas: Tensor) -> History:
        """Return an empty history."""
        return History.empty(sigmas)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: History,
        noise: Noise | None,
    ) -> tuple[Tensor, History]:
        """Integrate the polynomial in clock(sigma) through the last slopes."""
        if sigma_next == 0:
            return denoise(x, sigma).mean, state.stepped()
        past = state.seen(float(sigma), slope(denoise, x, sigma), self.points)
        used = past.newest(past.usable(self.points, lower_at_end=self.lower_at_end))
        weights = clocked_weights(used.sigmas, float(sigma), float(sigma_next), self.clock)
        return combine(weights, used.values, x), past.stepped()


@dataclass(frozen=True)
class IPNDM:
    """iPNDM: Adams-Bashforth's weights for equal steps, whatever the steps (Zhang & Chen 2022).

    PNDM's formula without its Runge-Kutta start. Of order `points` (1 to 4) where sigma is equally
    spaced, elsewhere of order 2 at most. The step to 0 is no exception, as published.
    Raises ValueError for other `points`.
    """

    points: int = 4
    invertible: bool = field(default=True, init=False, repr=False)
    remembers: ClassVar[bool] = True
    stages: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_points("iPNDM", self.points)

    @property
    def order(self) -> int:
        """On a smooth grid that is not equally spaced in sigma."""
        return min(self.points, 2)

    def start(self, x: Tensor, sigmas: Tensor) -> History:
        """Return an empty history."""
        return History.empty(sigmas)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: History,
        noise: Noise | None,
    ) -> tuple[Tensor, History]:
        """Transfer along the fixed mean of the last slopes (PNDM eq. 12)."""
        past = state.seen(float(sigma), slope(denoise, x, sigma), self.points)
        return _transfer(x, past, sigma, sigma_next), past.stepped()


@dataclass(frozen=True)
class PLMS:
    """S-PNDM's start and four points after: PLMS of latent diffusion (Liu et al. 2022, eq. 12-13).

    As `IPNDM(4)`, but the first step is Heun's, so N steps to 0 take N + 1 evaluations. diffusers:
    PNDM with skip_prk_steps.
    """

    order: int = field(default=2, init=False, repr=False)
    invertible: bool = field(default=True, init=False, repr=False)
    remembers: ClassVar[bool] = True

    def evaluations(self, steps: int) -> int:
        """Return how many evaluations so many steps to 0 take."""
        return steps + min(steps - 1, 1)

    def start(self, x: Tensor, sigmas: Tensor) -> History:
        """Return an empty history."""
        return History.empty(sigmas)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: History,
        noise: Noise | None,
    ) -> tuple[Tensor, History]:
        """Start with Heun's method, then use what is known."""
        return _warmed_step(HEUN, 1, denoise, x, sigma, sigma_next, state)


@dataclass(frozen=True)
class PNDM:
    """F-PNDM: three steps of Runge-Kutta 4, then four points (Liu et al. 2022, Algorithm 2).

    Its half step is taken in sigma; the paper takes it in the integer time, which a solver does not
    know. N > 3 steps to 0 take N + 9 evaluations. Order as `IPNDM(4)`.
    """

    order: int = field(default=2, init=False, repr=False)
    invertible: bool = field(default=True, init=False, repr=False)
    remembers: ClassVar[bool] = True

    def evaluations(self, steps: int) -> int:
        """Return how many evaluations so many steps to 0 take."""
        return steps + 3 * min(steps - 1, 3)

    def start(self, x: Tensor, sigmas: Tensor) -> History:
        """Return an empty history."""
        return History.empty(sigmas)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: History,
        noise: Noise | None,
    ) -> tuple[Tensor, History]:
        """Start with Runge-Kutta 4, then use what is known."""
        return _warmed_step(CLASSIC4, 3, denoise, x, sigma, sigma_next, state)


def _warmed_step(
    tableau: Tableau,
    steps: int,
    denoise: Denoise,
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    state: History,
) -> tuple[Tensor, History]:
    """Take the first `steps` steps by a tableau, the others along the fixed mean of four slopes."""
    here = slope(denoise, x, sigma)
    past = state.seen(float(sigma), here, 4)
    if len(past.values) <= steps:
        moved = explicit_step(tableau, denoise, x, sigma, sigma_next, first=here)
    else:
        moved = _transfer(x, past, sigma, sigma_next)
    return moved, past.stepped()


def _transfer(x: Tensor, past: History, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """DDIM's step along a mean of slopes: the pseudo-linear transfer (PNDM eq. 9)."""
    step = float(sigma_next) - float(sigma)
    weights = [step * weight for weight in EQUAL_STEPS[len(past.values) - 1]]
    return combine(weights, past.values, x)
