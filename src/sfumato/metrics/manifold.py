"""Precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem
et al. 2020, arXiv:2002.09797): is a sample near real images, and is every real image near a sample?

The manifold of a set is the union of closed balls, one about each row, reaching to its k-th nearest
other row. A point on the sphere is inside, so copies of an image count as near it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.metrics.rows import feature_pair


@dataclass(frozen=True)
class ManifoldScores:
    """Shares of two sets near each other; all depend on the set sizes, so compare equal ones."""

    precision: float
    """Share of samples inside the real manifold."""
    recall: float
    """Share of real images inside the manifold of the samples."""
    density: float
    """Mean number of real balls a sample lies in, over k: 1 in expectation for a perfect model, and
    above it for samples crowded where real images are dense."""
    coverage: float
    """Share of real balls that hold a sample."""
    k: int
    """Neighbours of precision and recall."""
    k_coverage: int
    """Neighbours of density and coverage."""
    n_real: int
    n_fake: int

    @property
    def expected_coverage(self) -> float:
        """Coverage of a perfect model at these sizes (Naeem et al., section 3.3)."""
        missed = [
            (self.n_real - i) / (self.n_real + self.n_fake - i)
            for i in range(1, self.k_coverage + 1)
        ]
        return 1 - math.prod(missed)


def manifold_scores(
    real: Tensor, fake: Tensor, k: int = 3, k_coverage: int = 5, chunk: int = 256
) -> ManifoldScores:
    """Precision, recall, density and coverage of feature rows [n, F]; each set needs more than k.

    Distances in float64, `chunk` rows of a set at once against all of the other. DataError for too
    few rows, another width, or values not finite.
    """
    if min(k, k_coverage) < 1:
        raise ValueError(f"neighbours must be at least 1, not {k} and {k_coverage}")
    real, fake = feature_pair(
        real, fake, max(k, k_coverage) + 1, f"precision and recall with k = {max(k, k_coverage)}"
    )
    centre = real.mean(0)  # smaller norms leave less rounding in the distances
    real, fake = real - centre, fake - centre
    radius_real = _squared_radii(real, (k, k_coverage), chunk)
    radius_fake = _squared_radii(fake, (k,), chunk)[0]
    near_real = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    near_fake, covered, inside = [], [], 0
    for rows, squared, slack in _squared_distances(real, fake, chunk):
        near_fake.append((squared <= radius_fake + slack).any(1))
        near_real |= (squared <= radius_real[0, rows, None] + slack).any(0)
        held = (squared <= radius_real[1, rows, None] + slack).sum(1)
        covered.append(held > 0)
        inside += int(held.sum())
    return ManifoldScores(
        precision=float(near_real.double().mean()),
        recall=float(torch.cat(near_fake).double().mean()),
        density=inside / (k_coverage * len(fake)),
        coverage=float(torch.cat(covered).double().mean()),
        k=k,
        k_coverage=k_coverage,
        n_real=len(real),
        n_fake=len(fake),
    )


def _squared_radii(x: Tensor, ks: tuple[int, ...], chunk: int) -> Tensor:
    """Squared distance [len(ks), n] of every row to its k-th nearest other row."""
    found: list[Tensor] = []
    for rows, squared, _ in _squared_distances(x, x, chunk):
        # A row is no neighbour of its own; its copies are.
        squared[torch.arange(len(squared)), torch.arange(rows.start, rows.stop)] = torch.inf
        nearest = squared.topk(max(ks), largest=False).values.sort().values
        found.append(nearest[:, [k - 1 for k in ks]].clamp(min=0))
    return torch.cat(found).T


def _squared_distances(a: Tensor, b: Tensor, chunk: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield rows of a, their squared distances [chunk, len(b)], and a bound on the rounding.

    The bound is that of a float64 product of F terms: comparing with it makes a copy, or a point on
    the sphere, fall inside whatever the order of summation.
    """
    norms_a, norms_b = a.square().sum(1), b.square().sum(1)
    bound = 4 * (a.shape[1] + 2) * torch.finfo(a.dtype).eps
    for start in range(0, len(a), chunk):
        rows = slice(start, min(start + chunk, len(a)))
        norms = norms_a[rows, None] + norms_b
        yield rows, torch.addmm(norms, a[rows], b.T, alpha=-2), bound * norms
