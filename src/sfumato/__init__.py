"""Sfumato: diffusion generative models on one line, x = x0 + sigma * noise.

Names are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfumato.data.pairs import open_pairs
    from sfumato.data.save import save_images
    from sfumato.data.sources import open_images
    from sfumato.denoiser import Clipped
    from sfumato.gaussian import Gaussian
    from sfumato.noise import NoiseLevels, NoiseRange, karras
    from sfumato.parameterization import (
        edm_preconditioned,
        predicts_mean,
        predicts_noise,
        predicts_score,
        predicts_v,
        predicts_x0,
        unit_gaussian,
    )
    from sfumato.randomness import Noise, noise_for
    from sfumato.recipes.loading import load
    from sfumato.recipes.model import Model
    from sfumato.recipes.presets import recipe
    from sfumato.recipes.train import train
    from sfumato.sampling import Step, generate, sample, start_from_prior
    from sfumato.solvers import DDIM, Ancestral, Churn, Euler, Heun

_HOME = {
    "Ancestral": "solvers",
    "Churn": "solvers",
    "Clipped": "denoiser",
    "DDIM": "solvers",
    "Euler": "solvers",
    "Gaussian": "gaussian",
    "Heun": "solvers",
    "Model": "recipes.model",
    "Noise": "randomness",
    "NoiseLevels": "noise",
    "NoiseRange": "noise",
    "Step": "sampling",
    "edm_preconditioned": "parameterization",
    "generate": "sampling",
    "karras": "noise",
    "load": "recipes.loading",
    "noise_for": "randomness",
    "open_images": "data.sources",
    "open_pairs": "data.pairs",
    "predicts_mean": "parameterization",
    "predicts_noise": "parameterization",
    "predicts_score": "parameterization",
    "predicts_v": "parameterization",
    "predicts_x0": "parameterization",
    "recipe": "recipes.presets",
    "sample": "sampling",
    "save_images": "data.save",
    "start_from_prior": "sampling",
    "train": "recipes.train",
    "unit_gaussian": "parameterization",
}

__all__ = [
    "DDIM",
    "Ancestral",
    "Churn",
    "Clipped",
    "Euler",
    "Gaussian",
    "Heun",
    "Model",
    "Noise",
    "NoiseLevels",
    "NoiseRange",
    "Step",
    "edm_preconditioned",
    "generate",
    "karras",
    "load",
    "noise_for",
    "open_images",
    "open_pairs",
    "predicts_mean",
    "predicts_noise",
    "predicts_score",
    "predicts_v",
    "predicts_x0",
    "recipe",
    "sample",
    "save_images",
    "start_from_prior",
    "train",
    "unit_gaussian",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"sfumato.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sfumato' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
