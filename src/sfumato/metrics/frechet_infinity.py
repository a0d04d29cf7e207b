"""The Fréchet distance without the bias of few images: extrapolated to infinitely many.

Chong and Forsyth 2020 (arXiv:1911.07023): the expected distance of n images is a straight line in
1 / n to leading order; its intercept is what infinitely many would score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfumato.metrics.frechet import FeatureStatistics, frechet_distances
from sfumato.metrics.rows import feature_rows

Float64 = NDArray[np.float64]

LEAST = 10
"""Images in the smallest subset, at least."""


@dataclass(frozen=True)
class FrechetInfinity:
    """A line through Fréchet distances against 1 / n."""

    value: float
    """At 1 / n = 0; below 0 only by chance."""
    error: float
    """One standard error: the draw of the images, and how well the line fits (its scatter, or half
    of what a parabola would change, if larger). Near a true distance of 0 about twice too large.
    The images behind the reference count as fixed: a bias from their own number stays."""
    slope: float
    """Distance times images: slope / n is the bias at n."""
    sizes: tuple[int, ...]
    """Images per subset, largest (all) first."""
    values: tuple[float, ...]
    """Mean distance of the subsets of that size."""
    dimensions: int
    """Features."""

    @property
    def caution(self) -> str | None:
        """Why the line may bend: subsets of fewer images than there are features; else None."""
        if self.sizes[-1] >= self.dimensions:
            return None
        return (
            f"the smallest subsets have {self.sizes[-1]} images for {self.dimensions} features, "
            f"where the bias bends away from 1 / n: take "
            f"{self.dimensions * len(self.sizes)} images or more to be sure"
        )


def frechet_infinity(
    rows: Tensor, reference: FeatureStatistics, rng: np.random.Generator, points: int = 5
) -> FrechetInfinity:
    """Extrapolate the Fréchet distance of feature rows [n, F] to infinitely many rows.

    Point k = 1 .. points is the mean distance of k disjoint subsets that share out all rows, in an
    order drawn from `rng`: points * (points + 1) / 2 distances in all. DataError below 10 * points
    rows.
    """
    if points < 3:
        raise ValueError(f"a line with an error needs at least 3 points, not {points}")
    checked = feature_rows(rows, LEAST * points, f"an extrapolation from {points} points")
    shuffled = np.asarray(checked.cpu().numpy(), np.float64)[rng.permutation(len(checked))]
    subsets = [
        _statistics(part)
        for parts in range(1, points + 1)
        for part in np.array_split(shuffled, parts)
    ]
    distances = iter(frechet_distances(reference, subsets))
    levels = [np.array([next(distances) for _ in range(k)]) for k in range(1, points + 1)]
    means = np.array([level.mean() for level in levels])
    inverse = np.arange(1, points + 1) / len(shuffled)
    value, slope, doubt = _line(inverse, means)
    # All points share all images, so the scatter about the line is blind to which images were
    # drawn. Disjoint subsets are not: their spread gives that part of the variance, a little more
    # where it is small, since the spread of small subsets holds terms in 1 / n^2 too.
    spread = sum(level.var(ddof=1) / len(level) * (len(level) - 1) for level in levels[1:])
    freedom = sum(len(level) - 1 for level in levels)
    return FrechetInfinity(
        value=value,
        error=math.sqrt(float(spread) / freedom + doubt),
        slope=slope,
        sizes=tuple(len(shuffled) // k for k in range(1, points + 1)),
        values=tuple(float(mean) for mean in means),
        dimensions=reference.dimensions,
    )


def gaussian_floor(statistics: FeatureStatistics, n: int, m: int | None = None) -> float:
    """Expected Fréchet distance of n images to m of the same distribution, if Gaussian.

    To leading order in 1 / n, so for n well above the number of features; m None stands for an
    exact reference. The means are tr C / n apart. An error E of the covariance adds, to second
    order, sum_ij E_ij^2 / (l_i + l_j) / 2 in the basis of C with eigenvalues l (the Bures metric),
    where E_ij^2 is (1 + [i = j]) l_i l_j / n in expectation (the Wishart distribution).
    """
    if n < 2 or (m is not None and m < 2):
        raise ValueError(f"a covariance needs at least 2 images, not {n} and {m}")
    spectrum = np.linalg.eigvalsh(statistics.covariance).clip(min=0.0)
    spectrum = spectrum[spectrum > 0]
    pairs = spectrum[:, None] * spectrum / (spectrum[:, None] + spectrum)
    bures = (pairs.sum() + spectrum.sum() / 2) / 2
    return float(spectrum.sum() + bures) * (1 / n + (0 if m is None else 1 / m))


def _statistics(rows: Float64) -> FeatureStatistics:
    made = FeatureStatistics(rows.shape[1])
    made.update(rows)
    return made


def _line(x: Float64, y: Float64) -> tuple[float, float, float]:
    """Intercept and slope of a line, and a variance of the intercept; point k has weight 1 / k.

    The mean of k distances of n / k images each scatters about the line with a variance that grows
    as k, and small subsets are where the line bends.
    """
    (intercept, slope), residual, spread = _fit(x, y, 1)
    (bent, *_), _, _ = _fit(x, y, 2)
    scatter = residual / (len(x) - 2) * spread
    return intercept, slope, max(scatter, (bent - intercept) ** 2 / 4)


def _fit(x: Float64, y: Float64, degree: int) -> tuple[list[float], float, float]:
    """Coefficients, weighted sum of squared residuals, variance of the intercept for unit noise."""
    weight = 1 / np.arange(1, len(x) + 1)
    design = np.vander(x / x[-1], degree + 1, increasing=True)
    inverse = np.linalg.inv(design.T @ (weight[:, None] * design))
    coefficients = inverse @ (design.T @ (weight * y))
    residual = float((weight * (y - design @ coefficients) ** 2).sum())
    powers = x[-1] ** np.arange(degree + 1)
    return [float(c) for c in coefficients / powers], residual, float(inverse[0, 0])
