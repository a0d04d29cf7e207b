"""A model's profile, measured once on training images and kept beside its checkpoint."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import cattrs
import numpy as np
import tomli_w
from torch import Tensor

from sfumato.codec import Profile, measure_profile
from sfumato.data.pixels import to_model
from sfumato.errors import CodecError, ConfigError
from sfumato.files import write_text
from sfumato.likelihood import bound_grid
from sfumato.randomness import noise_for
from sfumato.recipes.evaluation.opening import config_of, gone
from sfumato.recipes.inputs import Opening, open_as
from sfumato.recipes.model import Model
from sfumato.recipes.run_data import open_to_measure

FILE = "codec.toml"
FORMAT = 1
_IMAGES, _VALUES = 64, 2**18
"""Images to measure on, fewer of many values, but never fewer than 8."""
_LEVELS = 120
_HIGHEST = 64.0
"""Levels of noise far above the images' own deviation tell nothing."""


def prepare(
    model: Model,
    data: str = "",
    opening: Opening | None = None,
    tick: Callable[[int], object] = lambda n: None,
) -> tuple[Profile, Path]:
    """Measure a model on images of `data`, its run's training images if "", and keep the profile.

    What was compressed with another profile is not decoded with this one. `tick` is told of every
    level. Raises ConfigError for a model the codec does not know: of floating-point images, or of
    classes; and for fewer than two images.
    """
    check_codable(model)
    assert model.path is not None
    assert model.format.levels is not None
    if not os.access(model.path, os.W_OK):
        raise ConfigError(
            f"what is measured of a model is kept beside its checkpoint, and {model.path} cannot "
            "be written to: copy the run to where it can"
        )
    x0 = _images(model, data, opening or Opening())
    profile = measure_profile(
        model.denoiser,
        x0,
        profile_grid(model),
        noise_for(0, len(x0)),
        half_bin=1 / (model.format.levels - 1),
        device=model.device,
        tick=tick,
    )
    tables = {
        "format": FORMAT,
        "weights": model.fingerprint,
        "images": len(x0),
        "profile": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(profile).items()},
    }
    path = model.path / FILE
    write_text(path, tomli_w.dumps(tables))
    return profile, path


def load_profile(model: Model) -> Profile | None:
    """Return the profile kept beside a model's checkpoint; None where there is none of its weights.

    Raises CodecError for one that cannot be read.
    """
    check_codable(model)
    assert model.path is not None
    path = model.path / FILE
    if not path.is_file():
        return None
    try:
        tables = tomllib.loads(path.read_text())
        if tables["format"] != FORMAT or tables["weights"] != model.fingerprint:
            return None
        return cattrs.Converter().structure(tables["profile"], Profile)
    except (OSError, ValueError, KeyError, TypeError, cattrs.BaseValidationError) as error:
        raise CodecError(
            f"{path} cannot be read: it is damaged. Remove it and prepare the model again "
            "(sfumato compress RUN --prepare IMAGES)"
        ) from error


def profile_grid(model: Model) -> Tensor:
    """Return the levels a profile knows."""
    grid = bound_grid(model.denoiser.range, _LEVELS)
    above = int((grid > _HIGHEST).sum())
    return grid[max(above - 1, 0) :]


def check_codable(model: Model) -> None:
    """Raise ConfigError, saying how to proceed, for a model that gives no code of probabilities."""
    if model.path is None or not model.fingerprint:
        raise ConfigError("the codec works with a saved model: load it from a run or checkpoint")
    if model.format.levels is None:
        raise ConfigError(
            "this model's images are floating-point numbers, which no finite code can tell: train "
            "on images of 8 or 16 bits"
        )
    if model.classes:
        raise ConfigError(
            "this model was trained with classes, and a file does not say which an image is of: "
            "train without --classes"
        )


def steps_table(profile: Profile, values: int) -> list[tuple[int, float, float, float]]:
    """Return each quality with its RMSE of 255, bits a value, and bytes an image, as expected."""
    return [
        (number, 127.5 * profile.rmse[place], bits / values, bits / 8)
        for number, (place, bits) in enumerate(zip(profile.steps, profile.bits, strict=True))
        if number
    ]


def _images(model: Model, data: str, opening: Opening) -> Tensor:
    if data:
        images = open_as(data, model.format, opening)
    else:
        config = config_of(model.run)
        own = config.data.data if config else ""
        problem = gone(own, "training images", "--prepare") if own else "its run tells no images"
        if config is None or problem:
            raise ConfigError(
                "this model has not been prepared for compressing, which takes some images like "
                f"those it was trained on ({problem}): add --prepare IMAGES"
            )
        images = open_to_measure(config.data, own)
    if len(images) < 2:
        raise ConfigError(f"a model is prepared on two images at least, not {len(images)}")
    count = min(_IMAGES, max(8, _VALUES // math.prod(model.format.shape)))
    order = np.random.default_rng(0).permutation(len(images))
    return to_model(images.read(sorted(order[:count].tolist())), model.format)
