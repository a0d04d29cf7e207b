"""Runge-Kutta solvers of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.diffusion import expand
from sfumato.noise import F64
from sfumato.protocols import Denoise
from sfumato.randomness import Noise
from sfumato.solvers.coordinates import IDENTITY, Coordinates
from sfumato.solvers.tableau import EULER, Tableau, two_stage


@dataclass(frozen=True)
class Euler:
    """Euler's method: order 1, one evaluation a step. It is DDIM with eta = 0 (DDIM eq. 13)."""

    order: int = field(default=1, init=False, repr=False)
    invertible: bool = field(default=True, init=False, repr=False)
    stages: ClassVar[int] = 1

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
        """Walk along the slope at sigma."""
        keep = float(sigma_next) / float(sigma)
        return combine((keep, 1 - keep), (x, denoise(x, sigma).mean)), None


@dataclass(frozen=True)
class Heun:
    """The two-stage family of EDM Algorithm 3: order 2, 2 N - 1 evaluations for N steps to 0.

    alpha = 1 is Heun's method (EDM Algorithm 1), 1/2 the midpoint method, 2/3 Ralston's. The
    step to sigma = 0 is Euler's. Raises ValueError unless 0 < alpha <= 1.
    """

    alpha: float = 1.0
    order: int = field(default=2, init=False, repr=False)
    invertible: bool = field(default=True, init=False, repr=False)
    stages: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"Heun's alpha lies in (0, 1], not {self.alpha}")

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
        """Walk along a mean of the slopes at sigma and at sigma + alpha (sigma_next - sigma)."""
        return explicit_step(two_stage(self.alpha), denoise, x, sigma, sigma_next), None


@dataclass(frozen=True)
class RungeKutta:
    """Any explicit Runge-Kutta method, in any coordinates (EDM eq. 81 and Table 1).

    `tableau` is one of `sfumato.solvers.tableau` or your own; N steps to 0 take
    stages * (N - 1) + 1 evaluations, for the step to sigma = 0 is Euler's (EDM Algorithm 1). In the
    identity coordinates that step returns D(x, sigma); in others it is a step of Euler's in t.
    """

    tableau: Tableau
    coordinates: Coordinates = IDENTITY
    invertible: bool = field(default=True, init=False, repr=False)

    @property
    def order(self) -> int:
        """The tableau's."""
        return self.tableau.order

    @property
    def stages(self) -> int:
        """Evaluations a step."""
        return self.tableau.stages

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
        """Walk along the tableau's mean of slopes."""
        moved = explicit_step(self.tableau, denoise, x, sigma, sigma_next, self.coordinates)
        return moved, None


def explicit_step(
    tableau: Tableau,
    denoise: Denoise,
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    coordinates: Coordinates = IDENTITY,
    first: Tensor | None = None,
) -> Tensor:
    """Walk x [B, *data] from sigma to sigma_next by one step of a tableau, to 0 by Euler's.

    `first` is the slope dx'/dt at sigma where it is known already.
    """
    if sigma_next == 0:
        tableau = EULER
    if coordinates == IDENTITY and first is None:
        return _in_means(tableau, denoise, x, sigma, sigma_next)
    t, t_next = coordinates.time(float(sigma)), coordinates.time(float(sigma_next))
    step = t_next - t
    start, end = coordinates.scale(t), coordinates.scale(t_next)
    scaled = x if start == 1 else start * x
    slopes = [_slope(denoise, scaled, t, sigma, coordinates) if first is None else first]
    for row, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
        if c == 1:
            at, level = t_next, sigma_next
        else:
            at = t + c * step
            level = torch.tensor(coordinates.sigma(at), dtype=F64)
        moved = combine([step * weight for weight in row], slopes, scaled)
        slopes.append(_slope(denoise, moved, at, level, coordinates))
    moved = combine([step * weight for weight in tableau.b], slopes, scaled)
    return moved if end == 1 else moved / end


def _in_means(
    tableau: Tableau, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor
) -> Tensor:
    """The same step as sums of x and the stages' D, which passes over fewer tensors."""
    s = float(sigma_next)
    levels, rows = stage_weights(tableau, float(sigma), s)
    seen = [x, denoise(x, sigma).mean]
    if s == 0:
        return seen[1]
    moved = x
    for known, (level, row) in enumerate(zip((*levels, s), rows, strict=True)):
        if known and abs(row[0] - rows[known - 1][0]) < 1e-15:
            # The same share of x: what has changed is a sum of D alone.
            before = (*rows[known - 1][1:], 0.0)
            weights = [new - old for new, old in zip(row[1:], before, strict=True)]
            moved = combine(weights, seen[1:], moved)
        else:
            moved = combine(row, seen)
        if known < len(levels):
            at = sigma_next if level == s else torch.tensor(level, dtype=F64)
            seen.append(denoise(moved, at).mean)
    return moved


@lru_cache(4096)
def stage_weights(
    tableau: Tableau, sigma: float, s: float
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Return the levels of a step's later stages, and the weights of x, D_0, D_1, ... in each.

    The last row is the step's end. A slope is (x_i - D_i) / sigma_i, so every state is a sum of
    these, x always weighing sigma_i / sigma.
    """
    step = s - sigma
    levels = [s if c == 1 else sigma + c * step for c in tableau.c[1:]]
    unit = np.eye(tableau.stages + 1)
    slopes = [(unit[0] - unit[1]) / sigma]
    rows: list[tuple[float, ...]] = []
    for count, (row, level) in enumerate(zip(tableau.a[1:], levels, strict=True), 2):
        state = unit[0] + step * sum(w * d for w, d in zip(row, slopes, strict=True))
        rows.append(tuple(state[:count].tolist()))
        slopes.append((state - unit[count]) / level)
    end = unit[0] + step * sum(w * d for w, d in zip(tableau.b, slopes, strict=True))
    return tuple(levels), (*rows, tuple(end.tolist()))


def slope(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
    """Return dx/dsigma = (x - D(x, sigma)) / sigma, the noise in x: [B, *data]; sigma [] or [B]."""
    noise = x - denoise(x, sigma).mean
    return noise.div_(expand(sigma, x) if sigma.ndim else float(sigma))


def combine(
    weights: Sequence[float], values: Sequence[Tensor], base: Tensor | None = None
) -> Tensor:
    """Return base + the sum of weights[i] values[i]; weights are numbers on the host.

    One tensor is made and added to in place: of what a step costs beyond the network, passing over
    memory is the most. A mean of two values takes one pass.
    """
    if base is None and len(weights) == 2 and abs(weights[0] + weights[1] - 1) < 1e-14:
        (a, b), (x, y) = weights, values
        if x.dtype == y.dtype:  # the smaller weight keeps its digits: lerp takes 1 - w in float32
            return torch.lerp(x, y, b) if abs(b) <= abs(a) else torch.lerp(y, x, a)
    out: Tensor | None = None
    for weight, value in zip(weights, values, strict=True):
        if weight == 0:
            continue
        if out is not None:
            out = out.add_(value, alpha=weight)
        else:
            out = weight * value if base is None else torch.add(base, value, alpha=weight)
    if out is None:
        out = torch.zeros_like(values[0]) if base is None else base
    return out


def _slope(
    denoise: Denoise, scaled: Tensor, t: float, sigma: Tensor, coordinates: Coordinates
) -> Tensor:
    """dx'/dt. In this form, unlike EDM's eq. 81, x - D is taken before it is divided by sigma."""
    scale, scale_rate = coordinates.scale(t), coordinates.scale_rate(t)
    x = scaled if scale == 1 else scaled / scale
    rate = coordinates.sigma_rate(t) * scale
    out = slope(denoise, x, sigma)
    out = out if rate == 1 else rate * out
    return out if scale_rate == 0 else torch.add(out, x, alpha=scale_rate)
