"""Tuned samplers kept beside a checkpoint: `tuned-NNN.toml`, one for each number of calls."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import cattrs
import tomli_w

from sfumato.errors import ConfigError, SfumatoError
from sfumato.files import write_text
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.recipes.samplers import solver_of
from sfumato.recipes.toml import drop_none, strict_converter
from sfumato.solvers import NonStationary
from sfumato.solvers.cost import evaluations

FORMAT = 1


@dataclass(frozen=True)
class Tuned:
    """A sampler found by measurement for one model and number of calls, and how it was found."""

    nfe: int
    sampler: SamplerConfig
    about: Mapping[str, Any]
    """Plain values for the reader: the teacher, errors, and the settings of the search."""


def path_of(checkpoint: Path, nfe: int) -> Path:
    """Return where the tuned sampler of a checkpoint lies."""
    return checkpoint / f"tuned-{nfe:03d}.toml"


def save_tuned(model: Model, tuned: Tuned) -> Path:
    """Write a tuned sampler beside the model's checkpoint; return the file.

    Raises ConfigError for a model that was not loaded from one.
    """
    if model.path is None or not model.fingerprint:
        raise ConfigError("a sampler is tuned for a saved model: load it from a run or checkpoint")
    target = path_of(model.path, tuned.nfe)
    tables = {
        "format": FORMAT,
        "weights": model.fingerprint,
        "nfe": tuned.nfe,
        "sampler": drop_none(strict_converter().unstructure(tuned.sampler)),
        "about": dict(tuned.about),
    }
    write_text(target, tomli_w.dumps(tables))
    return target


def load_tuned(model: Model) -> tuple[dict[int, Tuned], list[str]]:
    """Return the tuned samplers of a model by their calls, and notes on those passed over.

    One that belongs to other weights (the raw ones in place of the average, say) is none of this
    model's and is passed over in silence; an autoguided model has none.
    """
    if model.weaker is not None:
        return {}, []
    found: dict[int, Tuned] = {}
    notes: list[str] = []
    for path in sorted(model.path.glob("tuned-*.toml")) if model.path else ():
        try:
            tuned = _read(path, model.fingerprint)
        except (SfumatoError, OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"passed over {path}, which cannot be read ({error}): tune again")
            continue
        if tuned is not None:
            found[tuned.nfe] = tuned
    return found, notes


def _read(path: Path, fingerprint: str) -> Tuned | None:
    tables = tomllib.loads(path.read_text())
    if tables["format"] != FORMAT:
        raise ConfigError(f"format {tables['format']}, and this version reads {FORMAT}")
    if tables["weights"] != fingerprint:
        return None
    try:
        sampler = strict_converter().structure(tables["sampler"], SamplerConfig)
    except (cattrs.BaseValidationError, ValueError) as error:
        reasons = cattrs.transform_error(error, path="sampler")
        raise ConfigError("; ".join(reasons)) from error
    if sampler.table is not None:
        NonStationary(*astuple(sampler.table))  # raises ValueError for what cannot be walked
    nfe = int(tables["nfe"])
    if evaluations(solver_of(sampler), sampler.steps) != nfe or path != path_of(path.parent, nfe):
        raise ConfigError(f"it is of {nfe} calls by its own word, which does not fit the rest")
    return Tuned(nfe, sampler, tables["about"])


def samplers(tuned: Mapping[int, Tuned]) -> dict[int, SamplerConfig]:
    """Return the samplers alone."""
    return {nfe: one.sampler for nfe, one in tuned.items()}
