"""Langevin dynamics at a level: Score-SDE's corrector and NCSN's annealed sampler.

One step is x + size * score + sqrt(2 size) z. NCSN writes alpha = 2 size; Score-SDE's epsilon is
size in its own, scaled coordinates, where the step is the same with size * scale^2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from torch import Tensor

from sfumato.diffusion import expand
from sfumato.protocols import Denoise, Solver
from sfumato.randomness import Noise, Purpose
from sfumato.solvers.cost import evaluations
from sfumato.solvers.support import Scaled, needed, positive, score

State = TypeVar("State")


@dataclass(frozen=True)
class Correcting(Generic[State]):
    """State of `Corrector`: the grid, and the predictor's state."""

    sigmas: Tensor
    inner: State | None


@dataclass(frozen=True)
class Corrector(Generic[State]):
    """Score-SDE's predictor-corrector sampler (Song et al. 2021, Algorithms 1, 4 and 5).

    After the predictor's step, `steps` Langevin steps at the new level, of size 2 (snr |z| /
    |score|)^2; none at 0. `corrects_first` is the order of the authors' PyTorch code: correct, then
    predict. On one grid down to 0 the two differ by the correction at the first level only. The
    norms are each image's own; `shared_norms` averages them over the batch as that code does, which
    makes an image depend on its companions. `process` (a VP ladder) multiplies the size by the
    paper's alpha, the squared factor (scale(sigma) / scale(below))^2 of the forward step to sigma.

    Without a predictor x is kept from level to level, and the step to 0 is the mean. The order is
    the predictor's: it is that of an error beside the correction's own, which depends on snr and
    on no grid. Raises ValueError for snr or steps that are not above 0.
    """

    predictor: Solver[State] | None = None
    snr: float = 0.16
    steps: int = 1
    corrects_first: bool = False
    shared_norms: bool = False
    process: Scaled | None = None
    invertible: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        positive("snr", self.snr)
        positive("the number of steps", self.steps)

    @property
    def order(self) -> int:
        """The predictor's; 0 without one."""
        return 0 if self.predictor is None else self.predictor.order

    def evaluations(self, steps: int) -> int:
        """Return what so many steps to 0 cost: the predictor's, and the corrections'."""
        predicting = 1 if self.predictor is None else evaluations(self.predictor, steps)
        return predicting + self.steps * (steps if self.corrects_first else steps - 1)

    def start(self, x: Tensor, sigmas: Tensor) -> Correcting[State]:
        """Start the predictor."""
        inner = None if self.predictor is None else self.predictor.start(x, sigmas)
        return Correcting(sigmas, inner)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: Correcting[State],
        noise: Noise | None,
    ) -> tuple[Tensor, Correcting[State]]:
        """Predict and correct, or correct and predict."""
        if self.corrects_first:
            x = self._correct(denoise, x, sigma, state.sigmas, noise)
        x, state = self._predict(denoise, x, sigma, sigma_next, state, noise)
        if not self.corrects_first and sigma_next > 0:
            x = self._correct(denoise, x, sigma_next, state.sigmas, noise)
        return x, state

    def _predict(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: Correcting[State],
        noise: Noise | None,
    ) -> tuple[Tensor, Correcting[State]]:
        if self.predictor is None:
            return (x if sigma_next > 0 else denoise(x, sigma).mean), state
        inner = cast("State", state.inner)
        x, inner = self.predictor.step(denoise, x, sigma, sigma_next, inner, noise)
        return x, Correcting(state.sigmas, inner)

    def _correct(
        self, denoise: Denoise, x: Tensor, sigma: Tensor, sigmas: Tensor, noise: Noise | None
    ) -> Tensor:
        alpha = self._alpha(sigma, sigmas)
        for z in _draws(noise, x, self.steps):
            slope = score(denoise(x, sigma).mean, x, sigma)
            ratio = self._norm(z) / self._norm(slope)
            size = 2 * alpha * (self.snr * ratio) ** 2
            x = x + expand(size, x) * slope + expand((2 * size).sqrt(), x) * z
        return x

    def _alpha(self, sigma: Tensor, sigmas: Tensor) -> float:
        if self.process is None:
            return 1.0
        below = sigmas[sigmas < sigma].max() if (sigmas < sigma).any() else 0 * sigma
        return float(self.process.scale(sigma) / self.process.scale(below)) ** 2

    def _norm(self, x: Tensor) -> Tensor:
        norm = x.flatten(1).norm(dim=1)
        return norm.mean() if self.shared_norms else norm


@dataclass(frozen=True)
class AnnealedLangevin:
    """NCSN's annealed Langevin dynamics (Song and Ermon 2019, Algorithm 1), and a last denoising.

    At each level of the grid, from the first to the lowest, `steps` Langevin steps of size alpha /
    2, alpha = step_size * (sigma / lowest)^2, x being kept from level to level. The step to 0 is
    x + lowest^2 score, which is the mean D (Jolicoeur-Martineau et al. 2021; NCSNv2). Its error
    depends on step_size, not on the grid: order 0. Raises ValueError for numbers that are not above
    0 and, at the start, for a step_size at which the dynamics of pure noise diverge.
    """

    step_size: float = 2e-5
    steps: int = 100
    order: int = field(default=0, init=False, repr=False)
    invertible: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        positive("the size of a step", self.step_size)
        positive("the number of steps", self.steps)

    def evaluations(self, steps: int) -> int:
        """Return what so many steps to 0 cost: `steps` evaluations each, and the last mean."""
        return self.steps * steps + 1

    def start(self, x: Tensor, sigmas: Tensor) -> float:
        """Return the size of a step relative to the level's variance."""
        lowest = float(sigmas[sigmas > 0].min())
        relative = self.step_size / (2 * lowest**2)
        if relative >= 2:
            raise ValueError(
                f"annealed Langevin steps of {self.step_size:g} diverge on a grid down to sigma "
                f"{lowest:g}: take less than {4 * lowest**2:.3g}, or a higher lowest level"
            )
        return relative

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: float,
        noise: Noise | None,
    ) -> tuple[Tensor, float]:
        """Walk at sigma; the last level ends with its mean."""
        size = state * float(sigma) ** 2
        for z in _draws(noise, x, self.steps):
            slope = score(denoise(x, sigma).mean, x, sigma)
            x = x + size * slope + (2 * size) ** 0.5 * z
        return (x if sigma_next > 0 else denoise(x, sigma).mean), state


def _draws(noise: Noise | None, x: Tensor, steps: int) -> Iterator[Tensor]:
    """Yield the corrector's noise of one step of the solver, numbered without collisions."""
    given = needed(noise)
    for draw in range(steps):
        yield given.at(given.number * steps + draw).like(x, Purpose.CORRECTOR)
