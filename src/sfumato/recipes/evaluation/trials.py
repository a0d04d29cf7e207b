"""Which samplers to compare: a solver at every number of calls it can spend, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sfumato.errors import ConfigError
from sfumato.recipes.sampler_config import HISTORY, SamplerConfig, SolverName, with_solver
from sfumato.recipes.samplers import with_evaluations

FIXED: tuple[SolverName, ...] = (
    "euler",
    "heun",
    "midpoint",
    "ralston",
    "kutta3",
    "rk4",
    "ab",
    "deis",
    "ipndm",
    "plms",
    "pndm",
    "multistep",
    "dpm++2m",
    "dpm++3m",
    "dpm++2s",
    "dpm++3s",
    "unipc",
)
"""Every deterministic solver of fixed steps."""
SIGMA_HAT = "sigma-hat"


@dataclass(frozen=True)
class Trial:
    """One sampler, named for the reader, and the network calls an image costs with it."""

    name: str
    nfe: int
    sampler: SamplerConfig


def trials(
    default: SamplerConfig,
    solvers: Sequence[SolverName],
    nfes: Sequence[int],
    tuned: Mapping[int, SamplerConfig] | None = None,
) -> tuple[list[Trial], list[str]]:
    """Return every solver at every number of calls it can spend, and why others are left out."""
    made: list[Trial] = []
    left_out: list[str] = []
    for solver in solvers:
        if solver == "tuned":
            known = tuned or {}
            made += [Trial("tuned", nfe, known[nfe]) for nfe in nfes if nfe in known]
            left_out += [
                f"tuned at {nfe}: sfumato tune has not been run for it"
                for nfe in nfes
                if nfe not in known
            ]
            continue
        own = with_solver(default, solver)
        if own.grid == "all":
            own = replace(own, grid="uniform")
        for nfe in nfes:
            try:
                made.append(Trial(solver, nfe, with_evaluations(own, nfe)))
            except ConfigError as error:
                left_out.append(f"{solver} at {nfe}: {error}")
    return made, left_out


def fixed_trials(default: SamplerConfig, nfes: Sequence[int]) -> list[Trial]:
    """Return every deterministic solver, with every number of points it can go by."""
    made: list[Trial] = []
    for solver in FIXED:
        plain = with_solver(default, solver)
        own = replace(plain, grid="uniform") if plain.grid == "all" else plain
        # Multistep and Adams-Bashforth of one point are Euler's method.
        least = 1 if solver == "unipc" else 2
        points = range(least, HISTORY[solver] + 1) if solver in HISTORY else (0,)
        for count in points:
            name = f"{solver} {count}" if count else solver
            for nfe in nfes:
                try:
                    sampler = with_evaluations(replace(own, points=count), nfe)
                except ConfigError:
                    continue
                made.append(Trial(name, nfe, sampler))
    return made


def ddim_trials(
    default: SamplerConfig, steps: Sequence[int], etas: Sequence[float] = (0.0, 0.2, 0.5, 1.0)
) -> list[Trial]:
    """Return the cells of DDIM's Table 1: eta, then sigma-hat, by the sub-sequence's length.

    sigma-hat is ancestral sampling on the sub-sequence with the variance of unit Gaussian data.
    """
    own = replace(
        default, churn=0.0, restarts=0, points=0, alpha=1.0, eta=0.0, variance=None, table=None
    )
    own = replace(own, grid="uniform" if own.grid == "all" else own.grid)
    rows = {f"ddim, eta {eta:g}": replace(own, solver="ddim", eta=eta) for eta in etas}
    rows[SIGMA_HAT] = replace(own, solver="ancestral", variance="unit-gaussian")
    return [
        Trial(name, count, replace(row, steps=count))
        for name, row in rows.items()
        for count in steps
    ]
