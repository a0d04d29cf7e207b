"""A whole experiment as plain, frozen values; every field is an option and a line of TOML.

No torch here, so that `--help` answers quickly. `build` turns these names into working values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from sfumato.networks.config import ADMConfig, UNetConfig
from sfumato.recipes.sampler_config import SamplerConfig, refuse

ProcessKind = Literal["edm", "ladder", "vp", "subvp", "ve", "ncsn"]
Predicts = Literal["edm", "noise", "x0", "v", "mean", "score"]
Betas = Literal["linear", "quadratic", "scaled-linear", "cosine", "sigmoid", "constant"]
ObjectiveName = Literal[
    "edm", "simple", "hybrid", "bound", "ddim-bound", "mean", "v", "x0", "min-snr"
]
ON_LADDER = ("bound", "hybrid", "ddim-bound", "mean")
"""Objectives of neighbouring levels."""
Draws = Literal["log-normal", "levels", "loss-aware", "time", "log-uniform"]


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
    """log-normal sigma; uniform over a ladder's levels, or by their losses (loss-aware, Improved
    DDPM); uniform in time (vp, subvp, edm: VP's), or in ln sigma."""
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
    skip: Literal["scalar", "spectral"] = "scalar"
    """Linear part of the denoiser, which the network adds to: scalar, a multiple of x (EDM's c_skip
    and its like), or spectral, the best estimate for images with the frequencies of the data,
    measured on the training set."""
    variance: Literal["zero", "unit-gaussian", "learned", "free"] = "zero"
    """Variance of the reverse step: DDPM's fixed small (zero) or fixed large (unit-gaussian), a
    learned fraction between the two (Improved DDPM), or a learned one without bounds (free)."""
    objective: ObjectiveName = "edm"
    """Weight of the loss over noise levels, or the variational bound (DDPM's, or DDIM's J_sigma).
    mean is the error of the mean of x_{t-1}."""
    bound_eta: float = 1.0
    """DDIM's eta in (0, 1] (ddim-bound)."""
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
    if recipe.objective in ON_LADDER and not on_ladder:
        problems.append(
            f"the objective {recipe.objective} needs a ladder (process kind ladder or ncsn)"
        )
    learns = recipe.variance in ("learned", "free")
    if learns and not on_ladder:
        problems.append(f"variance {recipe.variance} belongs to pairs of levels: it needs a ladder")
    if learns and recipe.objective not in ("bound", "hybrid"):
        problems.append(
            f"variance {recipe.variance} is taught by the objectives hybrid and bound, not by "
            f"{recipe.objective}"
        )
    if recipe.objective == "hybrid" and not learns:
        problems.append("the objective hybrid teaches a variance: choose variance learned or free")
    if not 0 < recipe.bound_eta <= 1:
        problems.append(f"bound_eta lies in (0, 1], not {recipe.bound_eta}")
    if p.zero_terminal_snr and p.kind != "ladder":
        problems.append(f"zero_terminal_snr rescales the betas of kind ladder: {p.kind} has none")
    if p.zero_terminal_snr and recipe.predicts not in ("v", "x0"):
        problems.append(
            f"a network that predicts {recipe.predicts} tells nothing of x0 at zero terminal SNR: "
            "choose predicts v or x0"
        )
    if (n.draws in ("levels", "loss-aware")) != on_ladder:
        problems.append(
            "draws levels and loss-aware belong to a ladder (kind ladder or ncsn), and only to it"
        )
    if n.draws == "time" and p.kind not in ("vp", "subvp", "edm"):
        problems.append("draws time needs process kind vp, subvp or edm (VP's levels)")
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
    refuse("the recipe does not fit together", problems)


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
