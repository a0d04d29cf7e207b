"""What training sees level by level: running losses over ln sigma, and where p_train should be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.noise import F64, NoiseRange
from sfumato.training.noise_sampling import LogNormal
from sfumato.training.objectives import normalised


@dataclass(frozen=True, eq=False)
class LevelStatistics:
    """Running moments of the normalised loss in bins of ln sigma, forgetting old batches.

    `borders` [n + 1]: sigma, ascending; `sums` [3, n]: weight, weighted loss, weighted square.
    The loss is EDM's (see `objectives.normalised`): 1 where only mean and variance are known.
    A value, all on the host in float64: `seen` returns the statistics after one more batch.
    """

    borders: Tensor
    sums: Tensor
    sigma_data: float
    memory_images: float

    @classmethod
    def over(
        cls, limits: NoiseRange, sigma_data: float, *, bins: int = 24, memory_images: float = 50_000
    ) -> LevelStatistics:
        """Start empty over the trained range; old batches fade by 1/e in memory_images."""
        low, high = math.log(limits.low), math.log(max(limits.high, limits.low * 1.01))
        borders = torch.linspace(low, high, bins + 1, dtype=F64).exp()
        return cls(borders, torch.zeros(3, bins, dtype=F64), sigma_data, memory_images)

    def seen(self, sigma: Tensor, error: Tensor) -> LevelStatistics:
        """Add a batch: sigma [B] and the mean squared errors of D [B], both float64 on the host.

        Levels beyond the borders count in the outermost bins; what is not finite is left out.
        """
        loss = normalised(error, sigma, self.sigma_data)
        finite = loss.isfinite()
        loss, sigma = loss[finite], sigma[finite]
        bins = self.sums.shape[1]
        where = (torch.searchsorted(self.borders, sigma.contiguous()) - 1).clamp(0, bins - 1)
        rows = torch.stack([torch.ones_like(loss), loss, loss**2])
        sums = self.sums * math.exp(-len(error) / self.memory_images)
        return LevelStatistics(
            self.borders, sums.index_add(1, where, rows), self.sigma_data, self.memory_images
        )

    @property
    def centres(self) -> Tensor:
        """Geometric centres of the bins, sigma [n]."""
        return (self.borders[1:] * self.borders[:-1]).sqrt()

    @property
    def counts(self) -> Tensor:
        """How many images, old ones counting less, stand behind each bin, [n]."""
        return self.sums[0]

    @property
    def mean(self) -> Tensor:
        """The mean normalised loss of each bin, [n]; NaN where nothing was seen."""
        return self.sums[1] / self.sums[0]

    @property
    def std(self) -> Tensor:
        """The standard deviation of the normalised loss between images of a bin, [n]."""
        return (self.sums[2] / self.sums[0] - self.mean**2).clamp(min=0).sqrt()


def suggest_log_normal(statistics: LevelStatistics) -> LogNormal | None:
    """Return the log-normal p_train that looks where there is something to learn.

    Rule: with l the normalised loss of a bin, max(1 - l, 0) is the share of the linear denoiser's
    error that the network has learnt to remove; the suggestion has the mean and the standard
    deviation of ln sigma under that profile. It follows EDM (section 5, figure 5a): nothing can be
    gained at very low sigma (noise indiscernible) nor at very high sigma (only the mean matters).
    Bins count where they lie two standard errors below 1. None where fewer than three do: before
    training has got anywhere, or for Gaussian data. It is a heuristic: it knows nothing of what
    matters to the eye, and a poor network's profile is a poor guide.
    """
    gain = (1 - statistics.mean).nan_to_num(0)
    doubt = (statistics.std / statistics.counts.sqrt()).nan_to_num(math.inf)
    sure = (statistics.counts >= 8) & (gain > 2 * doubt)
    if int(sure.sum()) < 3:
        return None
    at, weight = statistics.centres.log(), torch.where(sure, gain, 0.0)
    weight = weight / weight.sum()
    mean = (weight * at).sum()
    # A bin is as wide as its neighbours' distance: its own variance is width^2 / 12.
    width = float(statistics.borders[1].log() - statistics.borders[0].log())
    variance = (weight * (at - mean) ** 2).sum() + width**2 / 12
    return LogNormal(round(float(mean), 2), round(float(variance.sqrt()), 2))


def fits_badly(current: LogNormal, suggested: LogNormal) -> bool:
    """Whether two p_train differ enough to act: centres by half a deviation, widths by half."""
    ratio = current.std / suggested.std
    far = abs(current.mean - suggested.mean) > 0.5 * suggested.std
    return far or not 2 / 3 <= ratio <= 3 / 2


def measure_sigma_data(batches: Iterable[Tensor]) -> float:
    """Return the standard deviation of all values of the batches about their common mean.

    Streaming, in float64. Raises ValueError where there is nothing or no variation to measure.
    """
    count, mean, scatter = 0, 0.0, 0.0
    for batch in batches:
        values = batch.to(F64)
        n, m = values.numel(), float(values.mean()) if values.numel() else 0.0
        if not n:
            continue
        # Pooled moments of two sets (Chan et al. 1979): no cancellation.
        scatter += float((values - m).square().sum()) + (m - mean) ** 2 * count * n / (count + n)
        mean += (m - mean) * n / (count + n)
        count += n
    if not count or not scatter > 0:
        raise ValueError(
            "sigma_data cannot be measured: "
            + ("there are no images" if not count else "all values of the images are equal")
            + "; state it (--process.sigma-data)"
        )
    return math.sqrt(scatter / count)
