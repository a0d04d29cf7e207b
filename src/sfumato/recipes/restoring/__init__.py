"""Damaged images of any size: read for a model, restored by it, and written back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.recipes.restoring.checks import check
    from sfumato.recipes.restoring.damaged import Damaged, read_damaged, write_restored
    from sfumato.recipes.restoring.drawing import Drawing
    from sfumato.recipes.restoring.how import How, usual_sampler
    from sfumato.recipes.restoring.page import PICTURES, write_page
    from sfumato.recipes.restoring.scenes import SceneReader, SceneWriter
    from sfumato.recipes.restoring.tasks import Task
    from sfumato.recipes.restoring.truth import Score, Scorer, Shown, averages
    from sfumato.recipes.restoring.work import Done, Given, restore

_WHERE = {
    "checks": ("check",),
    "damaged": ("Damaged", "read_damaged", "write_restored"),
    "drawing": ("Drawing",),
    "how": ("How", "usual_sampler"),
    "page": ("PICTURES", "write_page"),
    "scenes": ("SceneReader", "SceneWriter"),
    "tasks": ("Task",),
    "truth": ("Score", "Scorer", "Shown", "averages"),
    "work": ("Done", "Given", "restore"),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "PICTURES",
    "Damaged",
    "Done",
    "Drawing",
    "Given",
    "How",
    "SceneReader",
    "SceneWriter",
    "Score",
    "Scorer",
    "Shown",
    "Task",
    "averages",
    "check",
    "read_damaged",
    "restore",
    "usual_sampler",
    "write_page",
    "write_restored",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
