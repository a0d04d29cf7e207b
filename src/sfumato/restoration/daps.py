"""DAPS: at each level a whole image is drawn, brought to the measurement, and made noisy again."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sfumato.gaussian import Gaussian
from sfumato.noise import NoiseRange, karras
from sfumato.protocols import Denoise, Solver
from sfumato.randomness import Noise, Purpose
from sfumato.restoration.operators import solve
from sfumato.restoration.posterior import (
    DATA_STD,
    Measured,
    MomentMatching,
    linearised,
    spread,
)
from sfumato.solvers.support import needed, trained

State = TypeVar("State")

_FAR = 2**50


@dataclass(frozen=True, eq=False)
class _Told:
    """A denoiser that was asked about one x already."""

    inner: Denoise
    x: Tensor
    answer: Gaussian

    @property
    def range(self) -> NoiseRange | None:
        """As the inner denoiser's, where it tells one."""
        limits = getattr(self.inner, "range", None)
        return limits if isinstance(limits, NoiseRange) else None

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        return self.answer if x is self.x else self.inner(x, sigma)


@dataclass(frozen=True, eq=False)
class DAPS(Generic[State]):
    """Decoupled annealing (Zhang et al. 2024, Algorithm 1): x0 | x is drawn, then x0 | x, y.

    Then x_s | x0, so that no error is carried along. The first by `inner`, a solver that walks
    `steps` levels down from sigma; the second exactly, for a Gaussian around what was drawn (in
    place of the paper's Langevin steps). With `moments` its covariance is the network's own at x,
    and `inner` should draw (DDIM(1), Ancestral): then all is exact for Gaussian data as the steps
    grow. Without, it is r^2, r being sigma and the data's deviation together, and `inner` is the
    probability flow's. The denoiser it walks with is the model's, not a `Restored` one. Raises
    ValueError for less than one step.
    """

    measured: Measured
    inner: Solver[State]
    steps: int = 4
    moments: MomentMatching | None = None
    data_std: float = DATA_STD
    order: int = field(default=1, init=False, repr=False)
    invertible: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"DAPS walks down in one step at least, not {self.steps}")

    def start(self, x: Tensor, sigmas: Tensor) -> Tensor:
        """Keep the lowest level that was asked for."""
        return sigmas[sigmas > 0].min()

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: Tensor,
        noise: Noise | None,
    ) -> tuple[Tensor, Tensor]:
        """Draw, correct, and make noisy again."""
        noise = needed(noise)
        pull = None
        if self.moments is not None:
            here, pull = linearised(denoise, x, sigma)
            denoise = _Told(denoise, x, here)
        x0 = self._down(denoise, x, sigma, state, noise)
        far = noise.at(_FAR + noise.number)
        z = far.normal(tuple(self.measured.y.shape[1:]), Purpose.MEASUREMENT, x.dtype, x.device)
        if self.moments is not None and pull is not None:
            wrong = self.measured.rest(x0) + max(self.measured.std, self.moments.least) * z
            x0 = x0 + self.moments.step(pull, self.measured, sigma, wrong)
        else:
            gain = spread(sigma, x, self.data_std)
            x0 = x0 + float(gain) ** 0.5 * far.like(x, Purpose.CORRECTOR)
            rest = self.measured.rest(x0) + self.measured.std * z
            floor = torch.tensor(self.measured.std**2).to(x)
            x0 = x0 + gain * self.measured.operator.adjoint(
                solve(self.measured.operator, rest, gain, floor)
            )
        return x0 + float(sigma_next) * noise.like(x, Purpose.TRANSITION), state

    def _down(
        self, denoise: Denoise, x: Tensor, sigma: Tensor, lowest: Tensor, noise: Noise
    ) -> Tensor:
        """Walk from sigma to 0."""
        low, high = float(lowest), float(sigma)
        if low < high and self.steps > 1:
            grid = karras(self.steps, low, high)
            limits = getattr(denoise, "range", None)
            if isinstance(limits, NoiseRange) and limits.levels is not None:
                grid = torch.cat([trained(denoise, grid[:-1]).unique().flip(0), grid[-1:]])
            grid[0] = sigma
        else:
            grid = torch.stack([sigma, torch.zeros_like(sigma)])
        state = self.inner.start(x, grid)
        for number, (here, there) in enumerate(pairwise(grid.unbind())):
            at = noise.at(2 * _FAR + noise.number * 2**12 + number)
            x, state = self.inner.step(denoise, x, here, there, state, at)
        return x
