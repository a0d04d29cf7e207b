"""The Fréchet distance between two sets of features, each summarised by its mean and covariance.

Between Gaussians N(m1, C1) and N(m2, C2) (Dowson and Landau 1982; FID: Heusel et al. 2017, eq. 6):

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^(1/2) C2 C1^(1/2))^(1/2)

The last trace is a sum of square roots of eigenvalues of a symmetric matrix, so it is real by
construction: no general matrix square root, nothing complex, also for singular covariances.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfumato.errors import DataError

Float64 = NDArray[np.float64]


class FeatureStatistics:
    """Count, mean and covariance of feature rows [n, F], accumulated in float64 as they stream by.

    Memory is F * F whatever n. Batches are combined by the pairwise update of Chan, Golub and
    LeVeque (1979), which subtracts means before squaring, so any split gives the same numbers.
    """

    def __init__(self, dimensions: int) -> None:
        if dimensions < 1:
            raise ValueError(f"features need at least one dimension, not {dimensions}")
        self.count = 0
        self.mean: Float64 = np.zeros(dimensions)
        self._scatter: Float64 = np.zeros((dimensions, dimensions))

    @classmethod
    def from_moments(cls, mean: Float64, covariance: Float64, count: int) -> Self:
        """Statistics with this mean [F] and unbiased covariance [F, F], such as published ones."""
        mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise DataError(
                f"expected a mean [F] and a covariance [F, F], "
                f"got {list(mean.shape)} and {list(covariance.shape)}"
            )
        if count < 2:
            raise DataError(f"a covariance needs at least 2 images, not {count}")
        _require_finite(mean, covariance)
        made = cls(len(mean))
        made.count = count
        made.mean = mean.copy()
        made._scatter = (covariance + covariance.T) * ((count - 1) / 2)
        return made

    @property
    def dimensions(self) -> int:
        """The number of features F."""
        return len(self.mean)

    @property
    def covariance(self) -> Float64:
        """Unbiased covariance [F, F] (divided by n - 1); DataError below two rows."""
        if self.count < 2:
            raise DataError(
                f"a covariance needs at least 2 images, got {self.count}: give more images"
            )
        return self._scatter / (self.count - 1)

    def update(self, features: Tensor | NDArray[np.floating]) -> None:
        """Add rows [B, F]; DataError when they are not finite or of another width."""
        rows = np.asarray(features, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.dimensions:
            raise DataError(
                f"expected features [B, {self.dimensions}], got {list(rows.shape)}: "
                "all batches must come from one extractor"
            )
        _require_finite(rows)
        if not len(rows):
            return
        mean = rows.mean(0)
        centred = rows - mean
        self._combine(len(rows), mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> None:
        """Add everything another accumulator has seen (another process, another shard)."""
        if other.dimensions != self.dimensions:
            raise DataError(
                f"cannot merge features of {other.dimensions} dimensions into {self.dimensions}: "
                "both must come from one extractor"
            )
        if other.count:
            self._combine(other.count, other.mean, other._scatter)

    def _combine(self, count: int, mean: Float64, scatter: Float64) -> None:
        total = self.count + count
        step = mean - self.mean
        self._scatter += scatter
        if self.count:
            self._scatter += np.outer(step, step) * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Fréchet distance between Gaussians with the moments of a and b; at least 0.

    Symmetric; in squared feature units. Its value at finite n is biased upwards (two halves of one
    set are not at 0), so compare numbers of the same n, beside the same number for real images.
    """
    return frechet_distances(a, [b])[0]


def frechet_distances(
    reference: FeatureStatistics, sets: Iterable[FeatureStatistics]
) -> list[float]:
    """`frechet_distance` of every set to one reference, whose root is taken once."""
    covariance = reference.covariance
    root = _root(covariance)
    return [_distance(reference, float(np.trace(covariance)), root, other) for other in sets]


def _distance(a: FeatureStatistics, trace: float, root: Float64, b: FeatureStatistics) -> float:
    if a.dimensions != b.dimensions:
        raise DataError(
            f"the two sets have {a.dimensions} and {b.dimensions} features: "
            "use one extractor for both"
        )
    covariance = b.covariance
    step = a.mean - b.mean
    product = root.T @ covariance @ root
    spectrum = np.linalg.eigvalsh((product + product.T) / 2)
    cross = np.sqrt(spectrum.clip(min=0.0)).sum()
    return max(0.0, float(step @ step + trace + np.trace(covariance) - 2 * cross))


def _root(covariance: Float64) -> Float64:
    """R [F, rank] with R R' = covariance, symmetric positive semi-definite [F, F]."""
    values, vectors = np.linalg.eigh(covariance)
    # Rounding leaves noise of this size where the true eigenvalue is 0 (n below F).
    kept = values > values.max(initial=0.0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def _require_finite(*arrays: Float64) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise DataError(
            "features must be finite, found NaN or infinity: "
            "look for NaN in the images, or for an extractor overflowing in half precision"
        )
