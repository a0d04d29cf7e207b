"""How a model samples, as plain, frozen values: names of solvers and grids, and their options.

No torch here, so that `--help` answers quickly. `samplers` and `build` turn names into values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from sfumato.errors import ConfigError

SolverName = Literal[
    "heun",
    "euler",
    "midpoint",
    "ralston",
    "kutta3",
    "rk4",
    "rk45",
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
    "ddim",
    "ancestral",
    "dpm++sde",
    "dpm++2m-sde",
    "multistep-sde",
    "dpm++2s-ancestral",
    "reverse-diffusion",
    "euler-maruyama",
    "pc",
    "langevin",
    "tuned",
]
CHURNED = ("heun", "euler", "midpoint", "ralston", "kutta3", "rk4", "dpm++2s", "dpm++3s")
"""Solvers that know one step only, which churn and Restart may disturb."""
HISTORY = {"ab": 4, "deis": 4, "ipndm": 4, "multistep": 4, "unipc": 3}
"""Solvers that go by past values, and by how many at most."""
GridName = Literal["karras", "vp", "ve", "iddpm", "geometric", "uniform", "quadratic", "all"]


@dataclass(frozen=True)
class SolverTable:
    """Levels and weights of a tuned solver: `NonStationary`'s, as plain numbers."""

    sigmas: tuple[float, ...]
    start_weights: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SamplerConfig:
    """How the run samples unless told otherwise."""

    solver: SolverName = "heun"
    """The method: docs/sampling.md says which paper's, and its order."""
    steps: int = 18
    """Steps of the grid. Euler-like and multistep solvers spend one network call a step, heun two
    (the last step one); --nfe asks for calls instead."""
    grid: GridName = "karras"
    """karras (EDM), vp, ve, iddpm, geometric, or a uniform, quadratic or whole ladder."""
    rho: float = 7.0
    """Exponent of the karras grid."""
    sigma_min: float | None = None
    """Lowest sigma of the grid above 0; the trained range's if unset."""
    sigma_max: float | None = None
    """Highest sigma of the grid; the trained range's if unset."""
    alpha: float = 1.0
    """Heun's alpha: 1 Heun, 2/3 Ralston, 1/2 midpoint."""
    eta: float = 0.0
    """DDIM's eta in [0, 1]: 0 deterministic, 1 DDPM's small variance."""
    points: int = 0
    """Past values a multistep solver goes by (ab, deis, ipndm, multistep, unipc); 0: its own."""
    tolerance: float = 1e-4
    """Relative and absolute tolerance of a step (rk45)."""
    heat: float = 1.0
    """Noise of dpm++sde, dpm++2m-sde and multistep-sde: 0 none, 1 the reverse SDE's."""
    snr: float = 0.16
    """Signal-to-noise ratio of the correction (pc)."""
    corrections: int = 1
    """Langevin steps a level (pc, langevin)."""
    langevin_step: float = 0.2
    """Step size over the variance of the level (langevin); NCSN's is 0.2 (2e-5 at 0.01)."""
    restarts: int = 0
    """Times the walk goes back up from restart_low to restart_high (Restart sampling)."""
    restart_low: float = 0.05
    """Where it turns back."""
    restart_high: float = 0.3
    """Where it goes up to."""
    restart_steps: int = 3
    """Steps of each way down again."""
    variance: Literal["zero", "unit-gaussian"] | None = None
    """Variance of x0 in ancestral sampling; the recipe's if unset. unit-gaussian on a sub-sequence
    is DDIM's sigma-hat."""
    interpolate: bool = False
    """On a ladder: ask the network between its levels too, by interpolating the level's index."""
    churn: float = 0.0
    """EDM's S_churn; 0 is deterministic."""
    churn_low: float = 0.0
    """EDM's S_tmin."""
    churn_high: float = float("inf")
    """EDM's S_tmax."""
    churn_noise: float = 1.0
    """EDM's S_noise."""
    clip: bool = False
    """Clamp every prediction of x0 to the pixel range (changes the method; recorded)."""
    mirror: bool = False
    """Average every prediction of x0 with that for the mirror image (models trained with flip)."""
    guidance: float = 1.0
    """Classifier-free guidance: 1 is off, larger is more typical of the class and less varied."""
    guidance_low: float = 0.0
    """Guidance acts above this sigma ..."""
    guidance_high: float = float("inf")
    """... and up to this one."""
    batch: int = 64
    """Images per network call; part of the picture's identity to the last digit."""
    table: Annotated[SolverTable | None, tyro.conf.Suppress] = None
    """What `sfumato tune` found (tuned)."""

    def __post_init__(self) -> None:
        _check_sampler(self)


def with_solver(sampler: SamplerConfig, solver: SolverName) -> SamplerConfig:
    """Return the sampler with this solver; what belonged to its own one does not carry over."""
    return sampler if solver == sampler.solver else plain(sampler, solver)


def plain(sampler: SamplerConfig, solver: SolverName) -> SamplerConfig:
    """Return the sampler with this solver and nothing that belongs to one solver only."""
    own = SamplerConfig()
    return replace(
        sampler,
        solver=solver,
        eta=own.eta,
        alpha=own.alpha,
        churn=own.churn,
        points=own.points,
        restarts=own.restarts,
        variance=own.variance,
        table=own.table,
    )


def sub_sequence(sampler: SamplerConfig) -> SamplerConfig:
    """Return the sampler with a grid whose steps can be chosen, where its own is a whole ladder."""
    return replace(sampler, grid="uniform") if sampler.grid == "all" else sampler


def same_flow(a: SamplerConfig, b: SamplerConfig) -> bool:
    """Whether two samplers ask the same denoiser between the same levels."""
    return all(getattr(a, name) == getattr(b, name) for name in FLOW)


FLOW = (
    "guidance",
    "guidance_low",
    "guidance_high",
    "clip",
    "mirror",
    "interpolate",
    "sigma_min",
    "sigma_max",
)
"""What changes the denoiser or the ends of its grid, and so what a sampler is tuned for."""


def _check_sampler(sampler: SamplerConfig) -> None:
    s, problems = sampler, list[str]()
    if s.steps < 1 or s.batch < 1:
        problems.append(f"steps ({s.steps}) and batch ({s.batch}) must be at least 1")
    if not 0 <= s.eta <= 1:
        problems.append(f"eta lies in [0, 1], not {s.eta}")
    if not 0 < s.alpha <= 1:
        problems.append(f"alpha lies in (0, 1], not {s.alpha}")
    if not s.rho > 0:
        problems.append(f"rho must be above 0, not {s.rho}")
    if s.eta and s.solver != "ddim":
        problems.append(f"eta belongs to the ddim solver, not to {s.solver}")
    if (s.solver == "tuned") != (s.table is not None):
        problems.append(
            "the tuned solver is what sfumato tune found for one model and number of calls: "
            "ask for it by --nfe, after sfumato tune RUN --nfe"
        )
    if s.table is not None and s.steps != len(s.table.weights):
        problems.append(f"a tuned solver of {len(s.table.weights)} steps cannot take {s.steps}")
    if s.variance and s.solver != "ancestral":
        problems.append(f"variance belongs to the ancestral solver, not to {s.solver}")
    if s.churn and s.solver not in CHURNED:
        problems.append(f"churn wraps {', '.join(CHURNED)}, not {s.solver}")
    if s.points and not 1 <= s.points <= HISTORY.get(s.solver, 0):
        known = ", ".join(f"{name} (1 to {most})" for name, most in HISTORY.items())
        problems.append(f"points {s.points} does not suit {s.solver}; it belongs to {known}")
    if s.restarts < 0 or s.restart_steps < 1 or s.corrections < 1:
        problems.append("restarts must be 0 or more, restart_steps and corrections 1 or more")
    if s.restarts and not 0 < s.restart_low < s.restart_high:
        problems.append("restarts need 0 < restart_low < restart_high")
    for name in ("tolerance", "snr", "langevin_step"):
        if not getattr(s, name) > 0:
            problems.append(f"{name} must be above 0, not {getattr(s, name)}")
    if not 0 <= s.heat < float("inf"):
        problems.append(f"heat must be 0 or more, not {s.heat}")
    if s.churn < 0 or s.churn_low > s.churn_high or not s.churn_noise > 0:
        problems.append("churn needs churn >= 0, churn_low <= churn_high and churn_noise > 0")
    if not 0 <= s.guidance < float("inf"):
        problems.append(f"guidance must be 0 or more, not {s.guidance}")
    if not s.guidance_low <= s.guidance_high:
        problems.append("guidance_low must not exceed guidance_high")
    refuse("the sampler does not fit together", problems)


def refuse(what: str, problems: list[str]) -> None:
    """Raise ConfigError where there are problems."""
    if problems:
        raise ConfigError(f"{what}: " + "; ".join(problems))
