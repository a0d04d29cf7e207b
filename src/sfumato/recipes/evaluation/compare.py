"""Samplers side by side: the same seeds, so many network calls, and what comes out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.errors import ConfigError, MissingExtraError
from sfumato.files import write_bytes
from sfumato.recipes.config import SamplerConfig, SolverName, with_solver
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.of_features import frechet
from sfumato.recipes.evaluation.outcome import number
from sfumato.recipes.evaluation.processes import Processes
from sfumato.recipes.evaluation.sets import Drawn, ImageSet, check_alike, pixels
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.workbench import Workbench
from sfumato.recipes.model import Model
from sfumato.recipes.samplers import with_evaluations
from sfumato.report import plots
from sfumato.report.grid import image_grid, png_bytes
from sfumato.report.html import Picture, Report

_SHOWN = 8


@dataclass(frozen=True)
class Trial:
    """One sampler, named for the reader, and the network calls an image costs with it."""

    name: str
    nfe: int
    sampler: SamplerConfig


@dataclass(frozen=True)
class Result:
    """What a trial gave."""

    name: str
    nfe: int
    frechet: float
    error: float | None
    """One standard error from the choice of seeds."""
    milliseconds: float
    """Per image, on this machine; as measured when it was drawn."""
    n: int


def trials(
    default: SamplerConfig, solvers: Sequence[SolverName], nfes: Sequence[int]
) -> tuple[list[Trial], list[str]]:
    """Return every solver at every number of calls it can spend, and why others are left out."""
    made: list[Trial] = []
    left_out: list[str] = []
    for solver in solvers:
        own = with_solver(default, solver)
        if own.grid == "all":
            own = replace(own, grid="uniform")
        for nfe in nfes:
            try:
                made.append(Trial(solver, nfe, with_evaluations(own, nfe)))
            except ConfigError as error:
                left_out.append(f"{solver} at {nfe}: {error}")
    return made, left_out


def ddim_trials(
    default: SamplerConfig, steps: Sequence[int], etas: Sequence[float] = (0.0, 0.2, 0.5, 1.0)
) -> list[Trial]:
    """Return the cells of DDIM's Table 1 but sigma-hat: eta by the length of the sub-sequence."""
    own = replace(default, solver="ddim", churn=0.0, restarts=0, points=0, alpha=1.0)
    own = replace(own, grid="uniform" if own.grid == "all" else own.grid)
    return [
        Trial(f"ddim, eta {eta:g}", count, replace(own, eta=eta, steps=count))
        for eta in etas
        for count in steps
    ]


def compare(
    model: Model,
    trial_list: Sequence[Trial],
    reference: ImageSet,
    settings: Settings,
    cache: Cache,
    *,
    device: str,
    say: Callable[[str], None],
) -> Iterator[tuple[Result, Drawn]]:
    """Yield the Fréchet distance of each trial, and its images; all draw the same seeds.

    What was drawn before is taken from the cache, its time too.
    """
    bench = Workbench(settings, cache, Processes(), None, reference, device)
    for trial in trial_list:
        drawn = Drawn(model, settings.n, cache, seed=settings.seed, sampler=trial.sampler)
        drawn.name = f"{trial.name}, {trial.nfe} calls"
        check_alike(drawn, reference)
        clock = cache.shelf("time", drawn.description)
        start = time.perf_counter()
        bench.draw(drawn)
        if not clock.has(0):
            clock.put(0, np.asarray((time.perf_counter() - start) / settings.n))
        table = bench.table(drawn, settings.features)
        (row,) = frechet(
            "fd",
            table,
            bench.table(reference, settings.features),
            None,
            against=reference.name,
            infinity=False,
            seed=settings.seed,
        )
        result = Result(
            trial.name, trial.nfe, row.value, row.error, 1000 * float(clock.get(0)), settings.n
        )
        spread = "" if row.error is None else f" ± {row.error:.2g}"
        say(f"{trial.name}, {trial.nfe} calls: Fréchet distance {number(row.value)}{spread}")
        yield result, drawn


def table_of(results: Sequence[Result]) -> str:
    """Return a table for a terminal: a row a sampler, a column a number of calls."""
    columns = sorted({result.nfe for result in results})
    found = {(result.name, result.nfe): result for result in results}
    names = list(dict.fromkeys(result.name for result in results))
    width = max(map(len, names)) + 2
    lines = ["Fréchet distance".ljust(width) + "".join(f"{nfe:>10}" for nfe in columns)]
    for name in names:
        cells = [found.get((name, nfe)) for nfe in columns]
        values = ["-" if cell is None else number(cell.frechet) for cell in cells]
        lines.append(name.ljust(width) + "".join(f"{value:>10}" for value in values))
    best = {
        nfe: min((r for r in results if r.nfe == nfe), key=lambda r: r.frechet).name
        for nfe in columns
    }
    lines.append("best".ljust(width) + "".join(f"{best[nfe][:9]:>10}" for nfe in columns))
    return "\n".join(lines)


def write_comparison(
    out: Path,
    title: str,
    facts: dict[str, Any],
    drawn: Sequence[tuple[Result, Drawn]],
    left_out: Sequence[str],
) -> dict[str, Path]:
    """Write comparison.json and comparison.html; return their paths."""
    results = [result for result, _ in drawn]
    text = json.dumps(
        {"results": [asdict(r) for r in results], "left_out": list(left_out), "facts": facts},
        indent=1, ensure_ascii=False,
    )  # fmt: skip
    paths = {"JSON": out / "comparison.json", "page": out / "comparison.html"}
    write_bytes(paths["JSON"], text.encode())
    page = Report(title, "", kind="Sfumato · samplers compared")
    page.section("Quality by network calls", "The same seeds for all; lower is nearer.")
    try:
        names = dict.fromkeys(result.name for result in results)
        series = {name: [(r.nfe, r.frechet) for r in results if r.name == name] for name in names}
        page.figure(plots.quality_by_calls(series), "", "Fréchet distance against network calls")
    except MissingExtraError:
        page.missing("The plot", "matplotlib", "train")
    page.table(
        [(r.name, r.nfe, number(r.frechet), number(r.error), f"{r.milliseconds:.1f}", r.n)
         for r in results],
        ("sampler", "network calls", "Fréchet distance", "± 1 s.e.", "ms per image", "n"),
    )  # fmt: skip
    page.section("Pictures", "The same eight seeds, one row a sampler.")
    for nfe in sorted({result.nfe for result in results}):
        rows = [(r.name, d) for r, d in drawn if r.nfe == nfe]
        grid = image_grid(
            torch.cat([pixels(images, 0)[:_SHOWN] for _, images in rows]), columns=_SHOWN
        )
        caption = f"{nfe} calls; from above: {', '.join(name for name, _ in rows)}"
        page.figures([Picture(png_bytes(grid), caption, f"samples with {nfe} calls")])
    page.section("Provenance")
    page.facts({key: str(value) for key, value in facts.items()})
    if left_out:
        page.section("Left out")
        page.text("\n\n".join(left_out))
    page.write(paths["page"])
    return paths
