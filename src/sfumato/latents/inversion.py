"""Inversion: from images up to their latents by the probability flow, and down again.

DDIM's encoding and decoding (Song et al. 2021, section 5.4), and an inversion which the solver's
own steps down undo to a tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from sfumato.denoiser import Counted
from sfumato.diffusion import expand
from sfumato.noise import F64, check_grid
from sfumato.protocols import Denoise, Solver, is_denoiser
from sfumato.randomness import Noise
from sfumato.sampling import sample

State = TypeVar("State")

# The gain of an inversion's iteration below which nothing more is won: several halvings in a row.
STALLED = 0.02


def invert(
    denoise: Denoise, x: Tensor, solver: Solver[State], sigmas: Tensor | Sequence[float]
) -> Tensor:
    """Walk images [B, *data] up an ascending grid: their latents, x at sigmas[-1] (DDIM 5.4).

    x is taken for the state at sigmas[0], the first trained level: an image itself, whose missing
    noise is far below a pixel's step there. The solver's step up is explicit; down again it returns
    to x up to the solver's error. Raises ValueError for a solver that draws noise and for a grid
    that descends or starts at 0.
    """
    return walk_to_end(denoise, solver, _ascending(solver, sigmas), x)


@dataclass(frozen=True)
class Inversion:
    """Latents [B, *data] and how well each is inverted.

    `residual` [B] is, for the worst of its steps, the per-dimension RMSE by which the solver's step
    down misses, divided by sqrt(1 + sigma^2): in the units of DDPM's x_t.
    """

    latent: Tensor
    residual: Tensor
    evaluations: int


@torch.no_grad()
def invert_exactly(
    denoise: Denoise,
    x: Tensor,
    solver: Solver[None],
    sigmas: Tensor | Sequence[float],
    *,
    tolerance: float = 2e-6,
    iterations: int = 200,
) -> Inversion:
    """Invert as `invert` does, each step solved so that the solver's step *down* undoes it.

    A fixed-point iteration per step, from the explicit step: y + gain * (x - down(y)), the gain
    being the secant's (Barzilai and Borwein 1988), halved where it does not help. It stops, image
    by image, at the step's share of `tolerance` (of the whole way, per-dimension RMSE in the units
    of DDPM's x_t; not below the rounding of x's dtype), or after `iterations`: a coarse step
    need not have an inverse, see `Inversion.residual`. Works for one-step solvers (`Euler`,
    `DDIM(0)`, `Heun`). Raises ValueError as `invert` does and for a solver with a history, and
    FloatingPointError where x is no longer finite.
    """
    grid = _ascending(solver, sigmas)
    if solver.start(x, grid.flip(0)) is not None:
        raise ValueError(
            f"{solver} steps down by what it remembers from above, which is not yet known on the "
            "way up: use invert, or a one-step solver such as Heun()"
        )
    if is_denoiser(denoise):
        denoise.range.check(grid)
        denoise = denoise.on(grid.flip(0))
    counted = Counted(denoise)
    share = max(tolerance / (len(grid) - 1), torch.finfo(x.dtype).eps)
    worst = torch.zeros(len(x), dtype=F64, device=x.device)
    for low, high in pairwise(grid):
        x, residual = _undo(counted, x, solver, low, high, share, iterations)
        worst = torch.maximum(worst, residual)
    return Inversion(x, worst, counted.evaluations)


def _undo(
    denoise: Denoise,
    x: Tensor,
    solver: Solver[None],
    low: Tensor,
    high: Tensor,
    tolerance: float,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """Return y at high whose step down to low is x, and the residual [B]."""
    unit = float((1 + low**2).sqrt())
    steepest = float(high / low)  # 1 / the least slope of a step of the flow: that of pure noise
    gain = torch.full((len(x),), 2 / (1 + 1 / steepest), dtype=F64, device=x.device)
    least = torch.full_like(gain, torch.inf)
    y, _ = solver.step(denoise, x, low, high, None, None)
    best = best_miss = torch.zeros_like(y)
    for _ in range(iterations):
        down, _ = solver.step(denoise, y, high, low, None, None)
        miss, residual = x - down, rmse(x, down) / unit
        if not residual.isfinite().all():
            raise FloatingPointError(
                f"x is not finite on the way from sigma {float(low):.6g} up to {float(high):.6g}: "
                "the inversion diverges or the network returned NaN; take more steps"
            )
        nearer = residual < least
        secant = _inner(y - best, best_miss - miss) / _inner(best_miss - miss, best_miss - miss)
        secant = torch.where(least.isinf() | secant.isnan(), gain, secant)
        gain = torch.where(nearer, secant.clamp(STALLED, steepest), gain / 2)
        best = torch.where(expand(nearer, y) > 0, y, best)
        best_miss = torch.where(expand(nearer, y) > 0, miss, best_miss)
        least = torch.minimum(least, residual)
        wanting = (least > tolerance) & (gain >= STALLED)
        if not wanting.any():
            break
        y = best + expand(gain * wanting, y) * best_miss
    return best, least


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).to(F64).flatten(1).sum(1)


def reconstruct(
    denoise: Denoise, latent: Tensor, solver: Solver[State], sigmas: Tensor | Sequence[float]
) -> Tensor:
    """Walk latents [B, *data] at sigmas[0] down the grid, without noise: DDIM's decoding.

    Raises ValueError for a solver that draws noise.
    """
    _deterministic(solver)
    return walk_to_end(denoise, solver, sigmas, latent)


@dataclass(frozen=True)
class RoundTrip:
    """Images inverted and reconstructed, all [B, *data].

    `returned` is back at the first level, `error` [B] its per-dimension RMSE to the input in data
    units; `image` is `returned` after the step to 0, `image_error` [B] the same for it.
    """

    latent: Tensor
    returned: Tensor
    image: Tensor
    error: Tensor
    image_error: Tensor


def round_trip(
    denoise: Denoise,
    x: Tensor,
    latent: Tensor,
    solver: Solver[State],
    sigmas: Tensor | Sequence[float],
) -> RoundTrip:
    """Reconstruct the latents [B, *data] of x, inverted on this ascending grid, and compare.

    (RMSE on [-1, 1]; DDIM's Table 2 has the mean squared error on [0, 1], a quarter of the square.)
    """
    same_shape(x, latent)
    down = _ascending(solver, sigmas).flip(0)
    returned = reconstruct(denoise, latent, solver, down)
    with torch.no_grad():
        image = denoise(returned, down[-1]).mean
    return RoundTrip(latent, returned, image, rmse(x, returned), rmse(x, image))


def rmse(a: Tensor, b: Tensor) -> Tensor:
    """Return the per-dimension root mean squared difference of each image, [B], float64."""
    return (a - b).to(F64).square().flatten(1).mean(1).sqrt()


def same_shape(a: Tensor, b: Tensor) -> None:
    """Raise ValueError where two images or latents differ in shape."""
    if a.shape != b.shape:
        raise ValueError(
            f"these have different shapes, {[*a.shape]} and {[*b.shape]}: give two of one shape, "
            "that of the network's images"
        )


def walk_to_end(
    denoise: Denoise,
    solver: Solver[State],
    sigmas: Tensor | Sequence[float],
    x: Tensor,
    noise: Noise | None = None,
) -> Tensor:
    """Return x at the end of the grid."""
    for step in sample(denoise, solver, sigmas, x, noise):
        x = step.x
    return x


def _ascending(solver: Solver[State], sigmas: Tensor | Sequence[float]) -> Tensor:
    _deterministic(solver)
    grid = torch.as_tensor(sigmas, dtype=F64, device="cpu")
    if len(grid) and grid[0] == 0:
        raise ValueError(
            "the grid starts at 0, where the flow's direction (x - D) / sigma is 0 / 0: start at "
            "the first trained level, as if the image had that little noise"
        )
    check_grid(grid, may_ascend=True)
    if grid[0] > grid[-1]:
        raise ValueError(
            "inversion walks up: give the grid from its lowest level above 0 to its highest, as "
            "levels.ascending() or karras(18)[:-1].flip(0)"
        )
    return grid


def _deterministic(solver: Solver[State]) -> None:
    if not solver.invertible:
        raise ValueError(
            f"{solver} cannot be inverted, since it draws fresh noise on the way: use a "
            "deterministic solver, such as DDIM(0) or Heun()"
        )
