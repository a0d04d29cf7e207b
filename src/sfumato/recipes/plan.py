"""From a recipe's names to how training goes: objective, noise levels, optimizer, average."""

from __future__ import annotations

from sfumato.noise import VP, NoiseLevels, SubVP
from sfumato.recipes.build import adapt, process_of
from sfumato.recipes.config import Recipe
from sfumato.training.augmentation import Augment
from sfumato.training.ema import Constant, HalfLife
from sfumato.training.loss_aware import LossAware
from sfumato.training.muon import Muon
from sfumato.training.noise_sampling import LogNormal, LogUniform, UniformLevels, UniformTime
from sfumato.training.objectives import (
    EDM,
    Bound,
    DDIMBound,
    Hybrid,
    MeanError,
    MinSNR,
    Objective,
    PlainX0,
    Simple,
    V,
)
from sfumato.training.optimizer import (
    Adam,
    CosineDecay,
    Decay,
    LearningRate,
    LinearDecay,
    NoDecay,
    OptimizerRule,
)
from sfumato.training.plan import Plan


def objective_of(recipe: Recipe, half_bin: float) -> Objective:
    """Return the objective; `half_bin` is half a pixel step in [-1, 1] units (for the bound)."""
    match recipe.objective:
        case "simple":
            return Simple()
        case "edm":
            return EDM(recipe.process.sigma_data or 0.5)
        case "v":
            return V()
        case "x0":
            return PlainX0()
        case "min-snr":
            return MinSNR(recipe.min_snr)
        case "bound":
            return Bound(_ladder(recipe), half_bin)
        case "hybrid":
            return Hybrid(Bound(_ladder(recipe), half_bin))
        case "ddim-bound":
            return DDIMBound(_ladder(recipe), recipe.bound_eta)
        case "mean":
            return MeanError(_ladder(recipe))


def _ladder(recipe: Recipe) -> NoiseLevels:
    levels = process_of(recipe.process)
    assert isinstance(levels, NoiseLevels)
    return levels


def distribution_of(
    recipe: Recipe,
) -> LogNormal | UniformLevels | UniformTime | LogUniform:
    """Return the distribution that training draws noise levels from."""
    process = process_of(recipe.process)
    if isinstance(process, NoiseLevels):
        aware = recipe.noise.draws == "loss-aware"
        return LossAware(process) if aware else UniformLevels(process)
    if recipe.noise.draws == "time":
        return UniformTime(process if isinstance(process, VP | SubVP) else VP())
    if recipe.noise.draws == "log-uniform":
        limits = recipe.process if process is None else process.range
        return LogUniform(limits.low, limits.high)
    return LogNormal(recipe.noise.mean, recipe.noise.std)


def ema_of(recipe: Recipe) -> HalfLife | Constant:
    """Return the rule of the moving average."""
    if recipe.ema.kind == "constant":
        return Constant(recipe.ema.decay)
    return HalfLife(recipe.ema.halflife_images, recipe.ema.ramp_up)


def optimizer_of(recipe: Recipe) -> OptimizerRule:
    """Return Adam, or Muon with Adam for what is no matrix."""
    o = recipe.optimizer
    betas = (0.9, o.beta2)
    return Muon(o.matrix_rate, betas=betas) if o.kind == "muon" else Adam(betas)


def decay_of(recipe: Recipe) -> Decay:
    """Return what the learning rate does over the whole training."""
    match recipe.optimizer.decay:
        case "constant":
            return NoDecay()
        case "cosine":
            return CosineDecay(recipe.images)
        case "linear":
            return LinearDecay(recipe.images)


def plan_of(recipe: Recipe, half_bin: float, classes: int, decay: Decay) -> Plan:
    """Return how to train: the recipe's words as one value of the training layer."""
    o = recipe.optimizer
    return Plan(
        adapt=lambda network: adapt(recipe, network),
        objective=objective_of(recipe, half_bin),
        noise=distribution_of(recipe),
        learning_rate=LearningRate(o.learning_rate, o.ramp_images, decay),
        averaging=ema_of(recipe),
        optimizer=optimizer_of(recipe),
        seed=recipe.seed,
        sigma_data=recipe.process.sigma_data or 0.5,
        antithetic=recipe.noise.antithetic,
        augment=Augment(recipe.augment) if recipe.augment else None,
        classes=classes,
        micro_batch=recipe.micro_batch or None,
        clip_norm=o.clip or None,
    )
