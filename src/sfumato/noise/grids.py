"""Grids that solvers walk: strictly decreasing sigmas that end with 0; sub-sequences of ladders.

`karras(18)` has 19 values, the last 0: N steps take N denoiser calls with Euler, 2N - 1 with Heun.
All raise ValueError for no step and for levels that are not 0 < low < high.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.noise.levels import F64, check_bounds, geometric_progression
from sfumato.noise.processes import VP, SubVP


def karras(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """Return EDM's grid of steps + 1 levels from high to low, then 0 (EDM eq. 5)."""
    _positive(steps)
    check_bounds(low, high)
    if not 0 < rho < math.inf:
        raise ValueError(f"the exponent rho must be above 0 and finite, not {rho}")
    ramp = torch.linspace(0, 1, steps, dtype=F64) if steps > 1 else torch.zeros(1, dtype=F64)
    top, bottom = high ** (1 / rho), low ** (1 / rho)
    return _to_zero((top + ramp * (bottom - top)) ** rho)


def geometric(steps: int, low: float = 0.02, high: float = 100.0) -> Tensor:
    """Return steps + 1 levels in geometric progression from high to low, then 0 (EDM's VE grid)."""
    _positive(steps)
    return _to_zero(geometric_progression(steps, low, high).flip(0))


ve = geometric


def vp(steps: int, process: VP | SubVP | None = None, epsilon: float = 1e-3) -> Tensor:
    """Return steps + 1 levels at uniform times from 1 to epsilon, then 0 (EDM Table 1, VP)."""
    _positive(steps)
    process = process or VP()
    if not 0 < epsilon < 1:
        raise ValueError(f"the last time epsilon must lie in (0, 1), not {epsilon}")
    t = torch.linspace(1, epsilon, steps, dtype=F64) if steps > 1 else torch.ones(1, dtype=F64)
    return _to_zero(process.sigma(t))


def iddpm(
    steps: int, first: int = 8, times: int = 1000, c1: float = 1e-3, c2: float = 8e-3
) -> Tensor:
    """Return steps + 1 levels of EDM's form of Improved DDPM (EDM Table 1, column iDDPM)."""
    _positive(steps)
    if not 0 <= first < times:
        raise ValueError(f"the first level must be one of 0..{times - 1}, not {first}")
    u = iddpm_levels(times, c1, c2)
    span = (times - 1 - first) / (steps - 1) if steps > 1 else 0.0
    index = torch.floor(first + span * torch.arange(steps, dtype=F64) + 0.5).long()
    return _to_zero(u[index])


def iddpm_levels(times: int = 1000, c1: float = 1e-3, c2: float = 8e-3) -> Tensor:
    """Return EDM's u_0 > u_1 > ... > u_{M-1} (EDM eq. 188-190 and Table 1), [M]."""
    j = torch.arange(times + 1, dtype=F64)
    abar = torch.sin(0.5 * math.pi * j / (times * (c2 + 1))) ** 2
    u = torch.zeros(times + 1, dtype=F64)
    for k in range(times, 0, -1):
        u[k - 1] = ((u[k] ** 2 + 1) / (abar[k - 1] / abar[k]).clamp(min=c1) - 1).sqrt()
    return u[:-1]


def uniform(total: int, count: int) -> list[int]:
    """Return `count` indices of 0..total-1, evenly spread, with both ends (Improved DDPM).

    A single index is the last one. Raises ValueError unless 1 <= count <= total.
    """
    _sub_sequence(total, count)
    if count == 1:
        return [total - 1]
    return [(2 * j * (total - 1) + count - 1) // (2 * (count - 1)) for j in range(count)]


def quadratic(total: int, count: int) -> list[int]:
    """Return `count` indices of 0..total-1, dense at low noise (DDIM app. D.2: c i^2)."""
    _sub_sequence(total, count)
    if count == 1:
        return [total - 1]
    out: list[int] = []
    for j in range(count):
        ideal = math.floor((total - 1) * (j / (count - 1)) ** 2)
        out.append(max(ideal, out[-1] + 1) if out else ideal)
    return out


def strided(total: int, count: int) -> list[int]:
    """Return 0, k, 2k, ..., k = total // count (DDIM's code; stops short of the last level)."""
    _sub_sequence(total, count)
    return list(range(0, total, total // count))[:count]


def check_grid(sigmas: Tensor, *, may_ascend: bool) -> None:
    """Raise ValueError unless the grid is finite, not negative and strictly monotone.

    Ascending grids pass only where `may_ascend`, and must start above 0.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(
            f"a grid is one-dimensional with at least two levels, not {[*sigmas.shape]}"
        )
    values = sigmas.tolist()  # numbers are checked faster than so short a tensor
    if values[0] < math.inf and all(a > b for a, b in pairwise(values)) and values[-1] >= 0:
        return
    if not (sigmas.isfinite().all() and (sigmas >= 0).all()):
        raise ValueError("a grid's sigmas must be finite and not negative")
    step = sigmas.diff()
    if not (step > 0).all():
        at = int((step * step[0].sign() <= 0).nonzero()[0])
        raise ValueError(
            f"a grid must be strictly monotone, but sigma[{at}] = {float(sigmas[at]):.6g} is "
            f"followed by {float(sigmas[at + 1]):.6g}; remove repeated levels"
        )
    if not may_ascend:
        raise ValueError("this solver cannot walk up the noise levels; give it a descending grid")
    if sigmas[0] == 0:
        raise ValueError("an ascending grid starts at the first trained level, not at 0")


def _to_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, torch.zeros(1, dtype=F64)])


def _positive(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, not {steps}")


def _sub_sequence(total: int, count: int) -> None:
    if not 1 <= count <= total:
        raise ValueError(f"a sub-sequence of {total} levels has 1 to {total} of them, not {count}")
