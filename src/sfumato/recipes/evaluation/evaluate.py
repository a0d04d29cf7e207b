"""An evaluation from sets of images to a table: which features are needed, then every metric."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sfumato.errors import DataError
from sfumato.metrics.features import Classifying
from sfumato.metrics.frechet import FeatureStatistics
from sfumato.metrics.per_class import ClassTable
from sfumato.recipes.evaluation import of_features, of_pixels
from sfumato.recipes.evaluation.plan import Plan, Reference, per_band, plan
from sfumato.recipes.evaluation.row import Row
from sfumato.recipes.evaluation.sets import Band, ImageSet
from sfumato.recipes.evaluation.settings import DISTANCES, OF_FEATURES
from sfumato.recipes.evaluation.table import FeatureTable
from sfumato.recipes.evaluation.workbench import Workbench

__all__ = ["Evaluation", "Reference", "evaluate"]


@dataclass
class Evaluation:
    """The table, and what belongs beside it."""

    rows: list[Row]
    classes: dict[str, ClassTable] = field(default_factory=dict[str, ClassTable])
    verdicts: list[str] = field(default_factory=list[str])
    left_out: list[str] = field(default_factory=list[str])
    """What these sets cannot have, and why."""
    failed: bool = False
    """Whether something the user named is among it."""


@dataclass(frozen=True)
class _Tables:
    """What one metric compares; `band` is above 0 for one band of several."""

    samples: FeatureTable
    target: FeatureTable | FeatureStatistics
    real: FeatureTable | None
    band: int = 0


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
    A metric that cannot be had is left out with the reason, and is a failure if `asked`: if the
    user named the metrics. DataError where none can be had.
    """
    ready = plan(bench, samples[0], references, training, held_out)
    for reason in ready.left_out:
        say(f"left out: {reason}")
    done = [_once(bench, one, ready, training, held_out, say) for one in samples]
    made = _joined([one for one in done if one is not None])
    if made is None:
        return None
    made.verdicts = [*ready.warnings, *made.verdicts]
    late = made.left_out
    made.left_out = [*ready.left_out, *late]
    made.failed = asked and bool(ready.impossible or late)
    if not made.rows and not made.classes:
        raise DataError("; ".join(made.left_out))
    made.rows.sort(key=lambda row: _order(row.metric))
    return made


def _once(
    bench: Workbench,
    samples: ImageSet,
    ready: Plan,
    training: ImageSet | None,
    held_out: ImageSet | None,
    say: Callable[[str], None],
) -> Evaluation | None:
    made = Evaluation([])
    bench.draw(samples)
    tables: dict[tuple[str, str], list[_Tables]] = {}
    pairs = [(metric, one) for metric, usable in ready.against.items() for one in usable]
    for metric, reference in pairs:
        if metric in OF_FEATURES:
            try:  # a failure is met by all processes alike
                tables[metric, reference.name] = _tables(bench, metric, samples, reference)
            except DataError as error:
                made.left_out.append(f"{metric}: {error}")
    if not bench.processes.first:
        return None
    for metric, reference in pairs:
        try:
            if metric not in OF_FEATURES:
                made.rows += _of_pixels(
                    metric, samples, reference, training, held_out, bench.settings.seed, made, say
                )
            elif (metric, reference.name) in tables:
                found = tables[metric, reference.name]
                made.rows += _of_features(bench, metric, found, reference.name, made)
        except DataError as error:
            made.left_out.append(f"{metric}: {error}")
    made.left_out = list(dict.fromkeys(made.left_out))
    return made


def _tables(
    bench: Workbench, metric: str, samples: ImageSet, reference: Reference
) -> list[_Tables]:
    """The features one metric needs of one reference, band by band where asked."""
    words = bench.settings.extractor_for(metric)

    def tables(ours: ImageSet, target: ImageSet, real: ImageSet | None, band: int) -> _Tables:
        floor = None if real is None else bench.table(real, words)
        return _Tables(bench.table(ours, words), bench.table(target, words), floor, band)

    target, real = reference.images, reference.real
    if target is None:
        ours = bench.table(samples, words)
        stored = reference.statistics
        return [_Tables(ours, ours if stored is None else stored.statistics, None)]
    if not per_band(bench, samples):
        return [tables(samples, target, real, 0)]
    return [
        tables(
            Band(samples, band),
            Band(target, band),
            None if real is None else Band(real, band),
            band + 1,
        )
        for band in range(samples.format.channels)
    ]


def _of_features(
    bench: Workbench, metric: str, tables: Sequence[_Tables], against: str, made: Evaluation
) -> list[Row]:
    """Rows of one metric against one reference, and their means over bands."""
    rows: list[Row] = []
    for one in tables:
        found = _rows(bench, metric, one, against, made)
        if one.band:
            found = [
                replace(
                    row, metric=f"{row.metric}-band-{one.band}", name=f"{row.name}, band {one.band}"
                )
                for row in found
            ]
        rows += found
    return _band_means(rows) + rows if len(tables) > 1 else rows


def _rows(
    bench: Workbench, metric: str, tables: _Tables, against: str, made: Evaluation
) -> list[Row]:
    ours, target, real = tables.samples, tables.target, tables.real
    if metric == "is":
        extractor: Classifying = ours.extractor  # pyright: ignore
        return of_features.inception(ours, real, extractor.class_source)
    if metric in DISTANCES:
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
            key = f"{against}, band {tables.band}" if tables.band else against
            made.classes[key] = of_features.classes(ours, target)
            return []


def _of_pixels(
    metric: str,
    samples: ImageSet,
    reference: Reference,
    training: ImageSet | None,
    held_out: ImageSet | None,
    seed: int,
    made: Evaluation,
    say: Callable[[str], None],
) -> list[Row]:
    if metric == "memorisation":
        assert training is not None
        assert held_out is not None
        say("memorisation: nearest neighbours")
        return of_pixels.memorised(samples, training, held_out)
    target = reference.images
    assert target is not None
    if metric == "psnr":
        return of_pixels.paired(samples, target, against=reference.name)
    if metric == "swd":
        say(f"sliced Wasserstein distance to {reference.name}")
        return of_pixels.sliced(samples, target, reference.real, against=reference.name, seed=seed)
    found, colours = of_pixels.colours(samples, target, against=reference.name)
    whole = "" if samples.format.dtype == "uint8" else " (255: the whole range of values)"
    made.verdicts.append(f"Against {reference.name}: {colours.verdict}{whole}")
    return found


def _band_means(rows: Sequence[Row]) -> list[Row]:
    """The mean over bands of each metric."""
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
                features=re.sub(r"band 1 of (\d+)", r"each of \1 bands", group[0].features),
            )
        )
    return means


def _joined(repeats: Sequence[Evaluation]) -> Evaluation | None:
    """All repeats as one: means of numbers, everything else of each."""
    if len(repeats) < 2:
        return repeats[0] if repeats else None
    made = Evaluation([])
    for index, one in enumerate(repeats, 1):
        made.verdicts += [f"Repeat {index}. {verdict}" for verdict in one.verdicts]
        made.left_out += [f"repeat {index}, {reason}" for reason in one.left_out]
        for against, table in one.classes.items():
            made.classes[f"{against} (repeat {index})"] = table
    tables = [{(row.metric, row.against): row for row in one.rows} for one in repeats]
    for key in dict.fromkeys(key for table in tables for key in table):
        same = [table[key] for table in tables if key in table]
        if len(same) == len(repeats):
            made.rows.append(_averaged(same))
        else:
            made.left_out.append(f"{key[0]}: only {len(same)} of {len(repeats)} repeats have it")
    return made


def _averaged(same: Sequence[Row]) -> Row:
    values = [row.value for row in same]
    spread = statistics.stdev(values)
    listed = ", ".join(f"{value:.4g}" for value in values)
    return replace(
        same[0],
        value=statistics.fmean(values),
        error=spread / len(values) ** 0.5,
        note=f"mean of {len(values)} repeats: {listed}; spread {spread:.3g}. {same[0].note}",
    )


def _order(metric: str) -> int:
    names = ("fid", "fd", "kid", "precision", "recall", "density", "coverage", "is", "swd")
    return next((i for i, name in enumerate(names) if metric.startswith(name)), len(names))
