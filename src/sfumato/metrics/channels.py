"""How images of any number of channels reach a network made for three: rules as values.

An evaluation states the rule it used: `rule.describe(channels)`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.errors import DataError

QUANTILE = 0.999
"""Share of the reference's projections that a PCA's scale keeps unclamped."""

Rows = np.ndarray[tuple[int, int], np.dtype[np.float64]]

_SAMPLE = 1 << 18
"""Pixels kept for that quantile: about this many or more of a larger set, all of a smaller."""
_GOLDEN = (math.sqrt(5) - 1) / 2


class ToThree(Protocol):
    """A rule that turns images [B, C, H, W] into [B, 3, H, W]."""

    def __call__(self, images: Tensor) -> Tensor:
        """Three channels of images [B, C, H, W], in [-1, 1]."""
        ...

    def describe(self, channels: int) -> str:
        """The rule in words, for images of so many channels."""
        ...


@dataclass(frozen=True)
class FirstThree:
    """RGB as it is, grey repeated, beyond three channels the first three.

    With two channels (grey and alpha, or two bands) the first is taken as grey.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Three channels of images [B, C, H, W], as a view."""
        channels = images.shape[1]
        if channels < 3:
            return images[:, :1].expand(-1, 3, -1, -1)
        return images[:, :3]

    def describe(self, channels: int) -> str:
        """The rule in words."""
        if channels == 3:
            return "RGB as it is"
        if channels == 1:
            return "grey repeated to three channels"
        if channels == 2:
            return "first of 2 channels repeated to three"
        return f"first three of {channels} channels"


FIRST_THREE = FirstThree()


@dataclass(frozen=True)
class PerBand:
    """One evaluation for each band, the band seen as a grey image."""

    def bands(self, images: Tensor) -> list[Tensor]:
        """The channels of images [B, C, H, W], each [B, 1, H, W]."""
        return list(images.split(1, dim=1))

    def describe(self, channels: int) -> str:
        """The rule in words."""
        return f"each of {channels} channels by itself, as grey repeated to three"


@dataclass(frozen=True, eq=False)
class PcaToThree:
    """Projection on three principal components of a reference set's pixels; same for every set.

    y = components (x - mean) / scale, clamped to [-1, 1]. Make it with `fit_pca`.
    """

    mean: Tensor
    """[C] float64, of the reference's pixels."""
    components: Tensor
    """[3, C] float64, orthonormal rows, largest variance first; the largest entry is positive."""
    scale: float
    """The largest of the three 99.9 % quantiles of |projection| on the reference; one for all."""
    explained: float
    """Share of the pixels' variance in these three components."""

    def __call__(self, images: Tensor) -> Tensor:
        """Three channels [B, 3, H, W] float32 in [-1, 1] of images [B, C, H, W]."""
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise DataError(
                f"this projection was fitted on images of {len(self.mean)} channels, "
                f"got {list(images.shape)}"
            )
        mean = self.mean.to(images.device, torch.float32).view(-1, 1, 1)
        components = self.components.to(images.device, torch.float32)
        projected = torch.einsum("kc,bchw->bkhw", components, images.float() - mean)
        return (projected / self.scale).clamp(-1, 1)

    def describe(self, channels: int) -> str:
        """The rule in words."""
        return (
            f"{channels} channels projected on three principal components of the reference "
            f"({100 * self.explained:.1f} % of its variance), divided by {self.scale:.4g}, "
            f"projection {self.fingerprint}"
        )

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash of the projection, rounded to 6 decimals.

        Finer differences move no number, and come from the order of additions alone.
        """
        scale = torch.tensor([self.scale], dtype=torch.float64)
        values = torch.cat([self.mean, self.components.flatten(), scale]).double().cpu().numpy()
        # Adding 0 makes -0 into 0, which is another pattern of bits.
        rounded = np.round(values, 6) + 0.0
        return hashlib.blake2b(rounded.tobytes(), digest_size=8).hexdigest()


def fit_pca(batches: Iterable[Tensor]) -> PcaToThree:
    """Fit a projection to three channels on batches [B, C, H, W] of a reference set, in one pass.

    Moments are float64; memory does not grow with the set, and its batches matter only to rounding.
    Raises DataError for fewer than 3 channels, no images, values not finite, or constant images.
    """
    count, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
    thinned = _Thinned()
    for batch in batches:
        rows = _pixels(batch, len(mean) or None)
        if not count:
            mean, scatter = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
        centre = rows.mean(0)
        step, total = centre - mean, count + len(rows)
        scatter += (rows - centre).T @ (rows - centre)
        scatter += np.outer(step, step) * (count * len(rows) / total)
        mean, count = mean + step * (len(rows) / total), total
        thinned.add(rows)
    values, vectors = np.linalg.eigh(scatter) if count else (np.zeros(3), np.zeros((3, 3)))
    total_variance = float(values.clip(min=0).sum())
    if not total_variance > 0:
        raise DataError("a projection to three channels needs images that are not all constant")
    components = vectors[:, ::-1][:, :3].T.copy()
    # eigh leaves the sign open; fix it so that every machine maps light to light.
    largest = components[np.arange(3), np.abs(components).argmax(1)]
    components *= np.sign(largest)[:, None]
    projected = np.abs((thinned.rows() - mean) @ components.T)
    scale = float(np.quantile(projected, QUANTILE, axis=0).max())
    return PcaToThree(
        torch.from_numpy(mean),
        torch.from_numpy(components),
        # A few bright pixels in a constant set: the quantile may be 0, the largest is not.
        scale or float(projected.max()) or 1.0,
        float(values[-3:].clip(min=0).sum()) / total_variance,
    )


class _Thinned:
    """A share of a stream's rows, halving as it grows: the same rows for any batches.

    Row i is kept while the fraction of i * GOLDEN is below the share: every k-th pixel would be the
    same few columns of every image.
    """

    def __init__(self) -> None:
        self._kept: list[Rows] = []
        self._places: list[NDArray[np.float64]] = []
        self._seen, self._share, self._held = 0, 1.0, 0

    def add(self, rows: Rows) -> None:
        number = np.arange(self._seen, self._seen + len(rows), dtype=np.float64)
        self._seen += len(rows)
        self._keep(rows, number * _GOLDEN % 1)
        while self._held > 2 * _SAMPLE:
            rows, places = self.rows(), np.concatenate(self._places)
            self._kept, self._places, self._held = [], [], 0
            self._share /= 2
            self._keep(rows, places)

    def rows(self) -> Rows:
        return np.concatenate(self._kept)

    def _keep(self, rows: Rows, places: NDArray[np.float64]) -> None:
        chosen = places < self._share
        self._kept.append(rows[chosen])
        self._places.append(places[chosen])
        self._held += len(self._kept[-1])


def _pixels(batch: Tensor, channels: int | None) -> Rows:
    """Pixels [B * H * W, C] of a batch, in the order of the images."""
    if batch.ndim != 4 or batch.shape[1] < 3 or not batch.numel():
        raise DataError(
            "a projection to three channels needs images [B, C, H, W] of at least 3 channels, "
            f"got {list(batch.shape)}: with fewer, the first is shown as grey (FirstThree)"
        )
    if channels and batch.shape[1] != channels:
        raise DataError(
            f"images of one set must share a shape: {channels} channels, then {batch.shape[1]}"
        )
    rows = batch.detach().cpu().double().permute(0, 2, 3, 1).flatten(0, 2).numpy()
    if not np.isfinite(rows).all():
        raise DataError("images must be finite, found NaN or infinity")
    return rows
