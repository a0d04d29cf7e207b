"""Paths between latents, and DDPM's interpolated and shared ones (Ho et al. 2020, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from sfumato.diffusion import expand
from sfumato.latents.inversion import same_shape, walk_to_end
from sfumato.noise import F64
from sfumato.protocols import Denoise, Solver
from sfumato.randomness import Noise, Purpose

State = TypeVar("State")


def slerp(a: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    """Return the point a share `weight` ([] or [B]) of the way along the arc from a to b.

    a and b are [B, *data]; the arc is each example's own (DDIM eq. 67). Where they are parallel it
    is the straight line. Raises ValueError for different shapes, and for an example that is 0 or
    opposite to its partner, which has no arc.
    """
    same_shape(a, b)
    u, v = _direction(a), _direction(b)
    # Accurate for small angles, unlike the arc cosine of the inner product.
    angle = 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))
    if (angle > torch.pi - 1e-6).any():
        raise ValueError("two latents are opposite to each other: no arc between them is shortest")
    weight = torch.as_tensor(weight, dtype=F64, device=a.device).expand(len(a))
    straight = angle < 1e-6
    sine = torch.where(straight, torch.ones_like(angle), angle.sin())
    first = torch.where(straight, 1 - weight, ((1 - weight) * angle).sin() / sine)
    second = torch.where(straight, weight, (weight * angle).sin() / sine)
    return expand(first, a) * a + expand(second, a) * b


def interpolate(a: Tensor, b: Tensor, count: int) -> Tensor:
    """Return a strip [count, *data] of latents along the arc from a [*data] to b (DDIM Figure 6).

    Raises ValueError for fewer than two, and as `slerp` does.
    """
    same_shape(a, b)
    weights = _shares(count)
    return slerp(_repeated(a, count), _repeated(b, count), weights)


def interpolate_corners(
    corners: tuple[Tensor, Tensor, Tensor, Tensor], rows: int, columns: int
) -> Tensor:
    """Return a grid [rows, columns, *data] of latents between four, each [*data].

    The corners are top left, top right, bottom left, bottom right; columns are arcs between the
    points of the top and of the bottom row, themselves arcs. Raises ValueError as `interpolate`.
    """
    top_left, top_right, bottom_left, bottom_right = corners
    same_shape(top_left, bottom_left)
    top = interpolate(top_left, top_right, columns)
    bottom = interpolate(bottom_left, bottom_right, columns)
    return torch.stack([slerp(top, bottom, weight) for weight in _shares(rows)])


def interpolate_diffused(
    denoise: Denoise,
    solver: Solver[State],
    sigmas: Tensor | Sequence[float],
    a: Tensor,
    b: Tensor,
    weights: Sequence[float],
    noise: Noise,
) -> Tensor:
    """Return images [W, *data] between a and b, mixed at the level sigmas[0] (DDPM Figure 8).

    a and b [*data] are diffused with the same noise, mixed as (1 - weight) a + weight b, and
    sampled down the grid with the same draws for every weight: the higher the level, the less of a
    and b remains. (With noise of their own the mixture would have too little: DDPM's variance
    times (1 - w)^2 + w^2.) `noise` has one seed. Raises ValueError for more, or other shapes.
    """
    same_shape(a, b)
    noise = _one(noise, len(weights))
    share = expand(torch.as_tensor(weights, dtype=F64), _repeated(a, len(weights)))
    x0 = (1 - share) * a + share * b
    fresh = noise.like(x0, Purpose.START)
    return walk_to_end(denoise, solver, sigmas, x0 + float(sigmas[0]) * fresh, noise)


def share_latent(
    denoise: Denoise,
    solver: Solver[State],
    sigmas: Tensor | Sequence[float],
    x: Tensor,
    noise: Noise,
) -> Tensor:
    """Return completions [B, *data] of one x [*data] at sigmas[0], one for each seed (DDPM Fig. 7).

    The higher the level, the less they have in common. Raises ValueError for a solver that draws
    no noise: all completions would be one.
    """
    if solver.invertible:
        raise ValueError(
            f"{solver} draws no noise, so it completes a latent in one way only: use a stochastic "
            "solver such as Ancestral() or DDIM(1.0)"
        )
    return walk_to_end(denoise, solver, sigmas, _repeated(x, len(noise.seeds)), noise)


def _direction(x: Tensor) -> Tensor:
    flat = x.to(F64).flatten(1)
    norm = flat.norm(dim=1, keepdim=True)
    if not (norm > 0).all():
        raise ValueError("a latent is 0 everywhere: it has no direction to interpolate along")
    return flat / norm


def _shares(count: int) -> Tensor:
    if count < 2:
        raise ValueError(f"an interpolation has at least its two ends, not {count}")
    return torch.linspace(0, 1, count, dtype=F64)


def _repeated(x: Tensor, count: int) -> Tensor:
    return x.expand(count, *x.shape)


def _one(noise: Noise, count: int) -> Noise:
    if len(noise.seeds) != 1:
        raise ValueError(f"this takes noise of one seed, not of {len(noise.seeds)}")
    return replace(noise, seeds=noise.seeds * count)
