"""What a feature extractor is, and the loop that turns images into feature statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from sfumato.errors import DataError
from sfumato.metrics.frechet import FeatureStatistics

MICRO_BATCH = 64
"""Images in one call of an extractor: fixed, so that the caller's batches cannot move a number."""


class FeatureExtractor(Protocol):
    """Images to feature vectors, with enough of a name to reproduce the number they lead to."""

    @property
    def name(self) -> str:
        """What it is, at what resolution, by what resize."""
        ...

    @property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the weights."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, F] float32 of images [B, C, H, W], float in [-1, 1]."""
        ...


class Classifying(FeatureExtractor, Protocol):
    """A FeatureExtractor whose network also names classes, as an Inception Score needs."""

    @property
    def class_source(self) -> str:
        """What the logits are of, such as "ImageNet-1k classes of EfficientNet-Lite0"."""
        ...

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, F] and class logits [B, K] of images [B, C, H, W], float in [-1, 1]."""
        ...


def features(images: Iterable[Tensor], extractor: FeatureExtractor) -> Iterator[Tensor]:
    """Yield features [b, F] of batches [B, C, H, W] in order, in micro-batches of a fixed size.

    The last micro-batch is padded for the network and cut again, so the features of an image do not
    depend on how the caller batches. Raises DataError for images outside [-1, 1] or not finite.
    """
    for batch in _rebatch(images, MICRO_BATCH):
        _check_range(batch)
        missing = MICRO_BATCH - len(batch)
        padded = torch.cat([batch, batch[:1].expand(missing, -1, -1, -1)]) if missing else batch
        with torch.inference_mode():
            yield extractor(padded)[: len(batch)].float().cpu()


def extract(images: Iterable[Tensor], extractor: FeatureExtractor) -> FeatureStatistics:
    """Feature statistics of a stream of batches [B, C, H, W], float in [-1, 1]; at least 2 images.

    Memory does not grow with the number of images; the result does not depend on the batch size.
    """
    statistics: FeatureStatistics | None = None
    for rows in features(images, extractor):
        if statistics is None:
            statistics = FeatureStatistics(rows.shape[1])
        statistics.update(rows.numpy())
    if statistics is None or statistics.count < 2:
        count = 0 if statistics is None else statistics.count
        raise DataError(f"feature statistics need at least 2 images, got {count}")
    return statistics


def _rebatch(batches: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same images in the same order, in batches of `size`; the last may be smaller."""
    waiting: list[Tensor] = []
    held = 0
    shape: torch.Size | None = None
    for batch in batches:
        if batch.ndim != 4 or not batch.is_floating_point():
            raise DataError(
                f"expected float images [B, C, H, W] in [-1, 1], "
                f"got {batch.dtype} {list(batch.shape)}"
            )
        shape = shape or batch.shape[1:]
        if batch.shape[1:] != shape:
            raise DataError(
                f"images of one set must share a shape: {list(shape)}, then {list(batch.shape[1:])}"
            )
        waiting.append(batch)
        held += len(batch)
        while held >= size:
            joined = torch.cat(waiting) if len(waiting) > 1 else waiting[0]
            yield joined[:size]
            waiting, held = [joined[size:]], held - size
    if held:
        yield torch.cat(waiting)


def _check_range(batch: Tensor) -> None:
    low, high = (float(v) for v in batch.aminmax())
    # Written so that NaN fails; samplers may leave the range by a rounding.
    if not (low >= -1.001 and high <= 1.001):
        raise DataError(
            f"images for a metric must be finite and in [-1, 1], found {low:.4g} to {high:.4g}: "
            "clip samples with .clamp(-1, 1), convert 8-bit images with x / 127.5 - 1"
        )
