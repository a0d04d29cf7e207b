"""The sampling loop: a generator of steps. Bars, previews and stopping are the caller's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from sfumato.denoiser import Counted
from sfumato.noise import F64, check_grid
from sfumato.protocols import Denoise, Denoiser, Solver, is_denoiser
from sfumato.randomness import Noise, Purpose

State = TypeVar("State")


@dataclass(slots=True)
class Step:
    """What one step of a solver did: x [B, *data] is now at sigma_next.

    `x0` is the mean of the step's last denoiser call; `evaluations` counts all calls so far.
    """

    index: int
    sigma: float
    sigma_next: float
    x: Tensor
    x0: Tensor
    evaluations: int


def sample(
    denoise: Denoise,
    solver: Solver[State],
    sigmas: Tensor | Sequence[float],
    x: Tensor,
    noise: Noise | None = None,
) -> Iterator[Step]:
    """Walk x [B, *data] from sigmas[0] along the grid, yielding every step.

    x is float32 or float64, in data units, at noise level sigmas[0] (see `start_from_prior`); noise
    may be None for deterministic solvers. Raises ValueError for a grid that is not strictly
    monotone, ascends though the solver cannot invert, or leaves the trained range, and
    FloatingPointError where x is no longer finite: after each step on a CPU, elsewhere only after
    the last one, for a check synchronises with the device.
    """
    grid = torch.as_tensor(sigmas, dtype=F64, device="cpu")
    check_grid(grid, may_ascend=solver.invertible)
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the state must be float32 or float64, not {x.dtype}")
    if is_denoiser(denoise):
        denoise.range.check(grid)
        denoise = denoise.on(grid)
    return _walk(Counted(denoise), solver, grid, x, noise)


def _walk(
    denoise: Counted, solver: Solver[State], grid: Tensor, x: Tensor, noise: Noise | None
) -> Iterator[Step]:
    state = solver.start(x, grid)
    levels, last = grid.tolist(), len(grid) - 2
    quiet = torch.no_grad()
    for index, (sigma, sigma_next) in enumerate(pairwise(grid.unbind())):
        here = None if noise is None else noise.at(index)
        with quiet:
            x, state = solver.step(denoise, x, sigma, sigma_next, state, here)
            if index == last or x.is_cpu:
                _check_finite(x, sigma, sigma_next)
        x0 = x if denoise.last is None else denoise.last
        yield Step(index, levels[index], levels[index + 1], x, x0, denoise.evaluations)


def _check_finite(x: Tensor, sigma: Tensor, sigma_next: Tensor) -> None:
    # A sum is a hundred times cheaper than isfinite, and finite only if every value is.
    if math.isfinite(float(x.sum())):
        return
    finite = x.isfinite().flatten(1).all(1) if x.ndim > 1 else x.isfinite()
    if not finite.all():
        images = (~finite).nonzero().flatten().tolist()
        listed = ", ".join(map(str, images[:5])) + (", ..." if images[5:] else "")
        raise FloatingPointError(
            f"x is not finite after the step from sigma {float(sigma):.6g} to "
            f"{float(sigma_next):.6g}, in {len(images)} of {len(x)} images ({listed}): the "
            f"network returned NaN or infinity there or earlier; either its training diverged (a "
            f"lower learning rate, or an earlier checkpoint), or try float32 in place of a lower "
            f"precision"
        )


def start_from_prior(
    denoise: Denoiser,
    sigma: Tensor | float,
    shape: Sequence[int],
    noise: Noise,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw x [B, *shape] at the first level of a grid, B the number of noise's seeds.

    At range.high this is the denoiser's prior; below, its excess over sigma^2 (1 for VP and DDPM, 0
    for VE and EDM) is kept.
    """
    return prior_std(denoise, float(sigma)) * noise.normal(shape, Purpose.START, dtype, device)


def prior_std(denoise: Denoiser, sigma: float) -> float:
    """Return the deviation of x at a level as the denoiser's prior has it."""
    excess = float(denoise.prior.var) - denoise.range.high**2
    return (sigma**2 + excess) ** 0.5


def generate(
    denoise: Denoiser,
    solver: Solver[State],
    sigmas: Tensor | Sequence[float],
    shape: Sequence[int],
    seeds: Sequence[int],
    *,
    batch: int = 64,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Yield finished images [<= batch, *shape], one for each seed, in order.

    The network always runs on `batch` images, the last batch being padded, so that image i is the
    same picture for any number of seeds. Raises ValueError for no seeds, or a batch below 1.
    """
    if not seeds:
        raise ValueError("there is nothing to sample: ask for at least one image")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    grid = torch.as_tensor(sigmas, dtype=F64, device="cpu")
    for first in range(0, len(seeds), batch):
        part = tuple(seeds[first : first + batch])
        noise = Noise(part + part[-1:] * (batch - len(part)))
        x = start_from_prior(denoise, grid[0], shape, noise, device=device)
        for step in sample(denoise, solver, grid, x, noise):
            x = step.x
        yield x[: len(part)]
