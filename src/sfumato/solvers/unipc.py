"""UniPC: a predictor and a corrector that share every evaluation (Zhao et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from torch import Tensor

from sfumato.protocols import Denoise
from sfumato.randomness import Noise
from sfumato.solvers.history import History, check_points
from sfumato.solvers.runge_kutta import combine
from sfumato.solvers.weights import exponential_weights


class Variant(Enum):
    """The paper's B(h). It cancels wherever a system is solved: only short histories show it."""

    BH1 = 1  # B(h) = h
    BH2 = 2  # B(h) = exp(h) - 1


@dataclass(frozen=True)
class Corrected:
    """State of `UniPC`: what was seen, and the step that the next evaluation corrects.

    `last` is the corrected x at the newest level of `history`, None before the first step; `used`
    the points of the predictor from there.
    """

    history: History
    last: Tensor | None = None
    used: int = 1


@dataclass(frozen=True)
class UniPC:
    """UniPC-p with p = `points` from 1 to 4, for D (Zhao et al. 2023, Algorithms 1 and 2).

    Each evaluation first corrects the x it was made at (UniC-p), then serves the next prediction
    (UniP-p), so N steps take N evaluations and the order is p + 1. `Step.x` is the predicted x: the
    correction comes with the next step. The predictor of two points and the corrector of one are
    the paper's simplified ones. The step to 0 returns D. `lower_at_end` lowers the order to 2 and 1
    over the last steps, the default of the paper's code. Raises ValueError for other `points`.
    """

    points: int = 3
    variant: Variant = Variant.BH2
    lower_at_end: bool = False
    invertible: bool = field(default=True, init=False, repr=False)
    remembers: ClassVar[bool] = True
    stages: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_points("UniPC", self.points)

    @property
    def order(self) -> int:
        """One more than points: the corrector's."""
        return self.points + 1

    def start(self, x: Tensor, sigmas: Tensor) -> Corrected:
        """Return an empty history."""
        return Corrected(History.empty(sigmas))

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: Corrected,
        noise: Noise | None,
    ) -> tuple[Tensor, Corrected]:
        """Correct the step that led here, then predict the next."""
        x0 = denoise(x, sigma).mean
        here, s = float(sigma), float(sigma_next)
        if state.last is not None:
            x = self._correct(state.last, state.history.newest(state.used), here, x0)
        past = state.history.seen(here, x0, self.points)
        count = past.usable(self.points, lower_at_end=self.lower_at_end)
        moved = x0 if s == 0 else self._predict(x, past.newest(count), s)
        return moved, Corrected(past.stepped(), x, count)

    def _predict(self, x: Tensor, past: History, s: float) -> Tensor:
        sigma = past.sigmas[-1]
        if len(past.values) == 2:
            h = math.log(sigma / s)
            bend = 0.5 * self._size(h) * h / math.log(past.sigmas[0] / sigma)
            weights: tuple[float, ...] = (-bend, 1 - s / sigma + bend)
        else:
            weights = exponential_weights(past.sigmas, sigma, s)
        return combine((s / sigma, *weights), (x, *past.values))

    def _correct(self, x: Tensor, past: History, s: float, x0: Tensor) -> Tensor:
        sigma = past.sigmas[-1]
        if len(past.values) == 1:
            new = 0.5 * self._size(math.log(sigma / s))
            weights: tuple[float, ...] = (1 - s / sigma - new, new)
        else:
            weights = exponential_weights((*past.sigmas, s), sigma, s)
        return combine((s / sigma, *weights), (x, *past.values, x0))

    def _size(self, h: float) -> float:
        """B(-h) up to its sign, as D is integrated."""
        return h if self.variant is Variant.BH1 else -math.expm1(-h)
