"""Classes by name or number, and the class that each image is drawn of."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from sfumato.errors import ConfigError
from sfumato.randomness import derive_seed


def class_index(classes: Sequence[str], name: str) -> int:
    """Return the index of a class given by name (case aside) or number."""
    folded = [known.casefold() for known in classes]
    if name.casefold() in folded:
        return folded.index(name.casefold())
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    close = difflib.get_close_matches(name.casefold(), folded, 1)
    hint = f"did you mean {classes[folded.index(close[0])]!r}? " if close else ""
    raise ConfigError(f"unknown class {name!r}; {hint}known: {', '.join(classes)}")


def classes_for(classes: Sequence[str], seeds: Sequence[int], name: str | None) -> list[int] | None:
    """Return the class of each image: the named one, or one drawn by the image's seed.

    None where there are no classes; ConfigError where one is asked for nevertheless.
    """
    if not classes:
        if name is not None:
            raise ConfigError("this model was trained without classes: train with --classes")
        return None
    if name is not None:
        return [class_index(classes, name)] * len(seeds)
    return [derive_seed(seed, "class") % len(classes) for seed in seeds]
