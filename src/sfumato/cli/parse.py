"""Parsing with tyro, and what every verb prints the same way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from sfumato.report.words import duration

__all__ = ["duration", "free_folder", "parse"]

Options = TypeVar("Options")


def parse(
    cls: type[Options],
    arguments: Sequence[str],
    verb: str,
    description: str,
    default: Options | None = None,
) -> Options:
    """Return `cls` filled in from the arguments; help and usage errors print and exit."""
    config = (tyro.conf.AvoidSubcommands,)
    return tyro.cli(
        cls,
        prog=f"sfumato {verb}",
        description=description,
        args=list(arguments),
        default=default if default is not None else tyro.MISSING_NONPROP,
        config=config,
    )


def free_folder(wanted: Path) -> Path:
    """Return the folder, or the first of wanted-2, wanted-3, ... that does not exist yet."""
    folder, count = wanted, 1
    while folder.exists():
        count += 1
        folder = wanted.with_name(f"{wanted.name}-{count}")
    return folder
