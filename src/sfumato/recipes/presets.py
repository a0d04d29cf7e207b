"""The named recipes, with the published settings, and a `-tiny` variant of each for CPUs."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from sfumato.errors import ConfigError
from sfumato.networks.config import ADMConfig, UNetConfig
from sfumato.recipes.config import EmaConfig, NoiseConfig, OptimizerConfig, ProcessConfig, Recipe
from sfumato.recipes.sampler_config import SamplerConfig

# EDM's settings for CIFAR-10 (Karras et al. 2022, Table 7); the network with EDM augmentation.
_EDM_OPTIMIZER = OptimizerConfig(learning_rate=1e-3, ramp_images=10_000_000)
# DDPM's for CIFAR-10 (Ho et al. 2020, appendix B): 800 k steps of 128, warm-up of 5,000 steps.
_DDPM_OPTIMIZER = OptimizerConfig(learning_rate=2e-4, ramp_images=5_000 * 128, clip=1.0)
_DDPM_EMA = EmaConfig(kind="constant", decay=0.9999)
# Score-SDE's for CIFAR-10 (Song et al. 2021, appendix G and H): 1.3 M steps of 128.
_SDE_OPTIMIZER = OptimizerConfig(learning_rate=2e-4, ramp_images=5_000 * 128, clip=1.0)
_SDE_EMA = EmaConfig(kind="constant", decay=0.999)


def _edm() -> Recipe:
    return Recipe(name="edm", optimizer=_EDM_OPTIMIZER, augment=0.12)


def _edm_ve() -> Recipe:
    return replace(_edm(), name="edm-ve", network=UNetConfig.ncsnpp())


def _ddpm() -> Recipe:
    return Recipe(
        name="ddpm",
        network=UNetConfig.ddpm(),
        process=ProcessConfig(kind="ladder"),
        noise=NoiseConfig(draws="levels", antithetic=False),
        optimizer=_DDPM_OPTIMIZER,
        ema=_DDPM_EMA,
        sampler=SamplerConfig(solver="ancestral", grid="all", steps=1000),
        predicts="noise",
        variance="unit-gaussian",
        objective="simple",
        images=800_000 * 128,
        batch=128,
    )


def _iddpm() -> Recipe:
    # Improved DDPM for CIFAR-10 (Nichol & Dhariwal 2021, appendix A; README of their code): 4,000
    # cosine levels, 3 blocks, attention at 16 and 8 with 4 heads, scale-shift norm, dropout 0.3.
    return replace(
        _ddpm(),
        name="iddpm",
        network=ADMConfig(
            width=128,
            multipliers=(1, 2, 2, 2),
            blocks=3,
            attention=(16, 8),
            channels_per_head=64,
            dropout=0.3,
        ),
        process=ProcessConfig(kind="ladder", steps=4000, betas="cosine"),
        optimizer=OptimizerConfig(learning_rate=1e-4, ramp_images=0),
        sampler=SamplerConfig(solver="ancestral", grid="uniform", steps=100),
        variance="learned",
        objective="hybrid",
        images=500_000 * 128,
    )


def _iddpm_vlb() -> Recipe:
    return replace(
        _iddpm(),
        name="iddpm-vlb",
        noise=NoiseConfig(draws="loss-aware", antithetic=False),
        objective="bound",
    )


def _vp() -> Recipe:
    return Recipe(
        name="vp",
        network=replace(UNetConfig.ddpmpp(), dropout=0.1),
        process=ProcessConfig(kind="vp"),
        noise=NoiseConfig(draws="time", antithetic=False),
        optimizer=_SDE_OPTIMIZER,
        ema=EmaConfig(kind="constant", decay=0.9999),
        sampler=SamplerConfig(solver="heun", grid="vp", steps=64),
        predicts="noise",
        objective="simple",
        images=1_300_000 * 128,
        batch=128,
    )


def _subvp() -> Recipe:
    return replace(_vp(), name="subvp", process=ProcessConfig(kind="subvp"))


def _ve() -> Recipe:
    return Recipe(
        name="ve",
        network=replace(UNetConfig.ncsnpp(), dropout=0.1),
        process=ProcessConfig(kind="ve", low=0.01, high=50.0),
        noise=NoiseConfig(draws="log-uniform", antithetic=False),
        optimizer=_SDE_OPTIMIZER,
        ema=_SDE_EMA,
        sampler=SamplerConfig(solver="heun", grid="ve", steps=64),
        predicts="score",
        objective="simple",
        images=1_300_000 * 128,
        batch=128,
    )


def _ncsn() -> Recipe:
    # NCSNv2's ladder (Song & Ermon 2020): 232 levels from 50 to 0.01; weight sigma^2 on the score.
    return Recipe(
        name="ncsn",
        network=replace(UNetConfig.ncsnpp(), embedding="positional", noise_width=1, dropout=0.1),
        process=ProcessConfig(kind="ncsn", steps=232, low=0.01, high=50.0),
        noise=NoiseConfig(draws="levels", antithetic=False),
        optimizer=replace(_SDE_OPTIMIZER, learning_rate=1e-4, ramp_images=0),
        ema=_SDE_EMA,
        sampler=SamplerConfig(solver="ancestral", grid="all", steps=232),
        predicts="score",
        objective="simple",
        images=300_000 * 128,
        batch=128,
    )


def _tiny(recipe: Recipe) -> Recipe:
    """Shrink a recipe to about a million parameters and minutes of two CPU cores."""
    shape = recipe.network if isinstance(recipe.network, UNetConfig) else UNetConfig.ddpm()
    network = replace(shape, width=16, multipliers=(1, 2, 5), blocks=1, attention=(8,), dropout=0.0)
    sampler = replace(recipe.sampler, batch=64)
    if sampler.grid != "all" and sampler.solver != "ancestral":
        sampler = replace(sampler, steps=min(sampler.steps, 18))
    # Loss-aware draws wait for ten losses of every level: 4,000 levels are half of a short run.
    process = replace(recipe.process, steps=min(recipe.process.steps, 1000))
    return replace(
        recipe,
        name=recipe.name + "-tiny",
        network=network,
        process=process,
        optimizer=OptimizerConfig(
            kind="muon",
            learning_rate=3e-3,
            ramp_images=5_000,
            decay="linear",
            beta2=0.99,
            clip=1.0,
        ),
        ema=EmaConfig(kind="half-life", halflife_images=20_000, ramp_up=0.05),
        sampler=sampler,
        noise=replace(recipe.noise, antithetic=True),
        # Half the training for the same loss; the published recipes stay as published.
        skip="spectral" if recipe.predicts == "edm" else "scalar",
        images=500_000,
        batch=32,
        flip=False,
        augment=0.0,
    )


_FULL: dict[str, Callable[[], Recipe]] = {
    "edm": _edm,
    "edm-ve": _edm_ve,
    "ddpm": _ddpm,
    "iddpm": _iddpm,
    "iddpm-vlb": _iddpm_vlb,
    "vp": _vp,
    "ve": _ve,
    "subvp": _subvp,
    "ncsn": _ncsn,
}

SUMMARIES = {
    "edm": "EDM: DDPM++ with EDM's preconditioning, loss and augmentation (Karras et al. 2022)",
    "edm-ve": "EDM with the NCSN++ network",
    "ddpm": "DDPM: 1000 levels, noise prediction, ancestral sampling (Ho et al. 2020)",
    "iddpm": "Improved DDPM: learned variance, cosine levels, L_hybrid (Nichol & Dhariwal 2021)",
    "iddpm-vlb": "Improved DDPM by its bound alone, levels drawn by their losses",
    "vp": "Score-SDE, variance preserving, continuous time (Song et al. 2021)",
    "ve": "Score-SDE, variance exploding, NCSN++",
    "subvp": "Score-SDE, sub-VP",
    "ncsn": "NCSNv2: geometric ladder, score prediction (Song & Ermon 2020)",
}


def names() -> list[str]:
    """Return all recipe names: the published ones, then their tiny variants."""
    return [*_FULL, *(f"{name}-tiny" for name in _FULL)]


def recipe(name: str) -> Recipe:
    """Return the named recipe; ConfigError suggests the nearest name for an unknown one."""
    if name in _FULL:
        return _FULL[name]()
    if name.removesuffix("-tiny") in _FULL and name.endswith("-tiny"):
        return _tiny(_FULL[name.removesuffix("-tiny")]())
    close = difflib.get_close_matches(name, names(), 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(f"unknown recipe {name!r}; {hint}known: {', '.join(names())}")
