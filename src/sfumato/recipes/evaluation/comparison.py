"""What a comparison of samplers leaves behind: a table, a JSON file, a page with plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import MissingExtraError
from sfumato.files import write_json
from sfumato.recipes.evaluation.compare import Result
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.evaluation.outcome import number
from sfumato.recipes.evaluation.sets import pixels
from sfumato.report import plots
from sfumato.report.grid import image_grid, png_bytes
from sfumato.report.html import Picture, Report

_SHOWN = 8


def frechet_of(result: Result) -> float | None:
    """The Fréchet distance, a measure for `table_of`."""
    return result.frechet


def miss_of(result: Result) -> float | None:
    """The trajectory's error, a measure for `table_of`."""
    return result.miss


Measure = Callable[[Result], float | None]
MEASURES: dict[str, tuple[Measure, str]] = {
    "Fréchet distance": (frechet_of, "{:.4g}"),
    "trajectory error": (miss_of, "{:.4f}"),
}


def table_of(results: Sequence[Result], title: str = "Fréchet distance") -> str:
    """Return a table of one measure for a terminal: a row a sampler, a column a number of calls."""
    rows = _cells(results, title)
    width = max(len(row[0]) for row in rows) + 2
    wide = max(len(cell) for row in rows for cell in row[1:]) + 2 if len(rows[0]) > 1 else 0
    lines = (row[0].ljust(width) + "".join(cell.rjust(wide) for cell in row[1:]) for row in rows)
    return "\n".join(lines)


def _cells(results: Sequence[Result], title: str) -> list[list[str]]:
    """The table's rows, the header first and the best of each column last; "-" is not measured."""
    measure, form = MEASURES[title]
    known = [(result, value) for result in results if (value := measure(result)) is not None]
    columns = sorted({result.nfe for result, _ in known})
    found = {(result.name, result.nfe): value for result, value in known}
    rows = [[title, *map(str, columns)]]
    for name in dict.fromkeys(result.name for result, _ in known):
        values = [found.get((name, nfe)) for nfe in columns]
        rows.append([name, *("-" if value is None else form.format(value) for value in values)])
    best = [min((v, name) for (name, n), v in found.items() if n == nfe)[1] for nfe in columns]
    return [*rows, ["best", *best]]


def write_comparison(
    out: Path,
    title: str,
    facts: dict[str, Any],
    results: Sequence[Result],
    drawn: Sequence[tuple[Result, Drawn]],
    left_out: Sequence[str],
    *,
    name: str = "comparison",
) -> dict[str, Path]:
    """Write NAME.json and NAME.html of all results, with pictures of those `drawn`; return both."""
    paths = {"JSON": out / f"{name}.json", "page": out / f"{name}.html"}
    write_json(
        paths["JSON"],
        {"results": [asdict(r) for r in results], "left_out": list(left_out), "facts": facts},
    )
    page = Report(title, "", kind="Sfumato · samplers compared")
    for measure in MEASURES:
        _plot_and_table(page, results, measure)
    page.section("Every measurement")
    page.table(
        [(r.name, r.nfe, _or_dash(r.frechet), _or_dash(r.error),
          ", ".join(number(value) for value in r.each), _or_dash(r.miss, "{:.4f}"),
          _or_dash(r.milliseconds, "{:.1f}"), r.n) for r in results],
        ("sampler", "network calls", "Fréchet distance", "± 1 s.e.", "each repeat",
         "trajectory error", "ms per image", "n"),
    )  # fmt: skip
    if drawn:
        page.section("Pictures", "The same eight seeds, one row a sampler.")
    for nfe in sorted({result.nfe for result, _ in drawn}):
        rows = [(r.name, d) for r, d in drawn if r.nfe == nfe]
        shown = [pixels(images, 0)[:_SHOWN] for _, images in rows]
        grid = image_grid(torch.cat(shown), columns=len(shown[0]))
        caption = f"{nfe} calls; from above: {', '.join(row for row, _ in rows)}"
        page.figures([Picture(png_bytes(grid), caption, f"samples with {nfe} calls")])
    page.section("Provenance")
    page.facts({key: str(value) for key, value in facts.items()})
    if left_out:
        page.section("Left out")
        page.text("\n\n".join(left_out))
    page.write(paths["page"])
    return paths


_MEANING = {
    "Fréchet distance": "The same seeds for all; lower is nearer to the real images.",
    "trajectory error": "How far from where many small steps take the same latents: the root mean "
    "square over pixels, on [-1, 1], and its mean over latents.",
}


def _plot_and_table(page: Report, results: Sequence[Result], title: str) -> None:
    measure, _ = MEASURES[title]
    series: dict[str, list[tuple[int, float]]] = {}
    for result in results:
        if (value := measure(result)) is not None:
            series.setdefault(result.name, []).append((result.nfe, value))
    if not series:
        return
    page.section(title[0].upper() + title[1:] + " by network calls", _MEANING[title])
    shown = _nearest(series)
    try:
        page.figure(
            plots.quality_by_calls({name: series[name] for name in shown}, title),
            "" if len(shown) == len(series) else "the best of them; the table has all",
            f"{title} against network calls",
        )
    except MissingExtraError:
        page.missing("The plot", "matplotlib", "train")
    header, *rows = _cells(results, title)
    page.table(rows, ["sampler", *(f"{nfe} calls" for nfe in header[1:])])


def _nearest(series: dict[str, list[tuple[int, float]]], most: int = 10) -> list[str]:
    """The names of the samplers that a plot has room for: the best at any number of calls first."""
    ranks: dict[str, int] = {}
    for nfe in {nfe for points in series.values() for nfe, _ in points}:
        at = {name: dict(points)[nfe] for name, points in series.items() if nfe in dict(points)}
        for rank, name in enumerate(sorted(at, key=lambda name: at[name])):
            ranks[name] = min(rank, ranks.get(name, rank))
    chosen = sorted(series, key=lambda name: ranks[name])[:most]
    return [name for name in series if name in chosen]


def _or_dash(value: float | None, form: str = "") -> str:
    if value is None:
        return "-"
    return form.format(value) if form else number(value)
