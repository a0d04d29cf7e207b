"""Data whose denoiser, flow, density and entropy are known exactly: the library's ground truth.

All float64. Each oracle is a `Denoise`: called with (x, sigma) it returns the exact mean and
variance of x0 given x = x0 + sigma * noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.gaussian import Gaussian

F64 = torch.float64


def column(sigma: Tensor | float) -> Tensor:
    """[] -> [1, 1] and [B] -> [B, 1], to broadcast against flattened data [B, D]."""
    return torch.as_tensor(sigma, dtype=F64).reshape(-1, 1)


@dataclass(frozen=True, eq=False)
class GaussianOracle:
    """x0 ~ N(mean, basis diag(eigenvalues) basis^T), of `shape`, D numbers an example."""

    mean: Tensor  # [D]
    eigenvalues: Tensor  # [D]
    basis: Tensor  # [D, D], orthogonal, columns are eigenvectors
    shape: tuple[int, ...]

    @classmethod
    def diagonal(
        cls, var: Sequence[float], mean: float = 0.0, shape: tuple[int, ...] | None = None
    ) -> GaussianOracle:
        size = len(var)
        eigenvalues = torch.tensor(var, dtype=F64)
        return cls(
            torch.full((size,), mean, dtype=F64),
            eigenvalues,
            torch.eye(size, dtype=F64),
            shape or (size,),
        )

    @classmethod
    def full(cls, mean: Tensor, covariance: Tensor) -> GaussianOracle:
        eigenvalues, basis = torch.linalg.eigh(covariance)
        return cls(mean, eigenvalues, basis, tuple(mean.shape))

    @property
    def covariance(self) -> Tensor:
        return self.basis * self.eigenvalues @ self.basis.T

    def posterior_covariance(self, sigma: Tensor | float) -> Tensor:
        """Covariance of x0 given x at sigma: (C^-1 + I / sigma^2)^-1, [D, D]."""
        spread = 1 / (1 / self.eigenvalues + 1 / torch.as_tensor(sigma, dtype=F64) ** 2)
        return self.basis * spread @ self.basis.T

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        v = column(sigma) ** 2
        gain = self.eigenvalues / (self.eigenvalues + v)
        mean = self._map(x, gain)
        var = (gain * v) @ (self.basis**2).T
        return Gaussian(mean, var.reshape(-1, *self.shape).to(x.dtype))

    def flow(self, x: Tensor, sigma: Tensor | float, s: Tensor | float) -> Tensor:
        """Where the probability flow takes x from sigma to s: c_k ~ sqrt(eigenvalue_k + s^2)."""
        up, down = self.eigenvalues + column(sigma) ** 2, self.eigenvalues + column(s) ** 2
        return self._map(x, (down / up).sqrt())

    def entropy(self) -> float:
        """Nats of the whole vector."""
        return float(0.5 * (2 * math.pi * math.e * self.eigenvalues).log().sum())

    def _map(self, x: Tensor, gain: Tensor) -> Tensor:
        centred = x.reshape(len(x), -1).to(F64) - self.mean.reshape(-1)
        out = self.mean.reshape(-1) + (centred @ self.basis * gain) @ self.basis.T
        return out.reshape(x.shape).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Mixture:
    """sum_k weight_k N(centre_k, width^2) in one dimension, applied to every element of x.

    `x` [B, *data]; sigma [] or [B].
    """

    weights: tuple[float, ...] = (0.3, 0.5, 0.2)
    centres: tuple[float, ...] = (-1.5, 0.2, 2.0)
    width: float = 0.3

    def pdf(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self._log_parts(x, sigma).logsumexp(-1).exp()

    def cdf(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        v = self._total_var(x, sigma)
        w = torch.tensor(self.weights, dtype=F64)
        return (w * torch.special.ndtr(self._offsets(x) / v.sqrt())).sum(-1)

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Derivative of log pdf."""
        parts = self._log_parts(x, sigma).softmax(-1)
        return -(parts * self._offsets(x)).sum(-1) / self._total_var(x, sigma)[..., 0]

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        noise_var = torch.as_tensor(sigma, dtype=F64) ** 2
        noise_var = noise_var.reshape(-1, *[1] * (x.ndim)) if noise_var.ndim else noise_var
        total = self.width**2 + noise_var
        parts = self._log_parts(x, sigma).softmax(-1)
        means = (self.width**2 * x.to(F64)[..., None] + noise_var * self._centres()) / total
        within = self.width**2 * noise_var / total
        mean = (parts * means).sum(-1)
        var = (parts * (within + (means - mean[..., None]) ** 2)).sum(-1)
        return Gaussian(mean.to(x.dtype), var.to(x.dtype))

    def flow(self, x: Tensor, sigma: float, s: float) -> Tensor:
        """Quantile map: the y with cdf(y, s) = cdf(x, sigma), by bisection to the last bit.

        Works in the tail that is the smaller one, so quantiles near 1 keep their digits.
        """
        flip = self.cdf(x, sigma) > 0.5
        mirrored = Mixture(self.weights, tuple(-c for c in self.centres), self.width)
        goal = torch.where(flip, mirrored.cdf(-x, sigma), self.cdf(x, sigma))
        low, high = torch.full_like(x, -1e3), torch.full_like(x, 1e3)
        for _ in range(100):
            middle = (low + high) / 2
            below = torch.where(flip, mirrored.cdf(-middle, s) > goal, self.cdf(middle, s) < goal)
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def entropy(self, sigma: float = 0.0) -> float:
        """Nats, by the trapezoidal rule (exact to rounding for smooth decaying integrands)."""
        reach = max(map(abs, self.centres)) + 12 * math.hypot(self.width, sigma)
        x = torch.linspace(-reach, reach, 20001, dtype=F64)
        p = self.pdf(x, sigma)
        return -float(torch.special.xlogy(p, p).sum() * (x[1] - x[0]))

    def mean(self) -> float:
        return sum(w * c for w, c in zip(self.weights, self.centres, strict=True))

    def var(self) -> float:
        second = sum(w * c**2 for w, c in zip(self.weights, self.centres, strict=True))
        return second + self.width**2 - self.mean() ** 2

    def _centres(self) -> Tensor:
        return torch.tensor(self.centres, dtype=F64)

    def _offsets(self, x: Tensor) -> Tensor:
        return x.to(F64)[..., None] - self._centres()

    def _total_var(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=F64)
        sigma = sigma.reshape(-1, *[1] * x.ndim) if sigma.ndim else sigma
        return (self.width**2 + sigma**2).expand(*x.shape, 1)

    def _log_parts(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        v = self._total_var(x, sigma)
        w = torch.tensor(self.weights, dtype=F64)
        return w.log() - 0.5 * (self._offsets(x) ** 2 / v + (2 * math.pi * v).log())


@dataclass(frozen=True, eq=False)
class EmpiricalData:
    """x0 is one of `points` [N, *data], each equally likely: the optimum of training on them."""

    points: Tensor

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        points = self.points.to(F64).flatten(1)
        flat = x.to(F64).flatten(1)
        distance = (flat[:, None] - points).square().sum(-1)
        parts = (-distance / (2 * column(sigma) ** 2)).softmax(-1)
        mean = parts @ points
        var = parts @ points**2 - mean**2
        return Gaussian(mean.reshape(x.shape).to(x.dtype), var.reshape(x.shape).to(x.dtype))
