"""Which levels to spend few evaluations at: the shortest path through a teacher's levels.

GITS (Chen et al. 2024, arXiv:2405.11326): what one step of Euler's method from each teacher's level
to each later one misses by is an edge's length, and dynamic programming finds the path of N edges
whose sum is least. Here an error at level s counts as much as the flow carries of it to the image,
sd / sqrt(sd^2 + s^2) for data of standard deviation sd (exact for Gaussian data).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.noise import F64
from sfumato.tuning.teacher import Lesson


@dataclass(frozen=True, eq=False)
class Moments:
    """All products of a teacher's states and means, averaged over images and pixels.

    `products` [2M + 1, 2M + 1]: first the M + 1 states, then the M means. Whatever a linear step
    misses by on the teacher's trajectory is a quadratic form of it, so no image is needed again.
    `data_std` is the standard deviation of the images at the end.
    """

    sigmas: Tensor
    products: Tensor
    data_std: float

    @classmethod
    def of(cls, lessons: Sequence[Lesson]) -> Moments:
        """Gather them from lessons on one grid."""
        total, count = torch.zeros((), dtype=F64), 0
        ends = torch.cat([lesson.target.flatten() for lesson in lessons]).to(F64)
        for lesson in lessons:
            for image in range(len(lesson)):  # one at a time, for the sake of memory
                rows = torch.cat([lesson.states[:, image], lesson.means[:, image]])
                rows = rows.flatten(1).to(F64)
                total = total + rows @ rows.T
                count += rows.shape[1]
        return cls(lessons[0].sigmas, (total / count).cpu(), float(ends.std()))

    def missed(self, terms: dict[int, float]) -> float:
        """Root mean square of the sum of rows times their weights."""
        index = list(terms)
        weights = torch.tensor(list(terms.values()), dtype=F64)
        square = float(weights @ self.products[index][:, index] @ weights)
        return max(square, 0.0) ** 0.5

    def carried(self, sigma: float) -> float:
        """What share of an error in x at sigma the flow carries to the image."""
        return self.data_std / (self.data_std**2 + sigma**2) ** 0.5


def step_costs(moments: Moments) -> Tensor:
    """Return [M + 1, M + 1]: the carried error of Euler's step from level i to j > i, else inf."""
    sigmas = moments.sigmas.tolist()
    last = len(sigmas) - 1
    costs = torch.full((last + 1, last + 1), torch.inf, dtype=F64)
    for i in range(last):
        for j in range(i + 1, last + 1):
            keep = sigmas[j] / sigmas[i]
            missed = moments.missed({j: -1.0, i: keep, last + 1 + i: 1 - keep})
            costs[i, j] = missed * moments.carried(sigmas[j])
    return costs


def shortest_path(costs: Tensor, steps: int) -> list[int]:
    """Return the steps + 1 levels, first and last included, whose costs [M, M] sum to the least.

    Raises ValueError where there are fewer levels than that.
    """
    count = len(costs)
    if not 1 <= steps < count:
        raise ValueError(f"a path through {count} levels has 1 to {count - 1} steps, not {steps}")
    best = costs[0].clone()
    before: list[list[int]] = []
    for _ in range(steps - 1):
        through = best[:, None] + costs
        least, where = through.min(0)
        before.append(where.tolist())
        best = least
    path = [count - 1]
    for where in reversed(before):
        path.append(where[path[-1]])
    return [0, *reversed(path)]
