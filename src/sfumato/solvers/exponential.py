"""Exponential integrators: the part of the flow that is linear in x is solved exactly.

x_s = (s / sigma) x + int_0^h exp(v - h) D dv with h = log(sigma / s) (DPM-Solver++ eq. 8), D the
denoiser's mean. DDIM is the method of one point. The step to sigma = 0 (h infinite) returns D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.noise import F64
from sfumato.protocols import Denoise
from sfumato.randomness import Noise
from sfumato.solvers.history import History, check_points
from sfumato.solvers.runge_kutta import combine
from sfumato.solvers.weights import clocked_weights, exponential_weights


@dataclass(frozen=True)
class Multistep:
    """Exponential Adams of `points` 1 to 4: DDIM, DPM-Solver++ 2M and a true 3M and 4M.

    The weights integrate the polynomial in log sigma through the last D exactly, so the order is
    `points`. `published` are the weights of DPM-Solver++ instead (Lu et al. 2022b, Algorithm 2;
    1 to 3 points): in 2M the same to leading order (diffusers' "midpoint" and k-diffusion's
    dpmpp_2m; ours is its "heun"), in 3M with half the coefficient that the second difference
    needs, which makes it a method of order 2. `lower_at_end` lowers the order to 2 and 1 over the
    last steps (published for fewer than 15). Raises ValueError for other `points`.
    """

    points: int = 2
    published: bool = False
    lower_at_end: bool = False
    invertible: bool = field(default=True, init=False, repr=False)
    remembers: ClassVar[bool] = True
    stages: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_points("exponential multistep", self.points)
        if self.published and self.points > 3:
            raise ValueError("DPM-Solver++ is published for 1 to 3 points, not 4")

    @property
    def order(self) -> int:
        """As many as points, but 2 for the published three."""
        return min(self.points, 2) if self.published else self.points

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
        """Integrate the polynomial through the last means."""
        x0 = denoise(x, sigma).mean
        here, s = float(sigma), float(sigma_next)
        if s == 0:
            return x0, state.stepped()
        past = state.seen(here, x0, self.points)
        used = past.newest(past.usable(self.points, lower_at_end=self.lower_at_end))
        rule = published_weights if self.published else exponential_weights
        return combine((s / here, *rule(used.sigmas, here, s)), (x, *used.values)), past.stepped()


@lru_cache(4096)
def published_weights(sigmas: tuple[float, ...], sigma: float, s: float) -> tuple[float, ...]:
    """Return DPM-Solver++'s weights of the last one to three D, newest last.

    2M is Algorithm 2 of Lu et al. 2022b; 3M is that of their code, where the second difference has
    the coefficient phi_3 and needs 2 phi_3.
    """
    h = math.log(sigma / s)
    total = -math.expm1(-h)
    past = [math.log(before / after) / h for before, after in pairwise(sigmas)]
    if not past:
        return (total,)
    if len(past) == 1:
        return (-total / (2 * past[0]), total * (1 + 1 / (2 * past[0])))
    older, newer = past
    late, early = np.array([0, -1, 1]) / newer, np.array([-1, 1, 0]) / older
    bend = (late - early) / (newer + older)
    first = 1 - total / h
    second = 0.5 - (h - total) / h**2
    weights = total * np.array([0, 0, 1]) + first * (late + newer * bend) + second * bend
    return tuple(weights.tolist())


@dataclass(frozen=True)
class SingleStep:
    """DPM-Solver++ 2S and 3S (Lu et al. 2022b, Algorithm 1 and app.): no memory, `order` 2 or 3.

    The stages sit at equal steps of log sigma. Without `plus` it is DPM-Solver-2 and -3, which
    integrate the noise (x - D) / sigma in place of D (Lu et al. 2022a, Algorithms 1 and 2); the
    former is k-diffusion's dpm_2. N steps to 0 take order * (N - 1) + 1 evaluations, the last step
    returning D. Raises ValueError for another order.
    """

    order: int = 2
    plus: bool = True
    invertible: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"single-step DPM-Solver has order 2 or 3, not {self.order}")

    @property
    def stages(self) -> int:
        """Evaluations a step."""
        return self.order

    def start(self, x: Tensor, sigmas: Tensor) -> None:
        """Return no state."""

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: None,
        noise: Noise | None,
    ) -> tuple[Tensor, None]:
        """Evaluate at a half, or at one and two thirds, of the step in log sigma."""
        here, s = float(sigma), float(sigma_next)
        values = [denoise(x, sigma).mean]
        if sigma_next == 0:
            return values[0], None
        if not self.plus:
            values[0] = (x - values[0]) / here
        middles = tuple(here * (s / here) ** (k / self.order) for k in range(1, self.order))
        for k, level in enumerate(middles):
            known = (here,) if k == 0 else (here, middles[0])
            moved = self._walk(x, known, values, here, level)
            at = torch.tensor(level, dtype=F64)
            mean = denoise(moved, at).mean
            values.append(mean if self.plus else (moved - mean) / level)
        if self.order == 2:  # the mean over the step is taken to be the value at its middle
            return self._walk(x, (here,), values[1:], here, s), None
        return self._walk(x, (here, middles[1]), [values[0], values[2]], here, s), None

    def _walk(
        self, x: Tensor, sigmas: tuple[float, ...], values: list[Tensor], sigma: float, s: float
    ) -> Tensor:
        if self.plus:
            weights = exponential_weights(sigmas, sigma, s)
            return combine((s / sigma, *weights), (x, *values))
        return combine(clocked_weights(sigmas, sigma, s, torch.log), values, x)
