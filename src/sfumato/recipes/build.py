"""From a recipe's names to what samples: the network, its denoiser, solvers and grids.

Here and in `plan` (what trains), nowhere else, are those strings interpreted.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from sfumato.denoiser import Clipped
from sfumato.errors import ConfigError
from sfumato.networks.base import Network
from sfumato.networks.build import build_network
from sfumato.noise import (
    F64,
    VE,
    VP,
    NoiseLevels,
    NoiseRange,
    SubVP,
    constant_betas,
    cosine_betas,
    geometric,
    iddpm,
    karras,
    linear_betas,
    quadratic,
    quadratic_betas,
    scaled_linear_betas,
    sigmoid_betas,
    uniform,
    vp,
    zero_terminal_snr,
)
from sfumato.parameterization import (
    Adapted,
    Between,
    Free,
    Head,
    Spectral,
    edm_preconditioned,
    predicts_mean,
    predicts_noise,
    predicts_score,
    predicts_v,
    predicts_x0,
    unit_gaussian,
    zero_variance,
)
from sfumato.protocols import Denoiser
from sfumato.recipes.config import ProcessConfig, Recipe
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.recipes.samplers import BETWEEN, Process

_BETAS = {
    "linear": linear_betas,
    "quadratic": quadratic_betas,
    "scaled-linear": scaled_linear_betas,
    "cosine": cosine_betas,
    "sigmoid": sigmoid_betas,
    "constant": constant_betas,
}
AUGMENT_LABELS = 9
HEADS: dict[str, Head] = {"learned": Between(), "free": Free()}
"""What the second half of the output of a network that learns its variance means."""


def process_of(config: ProcessConfig) -> Process | None:
    """Return the process, or None for EDM, whose preconditioning is its own."""
    match config.kind:
        case "edm":
            return None
        case "ladder":
            try:
                betas = _BETAS[config.betas](config.steps)
            except ValueError as error:
                raise ConfigError(f"process.steps {config.steps}: {error}") from error
            return NoiseLevels.from_betas(
                zero_terminal_snr(betas) if config.zero_terminal_snr else betas
            )
        case "ncsn":
            return NoiseLevels.geometric(config.steps, config.low, config.high)
        case "vp":
            return VP()
        case "subvp":
            return SubVP()
        case "ve":
            return VE(config.low, config.high)


def network_of(
    recipe: Recipe,
    shape: tuple[int, int, int],
    classes: int,
    *,
    condition: int = 0,
    device: str = "cpu",
) -> Network:
    """Build the network for images of `shape` (channels, height, width), seeded by the recipe.

    `condition`: channels of an image that each starts from; 0 for none.
    """
    channels, height, width = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = build_network(
            recipe.network,
            in_channels=channels,
            out_channels=channels * (2 if recipe.variance in HEADS else 1),
            height=height,
            width=width,
            classes=classes,
            augment_labels=AUGMENT_LABELS if recipe.augment > 0 else 0,
            condition_channels=condition,
        )
    if recipe.skip == "spectral":
        network.spectrum = Spectral(*shape, given=condition)
    return network.to(device)


def adapt(
    recipe: Recipe, network: nn.Module, *, interpolate: bool = False, variance: str | None = None
) -> Adapted:
    """Adapt the network to a denoiser; the recipe's sigma_data must be known.

    `interpolate` lets a network on a ladder be asked between its levels; `variance` stands in for
    the recipe's. Raises ConfigError where the network has learned its own.
    """
    if recipe.variance in HEADS:
        if variance is not None:
            raise ConfigError(
                "this model has learned its variance, which no other replaces: leave out --variance"
            )
        fixed = replace(recipe, variance="zero", objective="simple")
        mean = adapt(fixed, network, interpolate=interpolate)
        return replace(mean, head=HEADS[recipe.variance])
    if recipe.skip == "spectral":
        own = getattr(network, "spectrum", None)  # of wrapped networks, too
        assert isinstance(own, Spectral)
        plain = replace(recipe, skip="scalar")
        scalar = adapt(plain, network, interpolate=interpolate, variance=variance)
        return replace(scalar, skip=own)
    config = recipe.process
    var = unit_gaussian if (variance or recipe.variance) == "unit-gaussian" else zero_variance
    process = process_of(config)
    if process is None:
        if config.sigma_data is None:
            raise ConfigError("process.sigma_data is not known yet: measure it on the training set")
        return edm_preconditioned(
            network, config.sigma_data, low=config.low, high=config.high, var=var
        )
    match recipe.predicts:
        case "noise":
            return predicts_noise(network, process, var, interpolate=interpolate)
        case "x0":
            return predicts_x0(network, process, var, interpolate=interpolate)
        case "v":
            return predicts_v(network, process, var, interpolate=interpolate)
        case "score":
            return predicts_score(network, process, var, divided=True, interpolate=interpolate)
        case _:
            assert isinstance(process, NoiseLevels)
            return predicts_mean(network, process, var)


def grid_of(config: SamplerConfig, denoise: Denoiser) -> Tensor:
    """Return the grid within the denoiser's trained range; on a ladder it is rounded to its levels.

    Raises ConfigError for a ladder's grid without a ladder, too many steps for one, bounds outside
    the trained range, or a solver that would leave the ladder's levels.
    """
    limits = denoise.range
    if config.table is not None:
        return torch.tensor(config.table.sigmas, dtype=F64)
    low, high = _bounds(config, limits)
    between = config.solver in BETWEEN or (config.solver == "heun" and config.alpha != 1)
    if limits.levels is not None and between:
        named = f"heun with alpha {config.alpha:g}" if config.solver == "heun" else config.solver
        raise ConfigError(
            f"{named} asks between the levels of the grid, and this model knows only a "
            "ladder's: add --interpolate, or use heun with alpha 1, multistep, ddim or ancestral"
        )
    if config.grid in ("uniform", "quadratic", "all"):
        if limits.levels is None:
            raise ConfigError(
                f"the grid {config.grid} is a sub-sequence of a ladder, and this model has none: "
                "choose karras, vp, ve, iddpm or geometric"
            )
        total = len(limits.levels)
        count = total if config.grid == "all" else config.steps
        if not 1 <= count <= total:
            raise ConfigError(f"this model's ladder has 1 to {total} steps, not {count}")
        indices = (quadratic if config.grid == "quadratic" else uniform)(total, count)
        return torch.cat([limits.levels[indices].flip(0), torch.zeros(1, dtype=F64)])
    match config.grid:
        case "karras":
            grid = karras(config.steps, low, high, config.rho)
        case "vp":
            grid = vp(config.steps)
        case "iddpm":
            grid = iddpm(config.steps)
        case _:
            grid = geometric(config.steps, low, high)
    return _fit(grid[:-1].clamp(low, high), limits)


def _bounds(config: SamplerConfig, limits: NoiseRange) -> tuple[float, float]:
    """Return lowest and highest sigma of the grid: the trained range's where not given."""
    given = (config.sigma_min, config.sigma_max)
    if given != (None, None) and config.grid in ("uniform", "quadratic", "all"):
        raise ConfigError(
            f"sigma_min and sigma_max do not apply to the grid {config.grid}: "
            "choose karras, vp, ve, iddpm or geometric"
        )
    low = limits.low if config.sigma_min is None else config.sigma_min
    high = limits.high if config.sigma_max is None else config.sigma_max
    slack = 1 + 1e-6
    if not limits.low / slack <= low < high <= limits.high * slack:
        raise ConfigError(
            f"the grid needs sigma_min < sigma_max within what the model was trained on, "
            f"{limits.low:.6g} to {limits.high:.6g}, not {low:g} to {high:g}"
        )
    return low, high


def _fit(sigmas: Tensor, limits: NoiseRange) -> Tensor:
    """Round levels to a ladder's where there is one, drop repeats, and end at 0."""
    inner = limits.snap(sigmas)
    inner = inner[torch.cat([torch.ones(1, dtype=torch.bool), inner.diff() < 0])]
    return torch.cat([inner, torch.zeros(1, dtype=F64)])


def sampler_denoiser(config: SamplerConfig, denoise: Denoiser) -> Denoiser:
    """Return the denoiser as the sampler asks it: clipped where the configuration says so."""
    return Clipped(denoise) if config.clip else denoise
