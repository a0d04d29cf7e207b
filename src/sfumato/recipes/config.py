"""A whole experiment as plain, frozen values; every field is an option and a line of TOML.

No torch here, so that `--help` answers quickly. `build` turns these names into working values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from sfumato.errors import ConfigError
from sfumato.networks.config import ADMConfig, UNetConfig

ProcessKind = Literal["edm", "ladder", "vp", "subvp", "ve", "ncsn"]
Predicts = Literal["edm", "noise", "x0", "v", "mean", "score"]
Betas = Literal["linear", "quadratic", "scaled-linear", "cosine", "sigmoid", "constant"]
ObjectiveName = Literal["edm", "simple", "bound", "v", "x0", "min-snr"]
Draws = Literal["log-normal", "levels", "time", "log-uniform"]
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
    "dpm++2s-ancestral",
    "reverse-diffusion",
    "euler-maruyama",
    "pc",
    "langevin",
]
CHURNED = ("heun", "euler", "midpoint", "ralston", "kutta3", "rk4", "dpm++2s", "dpm++3s")
"""Solvers that know one step only, which churn and Restart may disturb."""
HISTORY = {"ab": 4, "deis": 4, "ipndm": 4, "multistep": 4, "unipc": 3}
"""Solvers that go by past values, and by how many at most."""
GridName = Literal["karras", "vp", "ve", "iddpm", "geometric", "uniform", "quadratic", "all"]


@dataclass(frozen=True)
class ProcessConfig:
    """The noise levels the network knows, and how it sees them."""

    kind: ProcessKind = "edm"
    """edm, a ladder from betas (DDPM), Score-SDE's vp, subvp or ve, or ncsn's geometric ladder."""
    steps: int = 1000
    """Levels of a ladder (ladder, ncsn)."""
    betas: Betas = "linear"
    """Betas of a ladder."""
    zero_terminal_snr: bool = False
    """Rescale a ladder's betas so that the last level is pure noise (needs predicts v or x0)."""
    low: float = 0.002
    """Lowest sigma (edm, ve, ncsn)."""
    high: float = 80.0
    """Highest sigma (edm, ve, ncsn)."""
    sigma_data: float | None = None
    """Standard deviation of the data in [-1, 1]; measured on the training set if unset."""


@dataclass(frozen=True)
class NoiseConfig:
    """How training draws noise levels."""

    draws: Draws = "log-normal"
    """log-normal sigma, uniform over a ladder's levels, in time (vp, subvp), or in ln sigma."""
    mean: float = -1.2
    """Mean of ln sigma (log-normal): EDM's P_mean."""
    std: float = 1.2
    """Standard deviation of ln sigma (log-normal): EDM's P_std."""
    antithetic: bool = True
    """Spread the levels of a batch evenly over the distribution."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    kind: Literal["adam", "muon"] = "adam"
    """adam, or muon: hidden convolutions learn by orthogonalised momentum, the rest by Adam."""
    matrix_rate: float = 8.0
    """Learning rate of muon's convolutions as a multiple of the other (muon)."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    ramp_images: int = 10_000_000
    """Images over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """What the learning rate does after the ramp, over the whole training."""
    beta2: float = 0.999
    """Adam's second moment decay."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""


@dataclass(frozen=True)
class EmaConfig:
    """The moving average of the weights that samples are drawn with."""

    kind: Literal["half-life", "constant"] = "half-life"
    """EDM's half-life in images with ramp-up, or DDPM's constant decay per step."""
    halflife_images: int = 500_000
    """Half-life in images (half-life)."""
    ramp_up: float = 0.05
    """Half-life is at most this share of the images seen (half-life)."""
    decay: float = 0.9999
    """Decay per step (constant)."""


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
    """Noise of dpm++sde and dpm++2m-sde: 0 is none, 1 that of the reverse SDE."""
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
    guidance: float = 1.0
    """Classifier-free guidance: 1 is off, larger is more typical of the class and less varied."""
    guidance_low: float = 0.0
    """Guidance acts above this sigma ..."""
    guidance_high: float = float("inf")
    """... and up to this one."""
    batch: int = 64
    """Images per network call; part of the picture's identity to the last digit."""

    def __post_init__(self) -> None:
        _check_sampler(self)


def with_solver(sampler: SamplerConfig, solver: SolverName) -> SamplerConfig:
    """Return the sampler with this solver; what belonged to its own one does not carry over."""
    if solver == sampler.solver:
        return sampler
    plain = SamplerConfig()
    return replace(
        sampler,
        solver=solver,
        eta=plain.eta,
        alpha=plain.alpha,
        churn=plain.churn,
        points=plain.points,
        restarts=plain.restarts,
    )


@dataclass(frozen=True)
class Recipe:
    """A whole experiment: network, process, objective, optimisation, and the default sampler."""

    network: UNetConfig | ADMConfig = field(default_factory=UNetConfig)
    """The network."""
    process: ProcessConfig = field(default_factory=ProcessConfig)
    """Noise levels."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """How training draws them."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Average of the weights."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Default sampler."""
    name: Annotated[str, tyro.conf.Suppress] = "edm"
    """The preset this recipe started from."""
    predicts: Predicts = "edm"
    """What the network's output means."""
    variance: Literal["zero", "unit-gaussian"] = "zero"
    """Variance of the reverse step: DDPM's fixed small (zero) or fixed large (unit-gaussian)."""
    objective: ObjectiveName = "edm"
    """Weight of the loss over noise levels, or the variational bound."""
    min_snr: float = 5.0
    """Largest weight of min-snr."""
    images: int = 200_000_000
    """Training length in images."""
    batch: int = 512
    """Images per optimiser step."""
    micro_batch: int = 0
    """Images per network call while training; 0 is the whole batch."""
    flip: bool = True
    """Mirror images left-right with probability 1/2 (off where augment is above 0: it flips)."""
    augment: float = 0.0
    """Probability of each transform of EDM's non-leaking augmentation; 0 is off."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network's body; auto measures both at the start and says which won."""
    seed: int = 0
    """Seed of weights, data order and noise."""

    def __post_init__(self) -> None:
        _check(self)


def _check(recipe: Recipe) -> None:
    p, n = recipe.process, recipe.noise
    on_ladder = p.kind in ("ladder", "ncsn")
    problems: list[str] = []
    if recipe.images < 1 or recipe.batch < 1 or recipe.micro_batch < 0:
        problems.append("images and batch must be at least 1, micro_batch at least 0")
    if recipe.micro_batch and recipe.batch % recipe.micro_batch:
        problems.append(f"micro_batch {recipe.micro_batch} must divide batch {recipe.batch}")
    if not 0 <= recipe.augment <= 1:
        problems.append(f"augment is a probability in [0, 1], not {recipe.augment}")
    if (recipe.predicts == "edm") != (p.kind == "edm"):
        problems.append("predicts edm belongs to process kind edm, and only to it")
    if recipe.predicts == "mean" and not on_ladder:
        problems.append("predicts mean needs a ladder (process kind ladder or ncsn)")
    if recipe.objective == "bound" and not on_ladder:
        problems.append("the objective bound needs a ladder (process kind ladder or ncsn)")
    if p.zero_terminal_snr and p.kind != "ladder":
        problems.append(f"zero_terminal_snr rescales the betas of kind ladder: {p.kind} has none")
    if p.zero_terminal_snr and recipe.predicts not in ("v", "x0"):
        problems.append(
            f"a network that predicts {recipe.predicts} tells nothing of x0 at zero terminal SNR: "
            "choose predicts v or x0"
        )
    if (n.draws == "levels") != on_ladder:
        problems.append("draws levels belongs to a ladder (kind ladder or ncsn), and only to it")
    if n.draws == "time" and p.kind not in ("vp", "subvp"):
        problems.append("draws time needs process kind vp or subvp")
    if not 0 < p.low < p.high:
        problems.append(f"process needs 0 < low < high, not {p.low} and {p.high}")
    if on_ladder and p.steps < 2:
        problems.append(f"a ladder needs process.steps of at least 2, not {p.steps}")
    if p.sigma_data is not None and not p.sigma_data > 0:
        problems.append(f"process.sigma_data must be above 0, not {p.sigma_data}")
    if not n.std > 0 or not recipe.min_snr > 0:
        problems.append(f"noise.std ({n.std}) and min_snr ({recipe.min_snr}) must be above 0")
    if recipe.seed < 0:
        problems.append(f"seed must be 0 or more, not {recipe.seed}")
    problems += _optimizer_problems(recipe.optimizer) + _ema_problems(recipe.ema)
    _raise("the recipe does not fit together", problems)


def _optimizer_problems(o: OptimizerConfig) -> list[str]:
    problems: list[str] = []
    for name, rate in (("learning_rate", o.learning_rate), ("matrix_rate", o.matrix_rate)):
        if not 0 < rate < math.inf:
            problems.append(f"optimizer.{name} must be above 0, not {rate}")
    if not 0 <= o.beta2 < 1:
        problems.append(f"optimizer.beta2 lies in [0, 1), not {o.beta2}")
    if o.ramp_images < 0 or not o.clip >= 0:
        problems.append(
            f"optimizer.ramp_images ({o.ramp_images}) and clip ({o.clip}) must be 0 or more"
        )
    return problems


def _ema_problems(e: EmaConfig) -> list[str]:
    problems: list[str] = []
    if not 0 <= e.decay < 1:
        problems.append(f"ema.decay lies in [0, 1), not {e.decay}")
    if e.halflife_images < 1 or not e.ramp_up >= 0:
        problems.append(
            f"ema.halflife_images ({e.halflife_images}) must be at least 1, "
            f"ramp_up ({e.ramp_up}) 0 or more"
        )
    return problems


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
    _raise("the sampler does not fit together", problems)


def _raise(what: str, problems: list[str]) -> None:
    if problems:
        raise ConfigError(f"{what}: " + "; ".join(problems))
