"""Autoguidance: a model led away from what a weaker one of the same images would draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sfumato.errors import ConfigError
from sfumato.guidance import covers, in_words
from sfumato.recipes import build
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model


def autoguided(model: Model, weaker: Model) -> Model:
    """Return the model with a weaker one to lead its guidance away from (Karras et al. 2024).

    Its `guidance` then means D = D_weaker + guidance (D - D_weaker), both of the same class, and
    takes no label dropout. Raises ConfigError for models of other image shapes, classes, images to
    start from or noise levels, saying both.
    """
    ranges = [build.adapt(one.recipe, one.network).range for one in (model, weaker)]
    told = {
        "images": [" x ".join(map(str, one.format.shape)) for one in (model, weaker)],
        "classes": [", ".join(one.classes) or "none" for one in (model, weaker)],
        "images to start from": [
            one.condition.describe() if one.condition else "none" for one in (model, weaker)
        ],
    }
    unlike = [f"{what}: {mine} and {its}" for what, (mine, its) in told.items() if mine != its]
    if not covers(ranges[1], ranges[0]):
        unlike.append(f"noise levels: {in_words(ranges[0])} and {in_words(ranges[1])}")
    if unlike:
        raise ConfigError(
            f"autoguidance needs a weaker model of the same images: {_name(model)} and "
            f"{_name(weaker)} differ in {'; '.join(unlike)}; give an earlier checkpoint of the "
            "run, RUN/checkpoints/NUMBER, or a smaller or shorter run on the same data"
        )
    return replace(model, weaker=weaker)


def load_autoguided(
    model: Model, path: str | Path, guidance: float | None, precision: str = "auto"
) -> Model:
    """Return the model autoguided by the one at `path`, a run or checkpoint; ema or not as its own.

    `guidance` is what the user asked for, which must say how strongly. Raises ConfigError as
    `autoguided` does, where there is no guidance to speak of, and for the model's own checkpoint.
    """
    if guidance is None or guidance == 1:
        raise ConfigError(
            "autoguidance wants to know how strongly, and 1 is off: add for example --guidance 2"
        )
    weaker = load(path, weights=model.weights, device=str(model.device))
    if weaker.path is not None and model.path is not None and weaker.path.samefile(model.path):
        raise ConfigError(
            f"{weaker.path} is the model itself, which is no guide for it: give an earlier "
            "checkpoint, RUN/checkpoints/NUMBER, or a smaller or shorter run"
        )
    return autoguided(model, weaker.with_precision(precision))


def _name(model: Model) -> str:
    return str(model.path or "a model in memory")
