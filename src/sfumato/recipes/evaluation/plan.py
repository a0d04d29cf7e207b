"""What can be measured of these sets and what cannot, found before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sfumato.errors import DataError
from sfumato.metrics.per_class import LEAST
from sfumato.metrics.statistics_file import StoredStatistics
from sfumato.recipes.evaluation.sets import Band, ImageSet, Stored, check_alike
from sfumato.recipes.evaluation.settings import DISTANCES, OF_FEATURES
from sfumato.recipes.evaluation.table import FeatureTable
from sfumato.recipes.evaluation.workbench import Workbench


@dataclass(frozen=True)
class Reference:
    """Real images (or their statistics) that samples are held against."""

    name: str
    images: ImageSet | None = None
    statistics: StoredStatistics | None = None
    real: ImageSet | None = None
    """As many other real images as there are samples: what the best model would score."""


@dataclass(frozen=True)
class Plan:
    """The references each metric is measured against, and why some of it is left out."""

    against: dict[str, list[Reference]]
    left_out: list[str] = field(default_factory=list[str])
    impossible: list[str] = field(default_factory=list[str])
    """Metrics that cannot be had at all; the reasons are in `left_out`."""
    warnings: list[str] = field(default_factory=list[str])


def plan(
    bench: Workbench,
    samples: ImageSet,
    references: Sequence[Reference],
    training: ImageSet | None,
    held_out: ImageSet | None,
) -> Plan:
    """Try every extractor and every metric's conditions.

    Raises DataError where no metric is possible, or statistics fit none, and what extractors
    raise: weights that are missing, labels for a classifier, images they cannot take.
    """
    metrics = bench.settings.metrics
    tried = _try_extractors(bench, samples)
    made = Plan({})
    for metric in metrics:
        if metric == "memorisation":
            reasons = [_of_memorisation(training, held_out)]
            usable = [Reference("")] if not reasons[0] else []
        else:
            reasons = [_obstacle(metric, samples, one, tried.get(metric)) for one in references]
            usable = [one for one, why in zip(references, reasons, strict=True) if not why]
        if metric == "is":  # of the samples alone; a reference only gives the real images' score
            usable, reasons = [*references[:1]], [""]
        if usable:
            made.against[metric] = usable
        else:
            made.impossible.append(metric)
        made.left_out.extend(f"{metric}: {why}" for why in dict.fromkeys(reasons) if why)
    if not made.against:
        raise DataError("; ".join(made.left_out))
    _check_statistics(made, references, tried)
    return made


def per_band(bench: Workbench, samples: ImageSet) -> bool:
    """Whether every band is measured by itself."""
    return bench.settings.bands == "per-band" and samples.format.channels > 1


_Tried = dict[str, tuple[FeatureTable, int, bool]]


def _try_extractors(bench: Workbench, samples: ImageSet) -> _Tried:
    """Each feature metric's extractor, how many features it gives, and whether band by band."""
    banded = per_band(bench, samples)
    seen = Band(samples, 0) if banded else samples
    tried: dict[str, tuple[FeatureTable, int]] = {}
    made: _Tried = {}
    for metric in bench.settings.metrics:
        if metric in OF_FEATURES:
            words = bench.settings.extractor_for(metric)
            if words not in tried:
                tried[words] = bench.try_out(seen, words)
            made[metric] = (*tried[words], banded)
    return made


def _obstacle(
    metric: str,
    samples: ImageSet,
    reference: Reference,
    tried: tuple[FeatureTable, int, bool] | None,
) -> str:
    """Why this metric cannot be measured against this reference; "" where it can."""
    if reference.images is not None:
        try:
            check_alike(samples, reference.images)
            if metric == "psnr":
                _check_pairs(samples, reference.images)
            if metric == "classes":
                _check_classes(samples, reference.images)
        except DataError as error:
            return str(error)
        return ""
    assert reference.statistics is not None
    if metric not in DISTANCES or tried is None:
        return f"it needs images, and {reference.name} holds only their statistics: give --data"
    table, width, banded = tried
    if banded:
        return f"{reference.name} holds statistics of no single band: leave out --bands per-band"
    return mismatch(reference.name, reference.statistics, table, width)


def mismatch(name: str, stored: StoredStatistics, table: FeatureTable, width: int) -> str:
    """Why statistics cannot be compared with the features of a table, `width` an image."""
    told = stored.provenance
    extractor = table.extractor
    if told is not None and told.fingerprint != extractor.fingerprint:
        return (
            f"{name} holds features of {told.extractor} (weights {told.fingerprint}), not of "
            f"{extractor.name} (weights {extractor.fingerprint}): choose the same --features"
        )
    if stored.statistics.dimensions != width:
        return (
            f"{name} holds {stored.statistics.dimensions} features an image, and "
            f"{extractor.name} gives {width}: choose the same --features"
        )
    if told is not None and told.resize != table.fed:
        return (
            f"{name} was made as '{told.resize}', and the samples would be seen as "
            f"'{table.fed}': choose the same --resize, --bands and --feed-size"
        )
    return ""


def _check_statistics(made: Plan, references: Sequence[Reference], tried: _Tried) -> None:
    """DataError for statistics that nothing is measured against; else what they leave open."""
    for reference in references:
        if reference.statistics is None:
            continue
        if not any(reference in usable for m, usable in made.against.items() if m in DISTANCES):
            reasons = [_obstacle(m, tried[m][0].images, reference, tried[m]) for m in tried]
            wanted = [why for m, why in zip(tried, reasons, strict=True) if m in DISTANCES]
            raise DataError(
                wanted[0]
                if wanted
                else f"{reference.name} serves only {', '.join(DISTANCES)}: "
                "name one of them in --metrics, or leave --stats out"
            )
        if reference.statistics.warning:
            made.warnings.append(reference.statistics.warning)


def _of_memorisation(training: ImageSet | None, held_out: ImageSet | None) -> str:
    if training is None:
        return "the test needs the training images: give --training IMAGES"
    if held_out is None:
        return "the test needs images the model was not trained on: give --data IMAGES"
    return ""


def _check_classes(samples: ImageSet, reference: ImageSet) -> None:
    counts: list[int] = []
    for images in (samples, reference):
        labels = images.labels()
        if labels is None:
            raise DataError(
                f"a table per class needs labels, and the {images.name} have none: train with "
                "--classes, or give --classes and folders with a sub-folder for each class"
            )
        counts.append(int(np.bincount(labels).max()))
    if samples.classes != reference.classes:
        raise DataError(
            f"a table per class needs the same classes in both sets: the {samples.name} have "
            f"{_listed(samples.classes)}, the {reference.name} {_listed(reference.classes)}"
        )
    if min(counts) < LEAST:
        raise DataError(
            f"a table per class needs at least {LEAST} images of a class in both sets, and the "
            f"fullest class of one has {min(counts)}: draw more (-n), or leave classes out"
        )


def _check_pairs(a: ImageSet, b: ImageSet) -> None:
    """DataError where image i of one set has no partner in image i of the other."""
    if not (isinstance(a, Stored) and isinstance(b, Stored)):
        raise DataError(
            f"psnr compares pairs, and a drawn image has no partner among the {b.name}: "
            "give two sets of images with the same file names"
        )
    if len(a) != len(b):
        raise DataError(
            f"psnr compares pairs, but there are {len(a):,} {a.name} and {len(b):,} {b.name}: "
            "give two folders with the same file names"
        )
    ours, theirs = a.stems(), b.stems()
    if ours is None or theirs is None:
        return
    for one, other in zip(ours, theirs, strict=True):
        if one != other:
            raise DataError(
                f"psnr compares pairs, but {one!r} of the {a.name} would meet {other!r} of the "
                f"{b.name}: give two folders with the same file names"
            )


def _listed(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:10])
    return shown + (f", ... ({len(classes)})" if len(classes) > 10 else "")
