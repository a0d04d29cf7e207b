"""Where on the grid the error is made: the local truncation error of every step (EDM Figure 13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from sfumato.errors import ConfigError, MissingExtraError
from sfumato.files import write_json
from sfumato.noise import geometric
from sfumato.protocols import Denoise, Solver
from sfumato.randomness import Noise
from sfumato.recipes import build
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import SamplerConfig, plain
from sfumato.report import plots
from sfumato.report.html import Report
from sfumato.sampling import sample, start_from_prior
from sfumato.solvers import Euler, Heun, SingleStep

SOLVERS: dict[str, Solver[None]] = {"euler": Euler(), "heun": Heun()}
RHOS = (3.0, 5.0, 7.0, 10.0)
_SUBSTEPS = 4


@dataclass(frozen=True)
class Truncation:
    """What steps of one solver on one grid miss by, each from the exact flow's x.

    `sigmas` are where the steps begin; `errors` per-dimension RMSE in data units at their end, by
    the flow's own walk of finer steps.
    """

    solver: str
    rho: float
    sigmas: tuple[float, ...]
    errors: tuple[float, ...]


def truncation(
    model: Model,
    sampler: SamplerConfig,
    cache: Cache,
    *,
    rhos: Sequence[float] = RHOS,
    count: int = 64,
    seed: int = 0,
    tick: Callable[[int], object] = lambda steps: None,
) -> list[Truncation]:
    """Measure Euler's and Heun's steps on karras grids; `tick` is told the steps done.

    The step to 0, whose exact end is not known, is left out. What was measured is in the cache.
    """
    if not rhos:
        raise ConfigError("the truncation error needs at least one exponent: --rhos 7")
    own = replace(
        plain(sampler, "euler"),
        interpolate=model.denoiser.range.levels is not None,
        grid="karras",
        batch=count,
    )
    made: list[Truncation] = []
    for rho in rhos:
        grid = model.grid(replace(own, rho=rho))[:-1]
        if len(grid) < 2:
            raise ConfigError("the truncation error needs a grid of at least two steps: --steps")
        about = Drawn(model, count, cache, seed=seed, sampler=replace(own, rho=rho)).description
        shelf = cache.shelf("truncation", {**about, "substeps": _SUBSTEPS})
        if not shelf.has(0):
            seeds = range(seed, seed + count)
            bound = model.bound(seeds, sampler=own)
            denoise = build.sampler_denoiser(own, bound)
            start = start_from_prior(
                denoise, grid[0], model.format.shape, Noise(tuple(seeds)),
                device=model.device,
            )  # fmt: skip
            shelf.put(0, step_errors(denoise, grid, start, tick).numpy())
        else:
            tick(len(grid) - 1)
        levels = tuple(grid[:-1].tolist())
        for name, errors in zip(SOLVERS, shelf.get(0).tolist(), strict=True):
            made.append(Truncation(name, rho, levels, tuple(errors)))
    return made


@torch.no_grad()
def step_errors(denoise: Denoise, grid: Tensor, x: Tensor, tick: Callable[[int], object]) -> Tensor:
    """Return what each solver's steps miss by [solvers, N], while x [B, *data] walks the flow.

    RMSE over images and pixels, in data units, at the end of each step of the grid; `tick` is told
    of every step.
    """
    errors: list[list[float]] = [[] for _ in SOLVERS]
    for sigma, s in pairwise(grid):
        fine = geometric(_SUBSTEPS + 1, float(s), float(sigma))[:-1]
        fine[0], fine[-1] = sigma, s
        exact = x
        for step in sample(denoise, SingleStep(3), fine, x):
            exact = step.x
        for solver, into in zip(SOLVERS.values(), errors, strict=True):
            moved, _ = solver.step(denoise, x, sigma, s, None, None)
            into.append(float((moved - exact).double().square().mean().sqrt()))
        x = exact
        tick(1)
    return torch.tensor(errors, dtype=torch.float64)


def write_truncation(out: Path, title: str, made: Sequence[Truncation]) -> dict[str, Path]:
    """Write truncation.json and truncation.html; return their paths."""
    paths = {"JSON": out / "truncation.json", "page": out / "truncation.html"}
    write_json(paths["JSON"], [asdict(one) for one in made])
    page = Report(title, "", kind="Sfumato · truncation error")
    page.section(
        "Where the error is made",
        "What one step misses by when it starts on the exact flow, by the noise level where it "
        "starts. A larger rho takes shorter steps at low noise, where errors are seen; EDM found "
        "rho = 3 to make all steps' errors alike and rho = 7 to sample better.",
    )
    try:
        page.figure(
            plots.truncation_by_level(
                {f"{one.solver}, rho {one.rho:g}": (one.sigmas, one.errors) for one in made}
            ),
            "",
            "local truncation error against noise level",
        )
    except MissingExtraError:
        page.missing("The plot", "matplotlib", "train")
    page.table(
        [
            (one.solver, f"{one.rho:g}", f"{sigma:.4g}", f"{error:.3g}")
            for one in made
            for sigma, error in zip(one.sigmas, one.errors, strict=True)
        ],
        ("solver", "rho", "from sigma", "error"),
    )
    page.write(paths["page"])
    return paths


def in_lines(made: Sequence[Truncation]) -> str:
    """Return a table for a terminal: the errors' sum and largest, and where that is."""
    lines = [f"{'solver':<8}{'rho':>5}{'sum':>10}{'largest':>10}   at sigma"]
    for one in made:
        worst = max(range(len(one.errors)), key=lambda i: one.errors[i])
        lines.append(
            f"{one.solver:<8}{one.rho:>5g}{sum(one.errors):>10.4f}{one.errors[worst]:>10.4f}   "
            f"{one.sigmas[worst]:.4g}"
        )
    return "\n".join(lines)
