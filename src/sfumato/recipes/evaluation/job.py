"""Carrying out a whole evaluation, and writing what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sfumato.errors import ConfigError, DataError
from sfumato.metrics.statistics_file import Provenance, write_statistics
from sfumato.processes import Processes, joined
from sfumato.recipes.evaluation.evaluate import evaluate
from sfumato.recipes.evaluation.explain import Convention, explain
from sfumato.recipes.evaluation.opening import broken_files
from sfumato.recipes.evaluation.outcome import Outcome
from sfumato.recipes.evaluation.page import add_to_report, write_page
from sfumato.recipes.evaluation.provenance import key_of, provenance
from sfumato.recipes.evaluation.sets import ImageSet, check_alike
from sfumato.recipes.evaluation.settings import DISTANCES, Settings
from sfumato.recipes.evaluation.table import FeatureTable
from sfumato.recipes.evaluation.task import Task
from sfumato.recipes.evaluation.workbench import Workbench


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
