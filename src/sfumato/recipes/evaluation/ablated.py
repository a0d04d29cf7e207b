"""The trained cells of an ablation, measured alike, as a table in the paper's shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sfumato.files import write_bytes
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.compare import compare
from sfumato.recipes.evaluation.job import Places, of_run
from sfumato.recipes.evaluation.outcome import number
from sfumato.recipes.evaluation.processes import Processes
from sfumato.recipes.evaluation.sets import pixels
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.trials import Trial
from sfumato.recipes.evaluation.workbench import Workbench
from sfumato.recipes.model import load
from sfumato.report.grid import image_grid, png_bytes
from sfumato.report.html import Picture, Report

_SHOWN = 8


@dataclass(frozen=True)
class Measured:
    """A cell's Fréchet distance with its standard error, and how it was trained."""

    row: str
    column: str
    frechet: float
    error: float | None
    parameters: int
    images: int
    seconds: float


def measure(
    folder: Path, row: str, column: str, settings: Settings, test: str, cache: Path, device: str,
    say: Callable[[str], None],
) -> tuple[Measured, torch.Tensor]:  # fmt: skip
    """Measure one trained cell; also return its first images [n, C, H, W] in [-1, 1]."""
    task = of_run(str(folder), settings, Places(folder, cache), test=test, device=device)
    reference = task.real_images()
    model = load(folder, device=device)
    sampler = model.recipe.sampler
    trial = Trial(f"{row} {column}", 2 * sampler.steps - 1, sampler)
    ((result, drawn),) = compare(
        model, [trial], reference, settings, task.cache, device=device, say=say
    )
    assert result.frechet is not None
    parameters = sum(p.numel() for p in model.network.parameters())
    assert model.path is not None
    seconds = _seconds(model.path)
    found = Measured(
        row, column, result.frechet, result.error, parameters, model.images_seen, seconds
    )
    return found, pixels(drawn, 0)[:_SHOWN]


def _seconds(checkpoint: Path) -> float:
    from sfumato.training.checkpoint import read_description

    return float(read_description(checkpoint)["describe"]["seconds"])


def try_features(words: str, device: str) -> None:
    """Raise ConfigError or MissingExtraError, before training, for features that cannot be had."""
    if words != "classifier":  # that one is trained on the images
        Workbench(
            Settings(("fd",), features=words), Cache(Path()), Processes(), None, None, device
        ).extractor(words)


def table_of(
    found: Sequence[Measured], rows: Mapping[str, str], columns: Mapping[str, str]
) -> list[list[str]]:
    """Return the table's cells as text, the header first."""
    cells = {(one.row, one.column): one for one in found}
    shown = [column for column in columns if any(one.column == column for one in found)]
    lines = [["", "training configuration", *(columns[column] for column in shown)]]
    for row, text in rows.items():
        values = [cells.get((row, column)) for column in shown]
        if any(values):
            lines.append([row, text, *("-" if v is None else _in_words(v) for v in values)])
    return lines


def _in_words(one: Measured) -> str:
    return number(one.frechet) + ("" if one.error is None else f" ± {one.error:.2g}")


def in_lines(table: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal."""
    widths = [max(len(row[i]) for row in table) + 2 for i in range(len(table[0]))]
    return "\n".join(
        "".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def write_ablation(
    out: Path,
    title: str,
    about: str,
    table: Sequence[Sequence[str]],
    found: Sequence[tuple[Measured, torch.Tensor]],
    facts: Mapping[str, str],
) -> dict[str, Path]:
    """Write ablation.json and ablation.html; return their paths."""
    paths = {"JSON": out / "ablation.json", "page": out / "ablation.html"}
    kept = {"cells": [asdict(one) for one, _ in found], "facts": dict(facts)}
    write_bytes(paths["JSON"], json.dumps(kept, indent=1, ensure_ascii=False).encode())
    page = Report(title, "", kind="Sfumato · ablation")
    page.section("Fréchet distance", about)
    page.table(table[1:], table[0])
    page.section("Pictures", "The same seeds in every row.")
    for column in dict.fromkeys(one.column for one, _ in found):
        rows = [(one.row, shown) for one, shown in found if one.column == column]
        grid = image_grid(torch.cat([shown for _, shown in rows]), columns=len(rows[0][1]))
        caption = f"{column}; from above: {', '.join(row for row, _ in rows)}"
        page.figures([Picture(png_bytes(grid), caption, f"samples of {column}")])
    page.section("Training")
    page.table(
        [
            (f"{one.row} {one.column}", f"{one.parameters:,}", f"{one.images:,}",
             f"{one.seconds:.0f}")
            for one, _ in found
        ],
        ("cell", "parameters", "images", "seconds"),
    )  # fmt: skip
    page.section("Provenance")
    page.facts(dict(facts))
    page.write(paths["page"])
    return paths
