"""Exact log-densities by the probability flow (Score-SDE section 4.3; Chen et al. 2018).

Along dx/dsigma = (x - D) / sigma the log density falls at the rate of the divergence
(d - tr dD/dx) / sigma. That rate is itself of the form (l - D_l) / sigma, D_l = l - d + tr dD/dx,
so that x with l appended is walked by the same solvers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from sfumato.gaussian import Gaussian, per_example
from sfumato.likelihood.elbo import refuse_clipped
from sfumato.noise import F64, check_grid
from sfumato.protocols import Denoise, Denoiser, Solver
from sfumato.randomness import Noise, Purpose
from sfumato.sampling import sample

State = TypeVar("State")


class Trace(Protocol):
    """A way to take the trace of dD/dx."""

    def probes(self, x0: Tensor, noise: Noise | None) -> Tensor:
        """Return vectors v [P, B, *data]; the trace is the sum or mean of v . (dD/dx) v."""
        ...

    def combine(self, products: Tensor) -> Tensor:
        """Return the trace [B, E] from [P, B]; E estimates where there are several."""
        ...


@dataclass(frozen=True)
class Exact:
    """The exact trace, by as many backward passes as an image has values: for small data."""

    def probes(self, x0: Tensor, noise: Noise | None) -> Tensor:
        """Return the unit vectors, [D, B, *data]."""
        size = x0[0].numel()
        unit = torch.eye(size, dtype=F64, device=x0.device).reshape(size, 1, *x0.shape[1:])
        return unit.expand(size, *x0.shape)

    def combine(self, products: Tensor) -> Tensor:
        """Return their sum, [B, 1]."""
        return products.sum(0)[:, None]


@dataclass(frozen=True)
class Hutchinson:
    """An unbiased estimate from `count` random vectors, the same along the whole way (eq. 40).

    Of +-1 (Rademacher), whose variance is the least, or of standard normal numbers. Raises
    ValueError for less than one.
    """

    count: int = 1
    gaussian: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"the trace needs at least one random vector, not {self.count}")

    def probes(self, x0: Tensor, noise: Noise | None) -> Tensor:
        """Draw the vectors, [count, B, *data]; raises ValueError without noise."""
        if noise is None:
            raise ValueError("this trace draws random vectors: pass noise=noise_for(seed, count)")
        shape = tuple(x0.shape[1:])
        drawn = [noise.at(i).normal(shape, Purpose.TRACE, F64) for i in range(self.count)]
        vectors = torch.stack(drawn).to(x0.device)
        return vectors if self.gaussian else torch.where(vectors < 0, -1.0, 1.0).to(F64)

    def combine(self, products: Tensor) -> Tensor:
        """Return each vector's estimate, [B, count]."""
        return products.T


@dataclass(frozen=True, eq=False)
class FlowLogProb:
    """Log densities [B] in nats, and where the flow ends.

    `error` [B] is the standard error from the random vectors, NaN for one vector, 0 for an exact
    trace. `latent` [B, *data] is x at the highest level.
    """

    log_prob: Tensor
    error: Tensor
    latent: Tensor
    evaluations: int


@torch.no_grad()
def flow_log_prob(
    denoise: Denoiser,
    x0: Tensor,
    solver: Solver[State],
    sigmas: Tensor | Sequence[float],
    *,
    trace: Trace | None = None,
    noise: Noise | None = None,
    prior: Gaussian | None = None,
) -> FlowLogProb:
    """Return log p of x0 [B, *data] at the grid's lowest level, as a density in data units.

    `sigmas` ascends, from the level the density is smoothed by (samplers' grids are turned round
    and lose their 0); for an `Adaptive` solver its ends are enough. `trace` is `Hutchinson(1)`
    unless given; `prior` the denoiser's. x is never rescaled, so no change of variables enters.
    Raises ValueError for a clipped denoiser, a solver that draws noise, and a grid outside the
    trained range.
    """
    refuse_clipped(denoise)
    trace = trace or Hutchinson()
    grid = torch.as_tensor(sigmas, dtype=F64, device="cpu")
    check_grid(grid if grid[0] > 0 else grid[1:], may_ascend=True)
    if grid[0] > grid[-1]:
        grid = grid.flip(0)
    grid = grid[grid > 0]
    if len(grid) < 2:
        raise ValueError("the flow needs at least two levels above 0 to walk between")
    denoise.range.check(grid)
    if not solver.invertible:
        raise ValueError(f"{solver} draws noise on the way: use a deterministic solver")
    x0 = x0.to(F64)
    carried = _Carried(denoise.on(grid), trace, trace.probes(x0, noise), x0.shape)
    y = torch.cat([x0.flatten(1), x0.new_zeros(len(x0), carried.estimates)], 1)
    for step in sample(carried, solver, grid, y):
        y = step.x
    latent = y[:, : carried.size].reshape(x0.shape)
    expansion = y[:, carried.size :]
    density = prior or denoise.prior
    top = Gaussian(density.mean.to(latent), density.var.to(latent)).log_prob(latent)
    each = per_example(top)[:, None] + expansion
    count = each.shape[1]
    error = each.std(1) / math.sqrt(count) if count > 1 else torch.full_like(each[:, 0], math.nan)
    if isinstance(trace, Exact):
        error = torch.zeros_like(error)
    return FlowLogProb(each.mean(1).cpu(), error.cpu(), latent.cpu(), carried.evaluations)


class _Carried:
    """A denoiser of x [B, *data] with its expansion appended, flattened to [B, D + E]."""

    def __init__(self, denoise: Denoise, trace: Trace, probes: Tensor, shape: torch.Size) -> None:
        self.inner, self.trace, self.probes, self.shape = denoise, trace, probes, shape
        self.size = math.prod(shape[1:])
        self.estimates = trace.combine(probes.flatten(2).sum(2)).shape[1]
        self.evaluations = 0

    def __call__(self, y: Tensor, sigma: Tensor) -> Gaussian:
        x = y[:, : self.size].reshape(self.shape)
        self.evaluations += 1
        products: list[Tensor] = []
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            mean = self.inner(x, sigma).mean
            for number, probe in enumerate(self.probes):
                last = number == len(self.probes) - 1
                (pulled,) = torch.autograd.grad(mean, x, probe, retain_graph=not last)
                products.append((pulled * probe).flatten(1).sum(1))
        tr = self.trace.combine(torch.stack(products))
        expansion = y[:, self.size :]
        return Gaussian(
            torch.cat([mean.detach().flatten(1), expansion - self.size + tr], 1), y.new_zeros(())
        )


def dequantise(x0: Tensor, noise: Noise, half_bin: float) -> Tensor:
    """Return pixels x0 [B, *data] with uniform noise over each one's bin, float64.

    log P(pixels) is at least the mean log density plus D log(2 half_bin) (Theis et al. 2016).
    """
    drawn = noise.normal(tuple(x0.shape[1:]), Purpose.DEQUANTISE, F64, x0.device)
    return x0.to(F64) + half_bin * (2 * torch.special.ndtr(drawn) - 1)


def discrete_nats(log_prob: Tensor, dimensions: int, half_bin: float) -> Tensor:
    """Return -log P of the pixels, at most in the mean, from log densities of dequantised ones."""
    return -(log_prob + dimensions * math.log(2 * half_bin))
