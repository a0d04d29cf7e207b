"""Adaptive steps: Dormand-Prince 5(4), the "RK45" of Score-SDE's probability-flow sampler."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.diffusion import expand
from sfumato.noise import F64
from sfumato.protocols import Denoise
from sfumato.randomness import Noise
from sfumato.solvers.runge_kutta import combine, slope
from sfumato.solvers.tableau import DORMAND_PRINCE

# The PI controller of Hairer's DOPRI5 (Hairer et al., IV.2): safety, exponents, bounds of change.
SAFETY, NOW, BEFORE, SHRINK, GROW = 0.9, 0.2 - 0.75 * 0.04, 0.04, 0.2, 5.0


@dataclass(frozen=True)
class Walked:
    """State of `Adaptive`: where it stopped, the slope there, and its step control, image by image.

    `size` [B] is the next step's length in sigma, `error` [B] the last accepted step's error.
    """

    x: Tensor
    slope: Tensor
    size: Tensor
    error: Tensor


@dataclass(frozen=True)
class Adaptive:
    """Dormand-Prince 5(4) with steps of its own between the levels of the grid (Score-SDE app. D).

    Steps are controlled image by image: each has its own levels and sizes, so a picture does not
    depend on the others of its batch; an image that has arrived waits for the slowest. The error
    of a step is held below atol + rtol max(|x|, |x_next|) in root mean square. Each attempt takes 6
    evaluations of the batch. A grid of [high, low, 0] is all it needs: the step to 0 is
    Euler's. A network on a ladder must interpolate. Raises ValueError for tolerances that are not
    above 0, RuntimeError after `max_steps` attempts between two levels.
    """

    rtol: float = 1e-4
    atol: float = 1e-4
    max_steps: int = 1000
    order: int = field(default=5, init=False, repr=False)
    invertible: bool = field(default=True, init=False, repr=False)
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0 and self.max_steps >= 1):
            raise ValueError(
                "adaptive steps need rtol > 0, atol > 0 and max_steps >= 1, not "
                f"{self.rtol}, {self.atol} and {self.max_steps}"
            )

    def start(self, x: Tensor, sigmas: Tensor) -> Walked | None:
        """Return no state: the first slope tells the first step's size."""
        return None

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: Walked | None,
        noise: Noise | None,
    ) -> tuple[Tensor, Walked | None]:
        """Walk each image to sigma_next by as many steps as it needs."""
        if sigma_next == 0:
            return denoise(x, sigma).mean, None
        # The last slope is this one unless somebody moved x in between.
        here = state if state is not None and state.x is x else self._begin(denoise, x, sigma)
        at = sigma.expand(len(x)).clone()
        last_rejected = torch.zeros(len(x), dtype=torch.bool)
        for _ in range(self.max_steps):
            left = sigma_next - at
            lands = here.size >= left.abs()
            h = torch.where(lands, left, here.size.copysign(left))
            goal = torch.where(lands, sigma_next, at + h)
            tried, at_end, error = self._attempt(denoise, here, at, goal)
            accept = (error <= 1) | (left == 0)
            growth = SAFETY * error**-NOW * here.error**BEFORE
            growth = torch.where(
                accept, growth.clamp(SHRINK, GROW), (SAFETY * error**-0.2).clamp(SHRINK, 1)
            )
            growth = torch.where(last_rejected, growth.clamp(max=1), growth)
            size = h.abs() * growth
            size = torch.where(accept & lands, torch.maximum(size, here.size), size)
            moves = expand(accept, x).bool()
            here = Walked(
                torch.where(moves, tried, here.x),
                torch.where(moves, at_end, here.slope),
                torch.where(left == 0, here.size, size),
                torch.where(accept & (left != 0), error.clamp(min=1e-4), here.error),
            )
            at = torch.where(accept, goal, at)
            last_rejected = ~accept
            if bool((at == sigma_next).all()):
                return here.x, here
        late = (at != sigma_next).nonzero().flatten().tolist()
        raise RuntimeError(
            f"{self.max_steps} adaptive steps did not lead images {late} of the batch from sigma "
            f"{float(sigma):.6g} to {float(sigma_next):.6g} (at {float(at[late[0]]):.6g}): loosen "
            f"rtol and atol (float32 seldom allows less than 1e-6) or raise max_steps"
        )

    def _begin(self, denoise: Denoise, x: Tensor, sigma: Tensor) -> Walked:
        """Take the first slope and guess a step: a tenth of what x needs to change by itself."""
        here = slope(denoise, x, sigma)
        ratio = _norm(x, self.atol + self.rtol * x.abs()) / _norm(
            here, self.atol + self.rtol * x.abs()
        )
        size = (0.1 * ratio).nan_to_num(posinf=float(sigma)).clamp(max=float(sigma))
        size = torch.where(size > 0, size, 1e-3 * sigma)
        return Walked(x, here, size, torch.full_like(size, 1e-4))

    def _attempt(
        self, denoise: Denoise, here: Walked, at: Tensor, goal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return x at the end of the step, the slope there, and the error [B] in tolerances."""
        x, slopes, step = here.x, [here.slope], expand(goal - at, here.x)
        for row, c in zip(DORMAND_PRINCE.a[1:], DORMAND_PRINCE.c[1:], strict=True):
            level = goal if c == 1 else at + c * (goal - at)
            slopes.append(slope(denoise, x + step * combine(row, slopes), level))
        end = x + step * combine(DORMAND_PRINCE.b, slopes)
        slopes.append(slope(denoise, end, goal))
        tolerance = self.atol + self.rtol * torch.maximum(x.abs(), end.abs())
        error = _norm(step * combine(DORMAND_PRINCE.error, slopes), tolerance)
        if not bool(error.isfinite().all()):
            bad = int((~error.isfinite()).nonzero()[0])
            raise FloatingPointError(
                f"the slope of image {bad} of the batch is not finite between sigma "
                f"{float(at[bad]):.6g} and {float(goal[bad]):.6g}: the network returned NaN or "
                "infinity there"
            )
        return end, slopes[-1], error.clamp(min=1e-10)


def _norm(values: Tensor, tolerance: Tensor) -> Tensor:
    """Root mean square of values / tolerance, image by image: [B], float64, on the host."""
    return (values / tolerance).flatten(1).square().mean(1).sqrt().to("cpu", F64)
