"""The command lines that make a run, or images from it, once more."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from sfumato.recipes.presets import names, recipe
from sfumato.recipes.run_config import Bookkeeping, DataConfig, RunConfig
from sfumato.recipes.run_data import IN_MEMORY
from sfumato.recipes.toml import difference


def train_command(config: RunConfig, folder: Path | None = None) -> str:
    """Return the `sfumato train` line of a run: its recipe's name and every option that differs.

    --out is among them where the run's folder is not what it would be without.
    A comment where no line can: images in memory, or a recipe or network of the user's own.
    """
    name = config.recipe.name
    if name not in names():
        return f"# {name!r} is no built-in recipe: config.toml beside this page holds all of it"
    if IN_MEMORY in (config.data.data or IN_MEMORY, config.data.test):
        return "# trained on images in memory: config.toml beside this page holds the rest"
    changed = difference(config.recipe, recipe(name))
    if any(is_dataclass(value) for value in changed.values()):
        return "# the network is not of the recipe's kind: config.toml beside this page holds all"
    given = _changes(config.data, DataConfig()) | _changes(config.run, Bookkeeping()) | changed
    out = [] if folder is None or _by_default(folder, name) else ["--out", str(folder)]
    return shlex.join(["sfumato", "train", name, *_options(given), *out])


def sample_command(folder: Path, *, given: bool = False) -> str:
    """Return the line that draws 64 images from a run, or answers to a folder `given` to it."""
    if given:
        return shlex.join(["sfumato", "restore", str(folder), "IMAGES"])
    return shlex.join(["sfumato", "sample", str(folder), "-n", "64"])


def _by_default(folder: Path, name: str) -> bool:
    """Whether this is runs/NAME, or runs/NAME-2, ... where that was taken."""
    number = folder.name.removeprefix(name).removeprefix("-")
    numbered = folder.name.startswith(name) and (not number or number.isdecimal())
    return folder.parent == Path("runs") and numbered


def _changes(value: DataConfig | Bookkeeping, default: DataConfig | Bookkeeping) -> dict[str, Any]:
    pairs = {item.name: getattr(value, item.name) for item in fields(value)}
    return {name: given for name, given in pairs.items() if given != getattr(default, name)}


def _options(given: Mapping[str, Any]) -> list[str]:
    """Options as the command line spells them: --sampler.sigma-min 0.1, --no-flip."""
    words: list[str] = []
    for name, value in given.items():
        *groups, last = name.replace("_", "-").split(".")
        if isinstance(value, bool):
            words.append("--" + ".".join([*groups, last if value else f"no-{last}"]))
            continue
        flag = "--" + ".".join([*groups, last])
        values = [str(v) for v in value] if isinstance(value, tuple | list) else [str(value)]
        if len(values) == 1 and values[0].startswith("-"):
            words.append(f"{flag}={values[0]}")
        else:
            words += [flag, *values]
    return words
