"""What can be told of images before the first of them is restored, from their headers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sfumato.errors import DataError
from sfumato.recipes.restoring.drawing import Drawing
from sfumato.recipes.restoring.scenes import SceneReader
from sfumato.recipes.restoring.tasks import Task
from sfumato.recipes.restoring.work import Given, refuse_large


def check(drawing: Drawing, task: Task, path: Path, given: Given) -> None:
    """Raise what `restore` would for an image's, its mask's or the truth's size, channels or depth.

    What a user's own operator measures is left to it. Pixels are decoded only where a file's kind
    has no header apart from them.
    """
    model = drawing.model
    if task.operator is not None or (task.colorize and model.format.channels != 3):
        return  # the first image tells
    form, channels = model.condition or model.format, given.channels
    if task.colorize:
        form, channels = replace(form, channels=1), 1
    with SceneReader(path, form, mask=given.mask, nodata=given.nodata, channels=channels) as scene:
        factor = task.enlarge or 1
        height, width = scene.format.height * factor, scene.format.width * factor
        if task.missing and model.condition is None:
            refuse_large(given, path, height * width * scene.format.channels)
    drawing.check(height, width)
    if given.truth is None:
        return
    with SceneReader(given.truth, model.format, channels=given.channels) as truth:
        found = truth.format
    if (found.height, found.width) != (height, width):
        restored = replace(model.format, height=height, width=width)
        raise DataError(
            f"{given.truth}: the truth is {found.describe()}, and the restored image "
            f"{restored.describe()}"
        )
