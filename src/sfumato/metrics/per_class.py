"""The Fréchet distance class by class: which classes does the model draw badly?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import DataError
from sfumato.metrics.frechet import FeatureStatistics, frechet_distance
from sfumato.metrics.rows import feature_pair

LEAST = 50
"""Images of a class below which its distance says nothing."""


@dataclass(frozen=True)
class ClassDistance:
    """One row of the table."""

    name: str
    distance: float
    """Fréchet distance between the class's samples and its real images."""
    n_fake: int
    n_real: int


@dataclass(frozen=True)
class ClassTable:
    """Fréchet distance of every class with enough images."""

    rows: tuple[ClassDistance, ...]
    """In the order of the classes; counts matter, as few images raise the distance."""
    too_few: tuple[str, ...]
    """Classes left out, each with its counts."""
    least: int
    """Images a class needs on either side."""

    @property
    def worst_first(self) -> tuple[ClassDistance, ...]:
        """The rows, largest distance first."""
        return tuple(sorted(self.rows, key=lambda row: -row.distance))


def class_distances(
    fake: Tensor,
    fake_labels: Tensor | None,
    real: Tensor,
    real_labels: Tensor | None,
    classes: Sequence[str],
    least: int = LEAST,
) -> ClassTable:
    """Fréchet distances per class of feature rows [n, F] with labels [n], 0 to len(classes) - 1.

    Classes with fewer than `least` images on either side are named and left out. DataError when
    labels are missing or do not fit, or when no class is left.
    """
    if least < 2:
        raise ValueError(f"a covariance needs at least 2 images, so `least` cannot be {least}")
    fake, real = feature_pair(fake, real, 2, "a table per class")
    fake_labels = _labels(fake_labels, fake, classes, "samples")
    real_labels = _labels(real_labels, real, classes, "real images")
    rows: list[ClassDistance] = []
    too_few: list[str] = []
    for label, name in enumerate(classes):
        ours, theirs = fake[fake_labels == label], real[real_labels == label]
        if min(len(ours), len(theirs)) < least:
            too_few.append(f"{name} ({len(ours)} samples, {len(theirs)} real)")
            continue
        distance = frechet_distance(_statistics(ours), _statistics(theirs))
        rows.append(ClassDistance(name, distance, len(ours), len(theirs)))
    if not rows:
        raise DataError(
            f"a table per class needs at least {least} samples and real images of a class, "
            f"got {'; '.join(too_few) or 'no class'}"
        )
    return ClassTable(tuple(rows), tuple(too_few), least)


def _labels(labels: Tensor | None, rows: Tensor, classes: Sequence[str], whose: str) -> Tensor:
    if labels is None:
        raise DataError(
            f"a table per class needs labels, and the {whose} have none: give a labelled set "
            "(a folder per class), or leave the table out"
        )
    if labels.shape != rows.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"expected whole-number labels [{len(rows)}] for the {whose}, "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise DataError(
            f"labels of the {whose} run from {low} to {high}, "
            f"but there are {len(classes)} classes (0 to {len(classes) - 1})"
        )
    return labels.to(rows.device)


def _statistics(rows: Tensor) -> FeatureStatistics:
    made = FeatureStatistics(rows.shape[1])
    made.update(np.asarray(rows.cpu().numpy(), np.float64))
    return made
