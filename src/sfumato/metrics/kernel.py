"""Kernel distance (KID; Binkowski et al. 2018, arXiv:1801.01401), unbiased, with its error.

Squared maximum mean discrepancy with the kernel k(x, y) = (x.y / F + 1)^3. The published protocol
averages 100 random subsets of 1000; the estimate here is the U-statistic over all pairs, which has
the same expectation, less variance and no randomness.

Its variance has a closed form (Hoeffding 1948), 4 Var w(x) / m + 4 Var w(y) / n for the witness
function w, plus terms of pairs, in 1/m^2, 1/mn and 1/n^2, which are all there is when the two
distributions agree. Each is estimated without bias from row sums of the kernel matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.metrics.rows import feature_pair


@dataclass(frozen=True)
class KernelDistance:
    """Squared maximum mean discrepancy between two sets, unbiased: below 0 by chance if equal."""

    value: float
    """Its expectation does not depend on the number of images; often printed times 1000."""
    error: float
    """One standard error of `value`."""
    m: int
    """Images in the first set."""
    n: int
    """Images in the second set."""


def kernel_distance(a: Tensor, b: Tensor, chunk: int = 512) -> KernelDistance:
    """KID between feature rows a [m, F] and b [n, F]; at least 4 of each, independent draws.

    Time grows as (m + n)^2 F; memory holds `chunk` rows of a kernel matrix. DataError for too few
    rows, another width, or values not finite.
    """
    a, b = feature_pair(a, b, 4, "the kernel distance")
    within_a, within_b = _within(a, chunk), _within(b, chunk)
    across = _across(a, b, chunk)
    value = within_a.mean + within_b.mean - 2 * across.mean
    variance = _variance(within_a, within_b, across)
    return KernelDistance(value, math.sqrt(variance), len(a), len(b))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return torch.mm(x, y.T).div_(x.shape[1]).add_(1).pow_(3)


@dataclass(frozen=True)
class _Within:
    """Sums over i != j of k(x_i, x_j) within one set."""

    rows: Tensor
    """[n] over j."""
    squares: float
    """Of k^2 over all pairs."""

    @property
    def mean(self) -> float:
        n = len(self.rows)
        return float(self.rows.sum()) / (n * (n - 1))

    @property
    def mean_squared(self) -> float:
        """Unbiased (E k)^2: the mean of k(x1, x2) k(x3, x4) over four different rows."""
        n = len(self.rows)
        total = float(self.rows.sum()) ** 2 - 4 * float(self.rows @ self.rows) + 2 * self.squares
        return total / (n * (n - 1) * (n - 2) * (n - 3))

    @property
    def of_rows(self) -> float:
        """Var of E[k(x, x') | x]."""
        n = len(self.rows)
        shared = (float(self.rows @ self.rows) - self.squares) / (n * (n - 1) * (n - 2))
        return shared - self.mean_squared

    @property
    def of_pairs(self) -> float:
        """Var of k(x, x') beyond what its two rows explain."""
        n = len(self.rows)
        return self.squares / (n * (n - 1)) - self.mean_squared - 2 * self.of_rows


@dataclass(frozen=True)
class _Across:
    """Sums of k(x_i, y_j) between two sets."""

    rows: Tensor
    """[m] over j."""
    columns: Tensor
    """[n] over i."""
    squares: float

    @property
    def mean(self) -> float:
        return float(self.rows.sum()) / (len(self.rows) * len(self.columns))

    @property
    def mean_squared(self) -> float:
        """Unbiased (E k)^2: the mean of k(x1, y1) k(x2, y2) over different rows and columns."""
        m, n = len(self.rows), len(self.columns)
        total = float(self.rows.sum()) ** 2 + self.squares
        total -= float(self.rows @ self.rows) + float(self.columns @ self.columns)
        return total / (m * (m - 1) * n * (n - 1))

    @property
    def of_rows(self) -> float:
        """Var of E[k(x, y) | x]."""
        return self._shared(self.rows, len(self.columns)) - self.mean_squared

    @property
    def of_columns(self) -> float:
        """Var of E[k(x, y) | y]."""
        return self._shared(self.columns, len(self.rows)) - self.mean_squared

    @property
    def of_pairs(self) -> float:
        """Var of k(x, y) beyond what x and y explain."""
        square = self.squares / (len(self.rows) * len(self.columns))
        return square - self.mean_squared - self.of_rows - self.of_columns

    def _shared(self, sums: Tensor, others: int) -> float:
        return (float(sums @ sums) - self.squares) / (len(sums) * others * (others - 1))


def _within(x: Tensor, chunk: int) -> _Within:
    rows, squares = torch.zeros(len(x), dtype=x.dtype, device=x.device), 0.0
    for start in range(0, len(x), chunk):
        stop = min(start + chunk, len(x))
        # Blocks on and above the diagonal; the rest by symmetry.
        k = _kernel(x[start:stop], x[start:])
        k.diagonal().zero_()
        rows[start:stop] += k.sum(1)
        rows[stop:] += k[:, stop - start :].sum(0)
        own = k[:, : stop - start]
        squares += 2 * float(k.square().sum()) - float(own.square().sum())
    return _Within(rows, squares)


def _across(x: Tensor, y: Tensor, chunk: int) -> _Across:
    rows, squares = torch.zeros(len(x), dtype=x.dtype, device=x.device), 0.0
    columns = torch.zeros(len(y), dtype=x.dtype, device=x.device)
    for start in range(0, len(x), chunk):
        k = _kernel(x[start : start + chunk], y)
        rows[start : start + chunk] = k.sum(1)
        columns += k.sum(0)
        squares += float(k.square_().sum())
    return _Across(rows, columns, squares)


def _variance(a: _Within, b: _Within, across: _Across) -> float:
    """Variance of the estimate; the witness term, 0 or more in truth, is kept from going below."""
    m, n = len(a.rows), len(b.rows)
    witness_a = a.of_rows + across.of_rows - 2 * _covariance(a, across.rows, n)
    witness_b = b.of_rows + across.of_columns - 2 * _covariance(b, across.columns, m)
    pairs = (
        2 * a.of_pairs / (m * (m - 1))
        + 2 * b.of_pairs / (n * (n - 1))
        + 4 * across.of_pairs / (m * n)
    )
    return max(0.0, 4 * witness_a / m + 4 * witness_b / n) + max(0.0, pairs)


def _covariance(within: _Within, across: Tensor, others: int) -> float:
    """Of E[k(x, x') | x] and E[k(x, y) | x], from sums over each row, without bias."""
    m = len(across)
    shared = float(within.rows @ across)
    apart = float(within.rows.sum()) * float(across.sum()) - 2 * shared
    return shared / (m * (m - 1) * others) - apart / (m * (m - 1) * (m - 2) * others)
