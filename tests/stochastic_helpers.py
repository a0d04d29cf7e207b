"""Exact moments and strong errors on Gaussian data, from a solver's answers to impulses of noise.

There every solver is linear in x and its noise, and the reverse SDE has a closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oracles import F64, GaussianOracle
from sfumato.protocols import Denoise, Solver
from sfumato.randomness import Noise, Purpose
from sfumato.sampling import sample

DATA = GaussianOracle.diagonal([0.05, 0.3, 1.0, 4.0])
HIGH, LOW = 5.0, 0.1


def log_grid(steps: int, high: float = HIGH, low: float = LOW) -> Tensor:
    return torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=F64)


def end(denoise: Denoise, solver: Solver[Any], grid: Tensor, x: Tensor, noise: Noise | None = None):
    for step in sample(denoise, solver, grid, x, noise):
        x = step.x
    return x


@dataclass(frozen=True)
class Impulses(Noise):
    """Noise that is 1 in row k + 1 of the batch at the k-th draw and 0 elsewhere.

    No draw may be made twice: two uses of one number would be correlated.
    """

    draws: list[tuple[Purpose, int]] = field(default_factory=list[tuple[Purpose, int]])
    stretches: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def like(self, x: Tensor, purpose: Purpose) -> Tensor:
        assert (purpose, self.number) not in self.draws
        self.draws.append((purpose, self.number))
        out = torch.zeros_like(x)
        if len(self.draws) < len(x):
            out[len(self.draws)] = 1
        return out

    def between(self, x: Tensor, purpose: Purpose, start: float, end: float) -> Tensor:
        self.stretches.append((start, end))
        return self.like(x, purpose)


@dataclass(frozen=True)
class Response:
    """x at the end of a grid is gain * x at its start + sum_k weights[k] * draw k."""

    gain: Tensor  # [D]
    weights: Tensor  # [draws, D]
    stretches: list[tuple[float, float]]  # of the solver's clock, one a draw where it names them

    def var(self, start: Tensor) -> Tensor:
        return self.gain**2 * start + (self.weights**2).sum(0)


def response(solver: Solver[Any], grid: Tensor, denoise: Denoise = DATA, size: int = 4) -> Response:
    """A solver's exact answer where D is linear (data of mean 0): one row of the batch a draw."""
    counting = Impulses((0,))
    end(denoise, solver, grid, torch.zeros(1, size, dtype=F64), counting)
    noise = Impulses((0,))
    x = torch.zeros(1 + len(counting.draws), size, dtype=F64)
    x[0] = 1
    out = end(denoise, solver, grid, x, noise)
    return Response(out[0], out[1:], noise.stretches)


def variance_error(solver: Solver[Any], grid: Tensor) -> float:
    """Largest error of the variance at the end, from the exact one at the start."""
    out = response(solver, grid).var(DATA.eigenvalues + grid[0] ** 2)
    return float((out - DATA.eigenvalues - grid[-1] ** 2).abs().max())


def exact_gain(heat: float, sigma: float, s: Tensor | float) -> Tensor:
    """By how much the SDE of this heat shrinks x from sigma to s: ((e + s^2) / (e + sigma^2))^p.

    p = (1 + heat) / 2, for dx = -(1 + heat) s^2 / (e + s^2) x d(lambda) has that solution.
    """
    e = DATA.eigenvalues
    return ((e + s**2) / (e + sigma**2)) ** ((1 + heat) / 2)


def strong_error(solver: Solver[Any], grid: Tensor, heat: float = 1.0) -> Tensor:
    """Root of E |x - exact x|^2 at the end for one Brownian path, [D], without sampling.

    On the clock u = sigma^(-2 heat) the exact x is gain x_start + int w(u) dW, w(u) = tau^(1+heat)
    times the gain from tau to the end, tau = u^(-1 / (2 heat)). The solver's is the same with a w
    that is constant between its levels, so the error is an integral of a known square.
    """
    answer = response(solver, grid)
    high, low = float(grid[0]), float(grid[-1])
    nodes, masses = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(12))
    square = (answer.gain - exact_gain(heat, high, low)) ** 2 * (DATA.eigenvalues + high**2)
    for weight, (start, stop) in zip(answer.weights, answer.stretches, strict=True):
        u = (start + stop) / 2 + (stop - start) / 2 * nodes[:, None]
        tau = u ** (-1 / (2 * heat))
        p = (1 + heat) / 2
        exact = tau ** (1 + heat) * ((DATA.eigenvalues + low**2) / (DATA.eigenvalues + tau**2)) ** p
        gap = (weight / math.sqrt(stop - start) - exact) ** 2
        square = square + (stop - start) / 2 * (masses[:, None] * gap).sum(0)
    return square.sqrt()
