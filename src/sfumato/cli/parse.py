"""Parsing with tyro, and what every verb prints the same way."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from sfumato.errors import ConfigError
from sfumato.report.words import duration

__all__ = ["OutPath", "check_seeds", "duration", "free_folder", "parse"]

_SEEDS = 2**63

Options = TypeVar("Options")

OutPath = Annotated[Path | None, tyro.conf.arg(aliases=["-o"])]
"""Where a verb writes: `--out` or `-o`, the same for all."""


def parse(
    cls: type[Options],
    arguments: Sequence[str],
    verb: str,
    description: str,
    default: Options | None = None,
) -> Options:
    """Return `cls` filled in from the arguments; help and usage errors print and exit.

    A choice that the run makes if nothing is said (`bool | None`) is made by `--name` or
    `--no-name` alone, as any other flag is.
    """
    config = (tyro.conf.AvoidSubcommands,)
    arguments = list(_flags_said(cls, arguments))
    try:
        return tyro.cli(
            cls,
            prog=f"sfumato {verb}",
            description=description,
            args=arguments,
            default=default if default is not None else tyro.MISSING_NONPROP,
            config=config,
        )
    except SystemExit as end:
        if end.code:
            for hint in (*_nearest_choices(cls, arguments), *_wrong_counts(cls, arguments)):
                print(f"sfumato {verb}: {hint}", file=sys.stderr)
        raise


def _flags_said(cls: type[Any], arguments: Sequence[str]) -> Iterator[str]:
    """The arguments with `--name` for `--name True`, where tyro wants the value too."""
    optional = {bool, type(None)}
    unsaid = {n.replace("_", "-") for n, kind in _fields(cls) if set(get_args(kind)) == optional}
    for word, value in pairwise([*arguments, ""]):
        name = word.removeprefix("--").removeprefix("no-")
        if not word.startswith("--") or name not in unsaid:
            yield word
        elif word.startswith("--no-"):
            yield from (f"--{name}", "False")
        else:
            yield from (word,) if value in ("True", "False", "None") else (word, "True")


def _nearest_choices(cls: type[Any], arguments: Sequence[str]) -> Iterator[str]:
    """For each option whose value is none of its choices, the choice that it resembles."""
    known = dict(_choices(cls))
    words = [part for word in arguments for part in word.split("=", 1)]
    for option, value in pairwise(words):
        choices = known.get(option.rpartition(".")[2].removeprefix("--").replace("-", "_"), ())
        if option.startswith("--") and choices and value not in choices:
            for close in difflib.get_close_matches(value, choices, 1, cutoff=0.5):
                yield f"unknown {option} {value!r}; did you mean {close!r}?"


def _wrong_counts(cls: type[Any], arguments: Sequence[str]) -> Iterator[str]:
    """For each option that takes several values and was given another number, how many it takes."""
    known = dict(_counts(cls))
    for place, word in enumerate(arguments):
        option, _, joined = word.partition("=")
        count = known.get(option.rpartition(".")[2].removeprefix("--").replace("-", "_"))
        if option.startswith("--") and count:
            after = arguments[place + 1 : place + 1 + count]
            values = [joined] if joined else list(takewhile(lambda w: w[:2] != "--", after))
            if len(values) < count and values != ["None"]:
                yield f"{option} takes {count} values, got {len(values)}"


def _counts(kind: Any) -> Iterator[tuple[str, int]]:
    """Names of fields that take a fixed number of values, with that."""
    for name, hint in _fields(kind):
        for part in (hint, *get_args(hint)):
            if get_origin(part) is tuple and Ellipsis not in get_args(part):
                yield name, len(get_args(part))


def _choices(kind: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names of fields that take one of several words, with these, also of fields of fields."""
    for name, hint in _fields(kind):
        for part in (hint, *get_args(hint)):
            if get_origin(part) is Literal:
                yield name, tuple(map(str, get_args(part)))


def _fields(kind: Any) -> Iterator[tuple[str, Any]]:
    """Names and types of a dataclass's fields, and of those of the dataclasses in it."""
    for name, hint in get_type_hints(kind).items():
        inside = [part for part in (hint, *get_args(hint)) if is_dataclass(part)]
        for part in inside:
            yield from _fields(part)
        if not inside:
            yield name, hint


def check_seeds(seed: int, count: int = 1, name: str = "--seed") -> None:
    """Raise ConfigError unless noise tells all of so many seeds, from this one on, apart."""
    if seed < 0:
        raise ConfigError(f"{name} must be 0 or more, not {seed}")
    if seed + count > _SEEDS:
        last = f" (the last of {count:,} is {seed + count - 1})" if count > 1 else ""
        raise ConfigError(f"{name} must end below 2^63 = {_SEEDS}, not at {seed}{last}")


def free_folder(wanted: Path) -> Path:
    """Return the folder, or the first of wanted-2, wanted-3, ... that does not exist yet."""
    folder, count = wanted, 1
    while folder.exists():
        count += 1
        folder = wanted.with_name(f"{wanted.name}-{count}")
    return folder
