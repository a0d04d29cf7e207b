"""Weights of multistep methods: integrate the polynomial through past values, exactly.

The probability flow has two exact forms. With the slope d = (x - D) / sigma, the noise in x,

    x_s = x + int_sigma^s d(r) dr,

and with D itself, v = log(sigma / r) and h = log(sigma / s) (DPM-Solver++ eq. 8),

    x_s = (s / sigma) x + int_0^h exp(v - h) D(v) dv.

Each method puts a polynomial in some variable (r, log r, a process's time) through what it knows of
the integrand. One quadrature serves all: Gauss-Legendre of 32 nodes is exact to rounding here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.noise import F64

Array = NDArray[np.float64]
Clock = Callable[[Tensor], Tensor]

_roots, _masses = np.polynomial.legendre.leggauss(32)
NODES: Array = (_roots + 1) / 2
MASSES: Array = _masses / 2


@lru_cache(4096)
def linear_weights(sigmas: tuple[float, ...], sigma: float, s: float) -> tuple[float, ...]:
    """Return w with x_s = x + sum w[j] d_j, exact where d is a polynomial in sigma.

    d_j is the slope at sigmas[j]. Adams-Bashforth with variable steps (Hairer et al., III.5).
    """
    return _through(np.array(sigmas), sigma + NODES * (s - sigma), (s - sigma) * MASSES)


@lru_cache(4096)
def clocked_weights(
    sigmas: tuple[float, ...], sigma: float, s: float, clock: Clock
) -> tuple[float, ...]:
    """Return w with x_s = x + sum w[j] d_j, exact where d is a polynomial in clock(sigma), s > 0.

    DEIS eq. 15 (Zhang & Chen 2022), integrated over log sigma.
    """
    h = math.log(s / sigma)
    levels = sigma * np.exp(NODES * h)

    def times(at: Array) -> Array:
        return clock(torch.tensor(at, dtype=F64)).numpy()

    return _through(times(np.array(sigmas)), times(levels), h * levels * MASSES)


@lru_cache(4096)
def exponential_weights(sigmas: tuple[float, ...], sigma: float, s: float) -> tuple[float, ...]:
    """Return w with x_s = (s / sigma) x + sum w[j] D_j, for D a polynomial in log sigma, s > 0.

    D_j is the denoiser's mean at sigmas[j]. Exponential Adams (Hochbruck & Ostermann 2010, 2.5).
    """
    h = math.log(sigma / s)
    knots = np.log(sigma / np.array(sigmas))
    return _through(knots, NODES * h, h * np.exp((NODES - 1) * h) * MASSES)


def _through(knots: Array, nodes: Array, masses: Array) -> tuple[float, ...]:
    """Integrate each Lagrange polynomial of the knots by the quadrature (nodes, masses)."""
    out: list[float] = []
    for j, knot in enumerate(knots):
        others = np.delete(knots, j)
        basis = np.prod((nodes[:, None] - others) / (knot - others), axis=1)
        out.append(float(masses @ basis))
    return tuple(out)
