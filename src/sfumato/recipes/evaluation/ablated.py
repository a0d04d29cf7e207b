"""The trained cells of an ablation, measured alike, as tables in the paper's shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from sfumato.errors import MissingExtraError
from sfumato.files import write_json
from sfumato.processes import Processes
from sfumato.recipes.ablations import Ablation, Cell
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.compare import compare
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.evaluation.outcome import number
from sfumato.recipes.evaluation.sets import ImageSet, pixels
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.task import Places, of_run
from sfumato.recipes.evaluation.trials import Trial
from sfumato.recipes.evaluation.workbench import Workbench
from sfumato.recipes.likelihood import Asked, Measurer
from sfumato.recipes.likelihood_results import Mean
from sfumato.recipes.model import Model
from sfumato.report import plots
from sfumato.report.grid import image_grid, png_bytes
from sfumato.report.html import Picture, Report
from sfumato.solvers.cost import evaluations
from sfumato.training.checkpoint import read_description

_SHOWN = 8


@dataclass(frozen=True)
class Measured:
    """A cell's numbers, and how it was trained."""

    row: str
    column: str
    frechet: float
    error: float | None
    """One standard error."""
    bits: Mean | None
    """The bound of real images in bits per dimension, where asked for."""
    parameters: int
    images: int
    seconds: float
    """Of its training so far."""


def measure(
    cell: Cell, out: Path, settings: Settings, test: str, device: str,
    say: Callable[[str], None], *, bits: bool,
) -> tuple[Measured, torch.Tensor]:  # fmt: skip
    """Measure one trained cell; also return its first images [n, C, H, W] in [-1, 1]."""
    run = out / cell.run
    path = run if cell.step is None else run / "checkpoints" / f"{cell.step:08d}"
    task = of_run(str(path), settings, Places(run, out / "cache"), test=test, device=device)
    reference, (sample, *_) = task.real_images(), task.samples
    assert isinstance(sample, Drawn)
    model = sample.model
    sampler = model.recipe.sampler
    calls = evaluations(model.solver(sampler), len(model.grid(sampler)) - 1)
    trial = Trial(f"{cell.row} {cell.column}", calls, sampler)
    ((result, drawn),) = compare(
        model, [trial], reference, settings, task.cache, device=device, say=say
    )
    assert result.frechet is not None
    assert model.path is not None
    found = Measured(
        cell.row,
        cell.column,
        result.frechet,
        result.error,
        _bits(model, reference, settings, task.cache) if bits else None,
        sum(p.numel() for p in model.network.parameters()),
        model.images_seen,
        float(read_description(model.path)["describe"]["seconds"]),
    )
    return found, pixels(drawn, 0)[:_SHOWN]


def _bits(model: Model, images: ImageSet, settings: Settings, cache: Cache) -> Mean:
    measurer = Measurer(model, Asked(settings.n, flow=0, seed=settings.seed), cache)
    measurer.fit(images)
    with tqdm(total=measurer.total(images), desc="bound", unit="image", leave=False) as bar:
        return measurer.measure(images, bar.update).rows()["bound"]


def try_features(words: str, device: str) -> None:
    """Raise ConfigError or MissingExtraError, before training, for features that cannot be had."""
    if words != "classifier":  # that one is trained on the images
        Workbench(
            Settings(("fd",), features=words), Cache(Path()), Processes(), None, None, device
        ).extractor(words)


def tables_of(ablation: Ablation, found: Sequence[Measured]) -> dict[str, list[list[str]]]:
    """Return what was measured by its name: each table's cells as text, the header first."""
    made = {"Fréchet distance": _table(ablation, found, _distance)}
    if ablation.bits:
        made["Bits per dimension (bound)"] = _table(ablation, found, lambda one: str(one.bits))
    return made


def _table(
    ablation: Ablation, found: Sequence[Measured], words: Callable[[Measured], str]
) -> list[list[str]]:
    cells = {(one.row, one.column): words(one) for one in found}
    shown = [c for c in ablation.columns if any(one.column == c for one in found)]
    lines = [["", "training configuration", *(ablation.columns[column] for column in shown)]]
    for row, text in ablation.rows.items():
        values = [cells.get((row, column)) for column in shown]
        if any(values):
            lines.append([row, text, *(value or "-" for value in values)])
    return lines


def _distance(one: Measured) -> str:
    return number(one.frechet) + ("" if one.error is None else f" ± {one.error:.2g}")


def in_lines(table: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal."""
    widths = [max(len(row[i]) for row in table) + 2 for i in range(len(table[0]))]
    return "\n".join(
        "".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def write_ablation(
    out: Path, ablation: Ablation, found: Sequence[tuple[Measured, torch.Tensor]],
    facts: dict[str, str],
) -> dict[str, Path]:  # fmt: skip
    """Write ablation.json and ablation.html; return their paths."""
    paths = {"JSON": out / "ablation.json", "page": out / "ablation.html"}
    measured = [one for one, _ in found]
    kept = {"cells": [asdict(one) for one in measured], "facts": facts}
    write_json(paths["JSON"], kept)
    page = Report(ablation.title, "", kind="Sfumato · ablation")
    about = ablation.about
    for name, table in tables_of(ablation, measured).items():
        page.section(name, about)
        page.table(table[1:], table[0])
        about = "The bound on the same real images; ± is half its 95 % interval over them."
    if ablation.save_every:
        _curves(page, ablation, measured)
    page.section("Pictures", "The same seeds in every row.")
    for column in dict.fromkeys(one.column for one in measured):
        rows = [(one.row, shown) for one, shown in found if one.column == column]
        grid = image_grid(torch.cat([shown for _, shown in rows]), columns=len(rows[0][1]))
        caption = f"{column}; from above: {', '.join(row for row, _ in rows)}"
        page.figures([Picture(png_bytes(grid), caption, f"samples of {column}")])
    page.section("Training")
    page.table(
        [
            (f"{one.row} {one.column}", f"{one.parameters:,}", f"{one.images:,}",
             f"{one.seconds:.0f}")
            for one in measured
        ],
        ("cell", "parameters", "images", "seconds"),
    )  # fmt: skip
    page.section("Provenance")
    page.facts(facts)
    page.write(paths["page"])
    return paths


def _curves(page: Report, ablation: Ablation, found: Sequence[Measured]) -> None:
    measures: dict[str, Callable[[Measured], float]] = {"Fréchet distance": lambda one: one.frechet}
    if ablation.bits:
        measures["bits per dimension"] = lambda one: one.bits.bits if one.bits else float("nan")
    page.section("By training time")
    try:
        for name, value in measures.items():
            series = {
                words: [(one.seconds, value(one)) for one in found if one.column == column]
                for column, words in ablation.columns.items()
                if any(one.column == column for one in found)
            }
            page.figure(plots.by_training_time(series, name), "", f"{name} by training time")
    except MissingExtraError:
        page.missing("The plots", "matplotlib", "train")
