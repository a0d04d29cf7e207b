"""An evaluation from sets of images to a table: which features are needed, then every metric."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sfumato.errors import ConfigError, DataError
from sfumato.metrics.features import Classifying, FeatureExtractor
from sfumato.metrics.frechet import FeatureStatistics
from sfumato.metrics.per_class import ClassTable
from sfumato.metrics.statistics_file import StoredStatistics
from sfumato.recipes.evaluation import of_features, of_pixels
from sfumato.recipes.evaluation.row import Row
from sfumato.recipes.evaluation.sets import Band, ImageSet, check_alike
from sfumato.recipes.evaluation.settings import OF_FEATURES, Settings
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


@dataclass
class Evaluation:
    """The table, and what belongs beside it."""

    rows: list[Row]
    classes: dict[str, ClassTable] = field(default_factory=dict[str, ClassTable])
    verdicts: list[str] = field(default_factory=list[str])
    left_out: list[str] = field(default_factory=list[str])
    """Metrics asked for by default that these sets cannot have, and why."""


def evaluate(
    bench: Workbench,
    samples: Sequence[ImageSet],
    references: Sequence[Reference],
    training: ImageSet | None,
    held_out: ImageSet | None,
    *,
    asked: bool,
    say: Callable[[str], None],
) -> Evaluation | None:
    """Measure every repeat of the samples; None in all processes but the first.

    With several repeats, values are means and errors the standard error of the mean over them.
    `asked` says that the user named the metrics: then one that cannot be had is an error.
    """
    done = [
        _once(bench, one, references, training, held_out, asked=asked, say=say) for one in samples
    ]
    first = done[0]
    if first is None:
        return None
    if len(done) > 1:
        first.rows = _averaged([one.rows for one in done if one is not None])
    return first


def _once(
    bench: Workbench,
    samples: ImageSet,
    references: Sequence[Reference],
    training: ImageSet | None,
    held_out: ImageSet | None,
    *,
    asked: bool,
    say: Callable[[str], None],
) -> Evaluation | None:
    settings, made = bench.settings, Evaluation([])
    bench.draw(samples)
    for metric in settings.metrics:
        if metric in OF_FEATURES:
            for reference in references:
                if reference.images is not None:
                    check_alike(samples, reference.images)
                found = _of_features(bench, metric, samples, reference, made)
                made.rows += found
                if metric == "is":
                    break
    if not bench.processes.first:
        return None
    for metric in settings.metrics:
        if metric in OF_FEATURES:
            continue
        try:
            made.rows += _of_pixels(
                metric, samples, references, training, held_out, settings.seed, made, say
            )
        except DataError as error:
            if asked:
                raise
            made.left_out.append(f"{metric}: {error}")
    made.rows.sort(key=lambda row: _order(row.metric))
    return made


def _of_features(
    bench: Workbench, metric: str, samples: ImageSet, reference: Reference, made: Evaluation
) -> list[Row]:
    """Rows of one metric against one reference, band by band where asked."""
    words = bench.settings.extractor_for(metric)
    per_band = bench.settings.bands == "per-band" and samples.format.channels > 1
    if not per_band or reference.images is None:
        return _rows(bench, metric, words, samples, reference, made)
    rows: list[Row] = []
    for band in range(samples.format.channels):
        real = None if reference.real is None else Band(reference.real, band)
        one = replace(reference, images=Band(reference.images, band), real=real)
        rows += [
            replace(
                row, metric=f"{row.metric}-band-{band + 1}", name=f"{row.name}, band {band + 1}"
            )
            for row in _rows(bench, metric, words, Band(samples, band), one, made)
        ]
    return rows + _band_means(rows)


def _rows(
    bench: Workbench,
    metric: str,
    words: str,
    samples: ImageSet,
    reference: Reference,
    made: Evaluation,
) -> list[Row]:
    ours = bench.table(samples, words)
    real = None if reference.real is None else bench.table(reference.real, words)
    if metric == "is":
        if not bench.processes.first:
            return []
        extractor: Classifying = ours.extractor  # pyright: ignore
        return of_features.inception(ours, real, extractor.class_source)
    if reference.images is not None:
        target = bench.table(reference.images, words)
    elif metric in ("fd", "fid", "fd-efficientnet") and reference.statistics is not None:
        target = _checked(reference, bench.extractor(words), made)
    else:
        raise ConfigError(
            f"{metric} needs the reference images themselves, not their statistics: give --data, "
            "or ask for --metrics fd (or fid) alone"
        )
    if not bench.processes.first:
        return []
    against = reference.name
    if metric in ("fd", "fid", "fd-efficientnet"):
        return of_features.frechet(
            metric,
            ours,
            target,
            real,
            against=against,
            infinity=bench.settings.infinity,
            seed=bench.settings.seed,
        )
    assert isinstance(target, FeatureTable)
    match metric:
        case "kid":
            return of_features.kernel(ours, target, real, against=against)
        case "pr":
            return of_features.manifold(ours, target, real, against=against)
        case _:
            made.classes[against] = of_features.classes(ours, target)
            return []


def _checked(
    reference: Reference, extractor: FeatureExtractor, made: Evaluation
) -> FeatureStatistics:
    """The statistics of a file, refused where they are of another extractor."""
    stored = reference.statistics
    assert stored is not None
    if stored.provenance is not None and stored.provenance.fingerprint != extractor.fingerprint:
        raise DataError(
            f"{reference.name} holds features of {stored.provenance.extractor}, not of "
            f"{extractor.name}: choose the same --features"
        )
    if stored.warning and stored.warning not in made.verdicts:
        made.verdicts.append(stored.warning)
    return stored.statistics


def _of_pixels(
    metric: str,
    samples: ImageSet,
    references: Sequence[Reference],
    training: ImageSet | None,
    held_out: ImageSet | None,
    seed: int,
    made: Evaluation,
    say: Callable[[str], None],
) -> list[Row]:
    if metric == "memorisation":
        if training is None or held_out is None:
            raise DataError(
                "the memorisation test needs training images and images held out: "
                "give --data with images the model was not trained on"
            )
        say("memorisation: nearest neighbours")
        return of_pixels.memorised(samples, training, held_out)
    rows: list[Row] = []
    for reference in references:
        target = reference.images
        if target is None:
            continue
        check_alike(samples, target)
        if metric == "psnr":
            rows += of_pixels.paired(samples, target, against=reference.name)
        elif metric == "swd":
            say(f"sliced Wasserstein distance to {reference.name}")
            rows += of_pixels.sliced(
                samples, target, reference.real, against=reference.name, seed=seed
            )
        else:
            found, colours = of_pixels.colours(samples, target, against=reference.name)
            rows += found
            made.verdicts.append(f"Against {reference.name}: {colours.verdict}")
    return rows


def _band_means(rows: Sequence[Row]) -> list[Row]:
    """The mean over bands of each metric; its error is that of independent bands."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.metric.rpartition("-band-")[0], []).append(row)
    means: list[Row] = []
    for metric, group in groups.items():
        name = group[0].name.rpartition(", band")[0]
        reals = [row.real for row in group if row.real is not None]
        means.append(
            replace(
                group[0],
                metric=metric,
                name=f"{name}, mean of {len(group)} bands",
                value=statistics.fmean(row.value for row in group),
                real=statistics.fmean(reals) if len(reals) == len(group) else None,
                error=None,
            )
        )
    return means


def _averaged(repeats: Sequence[Sequence[Row]]) -> list[Row]:
    rows: list[Row] = []
    for same in zip(*repeats, strict=True):
        values = [row.value for row in same]
        spread = statistics.stdev(values)
        listed = ", ".join(f"{value:.4g}" for value in values)
        rows.append(
            replace(
                same[0],
                value=statistics.fmean(values),
                error=spread / len(values) ** 0.5,
                note=f"mean of {len(values)} repeats: {listed}; spread {spread:.3g}. "
                + same[0].note,
            )
        )
    return rows


def _order(metric: str) -> int:
    names = ("fid", "fd", "kid", "precision", "recall", "density", "coverage", "is", "swd")
    return next((i for i, name in enumerate(names) if metric.startswith(name)), len(names))


def provenance(
    samples: Sequence[ImageSet], references: Sequence[Reference], settings: Settings
) -> dict[str, Any]:
    """What the numbers were computed from, as plain values."""
    form = samples[0].format
    quantised = "float, as given" if form.levels is None else f"{form.levels} levels, to nearest"
    return {
        "samples": [dict(one.description) for one in samples],
        "references": {
            ref.name: (
                dict(ref.images.description) if ref.images is not None else {"statistics": True}
            )
            for ref in references
        },
        "pixels": form.describe(),
        "quantisation": quantised,
        "settings": {
            "metrics": list(settings.metrics),
            "features": settings.features,
            "resize": settings.resize or "the extractor's own",
            "bands": settings.bands,
            "seed": settings.seed,
        },
    }
