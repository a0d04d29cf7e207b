"""Levels drawn by how large their losses are (Improved DDPM section 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.noise import F64
from sfumato.training.noise_sampling import UniformLevels


@dataclass(frozen=True, eq=False)
class LossHistory:
    """The last losses of every level: `values` [T, depth], of which `counts` [T] are filled.

    A value: `seen` returns the history after one more batch. float64, on the host.
    """

    values: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, levels: int, depth: int = 10) -> LossHistory:
        """Return the history before the first step."""
        return cls(torch.zeros(levels, depth, dtype=F64), torch.zeros(levels, dtype=torch.int64))

    @property
    def warm(self) -> bool:
        """Whether every level has as many losses as are kept."""
        return bool((self.counts == self.values.shape[1]).all())

    def seen(self, index: Tensor, losses: Tensor) -> LossHistory:
        """Add a batch: levels [B] and their losses [B], not weighted; not finite ones are left out.

        The oldest loss of a full level goes.
        """
        values, counts = self.values.clone(), self.counts.clone()
        depth = values.shape[1]
        for level, loss in zip(index.tolist(), losses.to(F64).tolist(), strict=True):
            if not math.isfinite(loss):
                continue
            if counts[level] == depth:
                values[level] = torch.cat([values[level, 1:], values.new_tensor([loss])])
            else:
                values[level, counts[level]] = loss
                counts[level] += 1
        return LossHistory(values, counts)

    def probabilities(self, uniform: float) -> Tensor:
        """Return p [T] proportional to the root mean square loss, mixed with `uniform` evenly.

        Even until every level is warm.
        """
        levels = len(self.counts)
        even = torch.full((levels,), 1 / levels, dtype=F64)
        weights = self.values.square().mean(1).sqrt()
        if not self.warm or not float(weights.sum()) > 0:
            return even
        return (1 - uniform) * weights / weights.sum() + uniform * even


@dataclass(frozen=True, eq=False)
class LossAware(UniformLevels):
    """Levels of a ladder with p proportional to sqrt(E[loss^2]), and 1 / (T p) as weights.

    So the mean of the weighted loss is that over uniformly drawn levels, with less variance. The
    last `depth` losses of each level are kept; `uniform` is the share that is drawn evenly.
    """

    depth: int = 10
    uniform: float = 0.001

    def draw(
        self, history: LossHistory, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return levels sigma [count] and importance weights [count], float64 on the host."""
        p = history.probabilities(self.uniform)
        index = torch.multinomial(p, count, replacement=True, generator=generator)
        return self.levels.sigma[index], 1 / (len(p) * p[index])

    def index(self, sigma: Tensor) -> Tensor:
        """Return the place of levels in the ladder."""
        return self.levels.condition(sigma).long()
