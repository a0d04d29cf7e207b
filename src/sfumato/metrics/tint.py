"""Do samples have a colour cast? Channel means, spreads and histograms against real images.

Small networks, too few steps or averaged weights too young shift whole images by a few levels; the
eye sees it, and most feature distances hardly do. Shifts are printed in 8-bit levels (0 to 255).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.errors import DataError
from sfumato.metrics.frechet import FeatureStatistics

Float64 = NDArray[np.float64]

LEVELS = 256
"""Histogram bins over [-1, 1], one an 8-bit level."""
PARTS = 8
"""Shares the images are dealt to, so that halves of a set can be compared."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Image i goes to the part at the fraction of i * GOLDEN: even in any order, sorted by class or
cycling through the classes."""
LEAST = 30
"""Images needed of each set: below, a standard error is itself too uncertain."""
FALSE_ALARM = 0.01
"""Chance of any alarm at all when there is no difference."""
VISIBLE = 1.0
"""A shift below this many 8-bit levels is no fault, however sure."""
HALF_RANGE = 127.5
"""8-bit levels per unit of images in [-1, 1]."""


class PixelStatistics:
    """Per-channel statistics of a stream of images [B, C, H, W] in [-1, 1]; memory is constant."""

    def __init__(self, channels: int) -> None:
        if channels < 1:
            raise ValueError(f"images need at least one channel, not {channels}")
        self.means = FeatureStatistics(channels)
        """Over images, of an image's channel means."""
        self.histograms = np.zeros((PARTS, channels, LEVELS))
        """Share of images in part p times share of pixels: each image weighs 1."""
        self.square: Float64 = np.zeros(channels)
        """Sum over images of the mean squared value."""

    @property
    def channels(self) -> int:
        """C."""
        return self.means.dimensions

    @property
    def count(self) -> int:
        """Images seen."""
        return self.means.count

    @property
    def std(self) -> Float64:
        """Standard deviation [C] of all pixels of a channel, within images and between them."""
        return np.sqrt((self.square / self.count - self.means.mean**2).clip(min=0.0))

    def update(self, images: Tensor) -> None:
        """Add images; DataError when not float in [-1, 1], finite, and of as many channels."""
        if images.ndim != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise DataError(
                f"expected float images [B, {self.channels}, H, W] in [-1, 1], "
                f"got {images.dtype} {list(images.shape)}"
            )
        if not len(images):
            return
        low, high = (float(v) for v in images.aminmax())
        if not (low >= -1.001 and high <= 1.001):  # written so that NaN fails
            raise DataError(
                f"images must be finite and in [-1, 1], found {low:.4g} to {high:.4g}: "
                "clip with .clamp(-1, 1), convert 8-bit images with x / 127.5 - 1"
            )
        values = images.detach().cpu().double()
        level = ((values + 1) * HALF_RANGE).round().clamp(0, LEVELS - 1).long().flatten(2)
        number = torch.arange(self.count, self.count + len(images), dtype=torch.float64)
        part = ((number * GOLDEN).frac() * PARTS).long()
        bins = (part[:, None] * self.channels + torch.arange(self.channels)) * LEVELS
        flat = (bins[:, :, None] + level).flatten()
        counts = torch.bincount(flat, minlength=self.histograms.size).double() / level.shape[2]
        self.histograms += counts.numpy().reshape(self.histograms.shape)
        self.square += values.square().mean((2, 3)).sum(0).numpy()
        self.means.update(values.mean((2, 3)).numpy())

    def cumulative(self, parts: Sequence[int] = range(PARTS)) -> Float64:
        """Share of pixels [C, 256] at or below each level, in some of the parts."""
        histogram = self.histograms[list(parts)].sum(0)
        return (histogram / histogram.sum(1, keepdims=True)).cumsum(1)


def pixel_statistics(images: Iterable[Tensor]) -> PixelStatistics:
    """Statistics of a stream of batches [B, C, H, W], float in [-1, 1]."""
    made: PixelStatistics | None = None
    for batch in images:
        made = made or PixelStatistics(batch.shape[1] if batch.ndim == 4 else 1)
        made.update(batch)
    if made is None:
        raise DataError(f"the tint test needs at least {LEAST} images per set, got none")
    return made


@dataclass(frozen=True)
class Tint:
    """Samples against real images, a value per channel; shifts in 8-bit levels."""

    shift: tuple[float, ...]
    """Mean of the samples minus mean of the real images."""
    shift_error: tuple[float, ...]
    """One standard error of `shift`, images independent."""
    cast: tuple[float, ...]
    """`shift` minus its mean over channels: what is colour and not brightness."""
    cast_error: tuple[float, ...]
    """One standard error of `cast`."""
    brightness: float
    """Mean of `shift` over channels."""
    brightness_error: float
    std_ratio: tuple[float, ...]
    """Standard deviation of the samples' pixels over that of the real ones; NaN if that is 0."""
    distance: tuple[float, ...]
    """Wasserstein-1 distance between the histograms; |shift| or more, up to rounding to 8 bits."""
    distance_floor: tuple[float, ...]
    """What as many real images would score: from halves of the real set."""
    n_real: int
    n_fake: int

    @property
    def threshold(self) -> float:
        """Standard errors beyond which a shift counts: any alarm by chance in 1 of 100 tests."""
        tests = 1 + (len(self.shift) if len(self.shift) > 1 else 0)
        return NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * tests))

    @property
    def z(self) -> tuple[float, ...]:
        """`shift` in standard errors."""
        return tuple(map(_ratio, self.shift, self.shift_error))

    @property
    def cast_z(self) -> tuple[float, ...]:
        """`cast` in standard errors."""
        return tuple(map(_ratio, self.cast, self.cast_error))

    @property
    def brightness_z(self) -> float:
        """`brightness` in standard errors."""
        return _ratio(self.brightness, self.brightness_error)

    @property
    def tinted(self) -> bool:
        """Whether some channel's cast is both sure and at least one 8-bit level."""
        pairs = zip(self.cast, self.cast_z, strict=True)
        return any(abs(z) > self.threshold and abs(c) >= VISIBLE for c, z in pairs)

    @property
    def shifted(self) -> bool:
        """Whether the brightness shift is both sure and at least one 8-bit level."""
        sure = abs(self.brightness_z) > self.threshold
        return sure and abs(self.brightness) >= VISIBLE

    @property
    def verdict(self) -> str:
        """One sentence for the reader."""
        shifts = ", ".join(f"{value:+.1f}" for value in self.shift)
        largest = max(self.shift_error)
        where = f"channel shifts {shifts} of 255 (each ± {largest:.1f})"
        if self.tinted:
            surest = max(map(abs, self.cast_z))
            return f"Tinted: {where}; the colour cast is {surest:.0f} standard errors from none."
        if self.shifted:
            side = "brighter" if self.brightness > 0 else "darker"
            return f"No colour cast, but {side} by {abs(self.brightness):.1f} of 255: {where}."
        return f"Not tinted: {where}."


def tint(real: PixelStatistics, fake: PixelStatistics) -> Tint:
    """Compare samples with real images; DataError for other channels or below 30 images of each."""
    if real.channels != fake.channels:
        raise DataError(
            f"the real images have {real.channels} channels and the samples {fake.channels}"
        )
    if min(real.count, fake.count) < LEAST:
        raise DataError(
            f"the tint test needs at least {LEAST} images per set, "
            f"got {real.count} real ones and {fake.count} samples"
        )
    shift = (fake.means.mean - real.means.mean) * HALF_RANGE
    covariance = fake.means.covariance / fake.count + real.means.covariance / real.count
    covariance = covariance * HALF_RANGE**2
    centre = np.eye(len(shift)) - 1 / len(shift)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(real.std > 0, fake.std / real.std, np.nan)
    distance = np.abs(fake.cumulative() - real.cumulative()).sum(1)
    return Tint(
        shift=_floats(shift),
        shift_error=_floats(np.sqrt(covariance.diagonal())),
        cast=_floats(centre @ shift),
        cast_error=_floats(np.sqrt((centre @ covariance @ centre).diagonal().clip(min=0.0))),
        brightness=float(shift.mean()),
        brightness_error=math.sqrt(max(0.0, covariance.mean())),
        std_ratio=_floats(ratio),
        distance=_floats(distance),
        distance_floor=_floats(_floor(real, fake.count)),
        n_real=real.count,
        n_fake=fake.count,
    )


def _floor(real: PixelStatistics, n_fake: int) -> Float64:
    """Mean histogram distance [C] between real halves, scaled by 1 / sqrt(n) to the sizes given."""
    halves = [h for h in combinations(range(PARTS), PARTS // 2) if 0 in h]
    others = [tuple(p for p in range(PARTS) if p not in h) for h in halves]
    gaps = [
        np.abs(real.cumulative(one) - real.cumulative(other)).sum(1)
        for one, other in zip(halves, others, strict=True)
    ]
    spread = 4 / real.count  # 1 / half + 1 / half
    return np.mean(gaps, axis=0) * math.sqrt((1 / real.count + 1 / n_fake) / spread)


def _floats(values: Float64) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _ratio(value: float, error: float) -> float:
    if error:
        return value / error
    return math.copysign(math.inf, value) if value else 0.0
