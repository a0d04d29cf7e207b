"""Metrics of features: each turns tables of samples and of real images into rows."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import DataError
from sfumato.metrics.classifier import Classifier
from sfumato.metrics.frechet import FeatureStatistics, frechet_distance, frechet_distances
from sfumato.metrics.frechet_infinity import frechet_infinity
from sfumato.metrics.inception_score import inception_score
from sfumato.metrics.kernel import kernel_distance
from sfumato.metrics.manifold import manifold_scores
from sfumato.metrics.per_class import ClassTable, class_distances
from sfumato.metrics.thinning import spread
from sfumato.recipes.evaluation.row import Row
from sfumato.recipes.evaluation.table import FeatureTable
from sfumato.recipes.real_images import MOST_BYTES

_MOST = 10_000
_BLOCKS = 10


def frechet(
    metric: str,
    samples: FeatureTable,
    reference: FeatureTable | FeatureStatistics,
    real: FeatureTable | None,
    *,
    against: str,
    infinity: bool,
    seed: int,
) -> list[Row]:
    """The Fréchet distance with its jackknife error, and its value extrapolated to n = infinity."""
    target = reference if isinstance(reference, FeatureStatistics) else reference.statistics()
    if min(len(samples), target.count) < 2:
        raise DataError(
            f"the Fréchet distance needs at least 2 images of each set and means little below "
            f"1,000, got {len(samples)} and {target.count}"
        )
    whole = samples.statistics()
    error = _jackknife(samples, target)
    dimensions = whole.dimensions
    note = (
        f"{len(samples)} samples are fewer than the {dimensions} features: biased far upwards"
        if len(samples) <= dimensions
        else "biased upwards by about 1/n: compare equal n"
    )
    row = Row(
        metric,
        "Fréchet distance",
        frechet_distance(whole, target),
        against,
        error,
        None if real is None else frechet_distance(real.statistics(), target),
        n=len(samples),
        n_reference=target.count,
        features=samples.name,
        note=_noted(samples, note),
    )
    if not infinity:
        return [row]
    rows = samples.rows(_affordable(dimensions))
    limit = frechet_infinity(rows, target, np.random.default_rng(seed))
    note = f"line through n = {', '.join(map(str, limit.sizes))}; the reference's bias stays"
    beyond = Row(
        f"{metric}-infinity",
        "Fréchet distance, n to infinity",
        limit.value,
        against,
        limit.error,
        n=len(rows),
        n_reference=target.count,
        features=samples.name,
        note=_noted(samples, note + (f"; {limit.caution}" if limit.caution else "")),
    )
    return [row, beyond]


def _jackknife(samples: FeatureTable, target: FeatureStatistics) -> float | None:
    """One standard error from leaving out each tenth of the samples; None for too few."""
    if len(samples) < 2 * _BLOCKS:
        return None
    parts = samples.parts(_BLOCKS)

    def without(index: int) -> FeatureStatistics:
        made = FeatureStatistics(target.dimensions)
        for other, part in enumerate(parts):
            if other != index:
                made.merge(part)
        return made

    values = np.asarray(frechet_distances(target, map(without, range(_BLOCKS))))
    return math.sqrt((_BLOCKS - 1) * float(values.var()))


def kernel(
    samples: FeatureTable, reference: FeatureTable, real: FeatureTable | None, *, against: str
) -> list[Row]:
    """KID times 1000, unbiased, with its standard error."""
    target = reference.rows(_MOST)
    found = kernel_distance(samples.rows(_MOST), target)
    floor = None if real is None else 1000 * kernel_distance(real.rows(_MOST), target).value
    row = Row(
        "kid",
        "Kernel distance x 1000",
        1000 * found.value,
        against,
        1000 * found.error,
        floor,
        n=found.m,
        n_reference=found.n,
        features=samples.name,
        note=_noted(samples, "unbiased at any n; below 0 by chance where the sets agree"),
    )
    return [row]


def manifold(
    samples: FeatureTable, reference: FeatureTable, real: FeatureTable | None, *, against: str
) -> list[Row]:
    """Precision, recall, density and coverage, at equal sizes of both sets."""
    size = min(len(samples), len(reference), _MOST)
    target = reference.rows(size)
    found = manifold_scores(target, samples.rows(size))
    floor = None
    if real is not None and len(real) >= size:
        floor = manifold_scores(target, real.rows(size))
    texts = {
        "precision": f"share of samples among the real images (k = {found.k})",
        "recall": f"share of real images among the samples (k = {found.k})",
        "density": f"how deep among them (k = {found.k_coverage}); 1 for a perfect model",
        "coverage": f"share of real images with a sample near (k = {found.k_coverage}); "
        f"{found.expected_coverage:.3f} for a perfect model",
    }
    return [
        Row(
            name,
            name.capitalize(),
            getattr(found, name),
            against,
            None,
            None if floor is None else getattr(floor, name),
            "nearer to real" if name == "density" else "higher",
            size,
            size,
            samples.name,
            _noted(samples, text),
        )
        for name, text in texts.items()
    ]


def inception(samples: FeatureTable, real: FeatureTable | None, source: str) -> list[Row]:
    """The Inception Score, named after whose classes it is of."""
    splits = 10 if len(samples) >= 1000 else 1
    most = _affordable(samples.class_probabilities(1).shape[1])
    found = inception_score(samples.class_probabilities(most), splits)
    floor = None
    if real is not None and len(real) >= found.n:
        floor = inception_score(real.class_probabilities(found.n), splits).mean
    row = Row(
        "is",
        f"Inception Score ({source})",
        found.mean,
        "",
        None if found.std is None else found.std / math.sqrt(splits),
        floor,
        "higher",
        found.n,
        0,
        samples.name,
        _noted(samples, f"{splits} splits, {found.classes} classes"),
    )
    return [row]


def classes(samples: FeatureTable, reference: FeatureTable) -> ClassTable:
    """Fréchet distance class by class."""
    most = _affordable(samples.rows(1).shape[1])
    return class_distances(
        samples.rows(most),
        _labels(samples, most),
        reference.rows(most),
        _labels(reference, most),
        reference.images.classes,
    )


def _labels(table: FeatureTable, most: int) -> Tensor | None:
    """The labels of `table.rows(most)`, where they are known."""
    labels = table.images.labels()
    return None if labels is None else torch.from_numpy(labels[spread(len(labels), most)])


def _affordable(width: int) -> int:
    """How many rows of so many numbers may lie in memory."""
    return max(_MOST, MOST_BYTES // (4 * width))


def _noted(table: FeatureTable, note: str) -> str:
    """A note, and a warning where the features are not to be trusted."""
    extractor = table.extractor
    caution = extractor.caution if isinstance(extractor, Classifier) else None
    return f"{note}; {caution}" if caution else note
