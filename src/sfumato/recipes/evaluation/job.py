"""A whole evaluation: what is compared with what, where results go, and carrying it out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sfumato.errors import ConfigError, DataError
from sfumato.metrics.statistics_file import Provenance, read_statistics, write_statistics
from sfumato.processes import Processes, joined, own_device
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.evaluate import evaluate
from sfumato.recipes.evaluation.explain import Convention, explain
from sfumato.recipes.evaluation.opening import (
    Opened,
    broken_files,
    config_of,
    gone,
    open_set,
    unlike_training,
)
from sfumato.recipes.evaluation.outcome import Outcome
from sfumato.recipes.evaluation.page import add_to_report, write_page
from sfumato.recipes.evaluation.plan import Reference
from sfumato.recipes.evaluation.provenance import key_of, provenance
from sfumato.recipes.evaluation.sets import Drawn, ImageSet, Stored, check_alike
from sfumato.recipes.evaluation.settings import DISTANCES, Settings
from sfumato.recipes.evaluation.table import FeatureTable
from sfumato.recipes.evaluation.workbench import Workbench
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model
from sfumato.recipes.run_config import DataConfig
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.recipes.tuned import load_tuned, samplers

Choose = Callable[[SamplerConfig, Mapping[int, SamplerConfig]], SamplerConfig]
"""The run's own sampler, and the tuned ones by their calls, to the one that is meant."""


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
    notes: Sequence[str] = ()
    """What the reader should know of the sets."""

    def real_images(self) -> ImageSet:
        """The first reference that is images; ConfigError where there are statistics alone."""
        for reference in self.references:
            if reference.images is not None:
                return reference.images
        raise ConfigError("this needs real images to compare with, not their statistics: --data")


def of_run(
    which: str | Model,
    settings: Settings,
    places: Places,
    *,
    test: str = "",
    training: str = "",
    label: str | None = None,
    sampler: Choose = lambda default, tuned: default,
    opening: Callable[[DataConfig], DataConfig] = lambda default: default,
    weights: str = "ema",
    device: str = "cpu",
    asked: bool = True,
) -> Task:
    """Images drawn from a run against its test and training images.

    `which` is its folder, or what was loaded from it (then with its own weights, on its device).
    `test` and `training` name data in place of the run's own; `sampler` chooses from the run's
    sampler and those tuned for a number of calls, `opening` how its images are opened. Raises
    ConfigError where there is nothing to compare with, or the model needs images to start from.
    """
    device = own_device(device)
    model = which if isinstance(which, Model) else load(which, weights=weights, device=device)
    run = model.run
    assert model.path is not None
    config = config_of(run)
    if model.condition is not None:
        pairs = (config.data.test if config else "") or "PAIRS"
        raise ConfigError(
            f"this model needs images to start from ({model.condition.describe()}): use "
            "sfumato restore RUN IMAGE; to measure what it makes of test pairs: "
            f"sfumato restore {run} {pairs}/input -o RESTORED; "
            f"sfumato evaluate RESTORED {pairs}/target --metrics fd psnr"
        )
    how = opening(config.data if config else DataConfig(size=model.format.shape[1:]))
    known = [
        ("test images", test, config.data.test if config else "", "--data"),
        ("training images", training, config.data.data if config else "", "--training"),
    ]
    opened = Opened()
    for name, given, own, option in known:
        missing = "" if given or not own else gone(own, name, option)
        if missing:
            opened.notes.append(missing)
        elif given or own:
            opened.add(name, open_set(how, given or own, name), settings.reference_n)
    if not opened.sets and places.statistics is None:
        reasons = "; ".join(opened.notes) or "give --data IMAGES or --stats FILE"
        raise ConfigError(f"there is nothing to compare with: {reasons}")
    learned = opened.images.get("training images")
    if learned is not None and (unlike := unlike_training(model, learned)):
        opened.notes.append(unlike)
    out = places.out or run / "evaluation"
    cache = Cache(places.cache or out / "cache")
    tuned, notes = load_tuned(model)
    opened.notes += notes
    chosen = sampler(model.recipe.sampler, samplers(tuned))
    samples = [
        Drawn(
            model,
            settings.n,
            cache,
            seed=settings.seed + settings.n * repeat,
            label=label,
            sampler=chosen,
        )
        for repeat in range(settings.repeats)
    ]
    references = [Reference(name, images) for name, images in opened.sets.items()]
    if "test images" in opened.sets and learned is not None and len(learned) >= settings.n:
        real = Stored(learned, "training images, as many as samples", settings.n)
        references[0] = replace(references[0], real=real)
    return Task(
        f"{run.name}: {settings.n:,} samples of {model.path.name}",
        samples,
        [*references, *_stored(places)],
        opened.sets.get("training images"),
        opened.sets.get("test images"),
        settings,
        places,
        cache,
        out,
        device,
        asked,
        run,
        opened.notes,
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
    """One set of images judged by another, both opened as `opening` says.

    `b` may be "" where there are statistics to judge by.
    """
    if settings.repeats > 1:
        raise ConfigError("--repeats draws images anew, which stored images cannot: leave it out")
    # Pairs must stay pairs: then nothing is thinned.
    most = 0 if "psnr" in settings.metrics else settings.reference_n
    samples = Stored(open_set(opening, a, f"images {a}"), "samples")
    reference = Stored(open_set(opening, b, f"images {b}"), "reference", most) if b else None
    learned = None
    if training:
        learned = Stored(
            open_set(opening, training, "training images"), "training images", settings.reference_n
        )
    judge = b or str(places.statistics)
    names = (re.sub(r"[^\w.-]+", "-", Path(path).name) or "set" for path in (a, judge))
    out = places.out or Path("evaluations") / "-vs-".join(names)
    return Task(
        f"{a} against {judge}",
        [samples],
        [*([Reference("reference", reference)] if reference else []), *_stored(places)],
        learned,
        reference,
        settings,
        places,
        Cache(places.cache or out / "cache"),
        out,
        own_device(device),
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
        done = _outcome(task, processes, say if processes.first else lambda text: None)
    if done is None:
        return None
    outcome, saved = done
    outcome.seconds = time.perf_counter() - start
    return outcome, _write(task, outcome, saved)


def _outcome(
    task: Task, processes: Processes, say: Callable[[str], None]
) -> tuple[Outcome, FeatureTable | None] | None:
    """The numbers, and the features whose statistics are to be saved."""
    settings = task.settings
    first = _reference(task)
    labelled = task.training or task.held_out
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
    metric = _distance(settings)
    # All processes take part in features, so these come before the first goes on alone.
    saved, explained, unexplained = None, list[Convention](), ""
    if task.places.save_statistics is not None and first is not None:
        saved = bench.table(first, settings.extractor_for(metric))
    if settings.explain:
        try:
            explained = explain(bench, metric, task.samples[0], task.references[0])
        except DataError as error:  # the numbers are there: they are not thrown away
            unexplained = f"explain: {error}"
    if made is None:
        return None
    if unexplained:
        made.left_out.append(unexplained)
        made.failed = True
    sets = [*task.samples, *(r.images for r in task.references), task.training, task.held_out]
    distinct = {id(one): one for one in sets if one is not None}
    made.verdicts += [*task.notes, *broken_files(list(distinct.values()))]
    facts = provenance(
        bench, task.samples, task.references, task.training, task.held_out, task.device
    )
    return Outcome(task.title, made, facts, explained, metric), saved


def _check(task: Task) -> None:
    """Find what cannot work before anything is drawn."""
    settings, save = task.settings, task.places.save_statistics
    for reference in task.references:
        if reference.images is not None:
            check_alike(task.samples[0], reference.images)
    if _reference(task) is None and (settings.explain or save is not None):
        option = "--explain" if settings.explain else "--save-stats"
        raise ConfigError(f"{option} needs reference images, not only their statistics: --data")
    if save is None:
        return
    if settings.bands == "per-band" and task.samples[0].format.channels > 1:
        raise ConfigError("--save-stats writes one set of features: leave out --bands per-band")
    if save.suffix != ".npz" or save.is_dir():
        raise ConfigError(f"--save-stats writes a file NAME.npz, not {save}")
    save.parent.mkdir(parents=True, exist_ok=True)


def _write(task: Task, outcome: Outcome, saved: FeatureTable | None) -> dict[str, Path]:
    task.out.mkdir(parents=True, exist_ok=True)
    result = task.out / f"evaluation-{key_of(outcome.provenance)}.json"
    outcome.write_json(result)
    page = result.with_suffix(".html")
    write_page(page, outcome, task.samples[0], task.references)
    written = {"JSON": result, "page": page}
    report = task.run / "report.html" if task.run is not None else None
    if report is not None and report.is_file():
        add_to_report(report, outcome)
        written["report, section Quality"] = report
    file = task.places.save_statistics
    if file is not None and saved is not None:
        statistics, images = saved.statistics(), str(saved.images.description.get("images", ""))
        about = Provenance(
            saved.extractor.name, saved.extractor.fingerprint, saved.fed, statistics.count, images
        )
        write_statistics(file, statistics, about)
        written["statistics"] = file
    return written


def _reference(task: Task) -> ImageSet | None:
    return next((one.images for one in task.references if one.images is not None), None)


def _distance(settings: Settings) -> str:
    """The Fréchet distance that is explained, and whose statistics are saved."""
    return next((name for name in settings.metrics if name in DISTANCES), "fd")


def _stored(places: Places) -> list[Reference]:
    if places.statistics is None:
        return []
    return [Reference(places.statistics.name, statistics=read_statistics(places.statistics))]
