"""Which samplers to compare: a solver at every number of calls it can spend, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sfumato.errors import ConfigError
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import (
    HISTORY,
    SamplerConfig,
    SolverName,
    plain,
    same_flow,
    sub_sequence,
    with_solver,
)
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
    model: Model,
    default: SamplerConfig,
    solvers: Sequence[SolverName],
    nfes: Sequence[int],
    tuned: Mapping[int, SamplerConfig] | None = None,
) -> tuple[list[Trial], list[str]]:
    """Return every solver at every number of calls it can spend, and why others are left out."""
    made: list[Trial] = []
    left_out: list[str] = []
    for solver in solvers:
        for nfe in nfes:
            try:
                if solver == "tuned":
                    sampler = _tuned(default, nfe, tuned or {})
                else:
                    own = sub_sequence(with_solver(default, solver))
                    sampler = _spending(model, own, nfe)
                made.append(Trial(solver, nfe, sampler))
            except ConfigError as error:
                left_out.append(f"{solver} at {nfe}: {error}")
    return made, left_out


def fixed_trials(
    model: Model, default: SamplerConfig, nfes: Sequence[int]
) -> tuple[list[Trial], list[str]]:
    """Return every deterministic solver, with every number of points it can go by.

    Also why some cannot be had at any of these calls, such as those between a ladder's levels.
    """
    made: list[Trial] = []
    left_out: list[str] = []
    for solver in FIXED:
        own = sub_sequence(plain(default, solver))
        # Multistep and Adams-Bashforth of one point are Euler's method.
        least = 1 if solver == "unipc" else 2
        points = range(least, HISTORY[solver] + 1) if solver in HISTORY else (0,)
        for count in points:
            name = f"{solver} {count}" if count else solver
            found: list[Trial] = []
            reason = ""
            for nfe in nfes:
                try:
                    sampler = _spending(model, replace(own, points=count), nfe)
                    found.append(Trial(name, nfe, sampler))
                except ConfigError as error:
                    reason = str(error)
            made += found
            if not found:
                left_out.append(f"{name}: {reason}")
    return made, left_out


def ddim_trials(
    model: Model,
    default: SamplerConfig,
    steps: Sequence[int],
    etas: Sequence[float] = (0.0, 0.2, 0.5, 1.0),
) -> list[Trial]:
    """Return the cells of DDIM's Table 1: eta, then sigma-hat, by the sub-sequence's length.

    sigma-hat is ancestral sampling on the sub-sequence with the variance of unit Gaussian data.
    Raises ConfigError for more steps than a ladder has.
    """
    own = sub_sequence(plain(default, "ddim"))
    rows = {f"ddim, eta {eta:g}": replace(own, eta=eta) for eta in etas}
    rows[SIGMA_HAT] = replace(plain(own, "ancestral"), variance="unit-gaussian")
    made = [
        Trial(name, count, replace(row, steps=count))
        for name, row in rows.items()
        for count in steps
    ]
    for trial in made:
        model.grid(trial.sampler)
    return made


def _spending(model: Model, sampler: SamplerConfig, nfe: int) -> SamplerConfig:
    """The sampler with so many calls; ConfigError where this model's levels do not allow them."""
    made = with_evaluations(sampler, nfe)
    walked = len(model.grid(made)) - 1
    if walked != made.steps:
        raise ConfigError(
            f"levels of the grid {made.grid} fall together on this model's ladder: {walked} steps "
            f"are left of {made.steps}"
        )
    return made


def _tuned(default: SamplerConfig, nfe: int, tuned: Mapping[int, SamplerConfig]) -> SamplerConfig:
    if nfe not in tuned:
        raise ConfigError("sfumato tune has not been run for it")
    if not same_flow(tuned[nfe], default):
        raise ConfigError("it was tuned for another guidance, clipping, mirror or range of levels")
    return replace(tuned[nfe], batch=default.batch)
