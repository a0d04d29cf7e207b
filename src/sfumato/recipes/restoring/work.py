"""One image restored, whatever was done to it: read, asked about, and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.pixels import PixelFormat, from_model
from sfumato.data.save import save_image
from sfumato.errors import ConfigError, DataError
from sfumato.recipes.inputs import save_array
from sfumato.recipes.restoring.damaged import Damaged, read_damaged, write_restored
from sfumato.recipes.restoring.drawing import Drawing
from sfumato.recipes.restoring.page import Shown
from sfumato.recipes.restoring.scene_work import number, restore_scene
from sfumato.recipes.restoring.scenes import SceneReader
from sfumato.recipes.restoring.tasks import Task, question
from sfumato.restoration import Measured
from sfumato.restoration.estimate import noise_std

_TO_SHOW = 2**22
"""Values of an image that is still put on a page."""


@dataclass(frozen=True)
class Given:
    """What is told of the images: where they are damaged, their noise, and the truth.

    `noise`: deviation of the known pixels' own noise in pixel values, "auto" to estimate it.
    """

    mask: Path | None = None
    nodata: float | None = None
    channels: int | None = None
    noise: str = "0"
    truth: Path | None = None


@dataclass(frozen=True, eq=False)
class Done:
    """Files that were written, what to show of them, and what there is to say."""

    files: list[Path]
    shown: Shown | None
    form: PixelFormat
    notes: list[str]


def restore(
    drawing: Drawing,
    task: Task,
    path: Path,
    given: Given,
    name: Callable[[str], Path],
    tick: Callable[[float], object] = lambda share: None,
) -> Done:
    """Restore one image and write its answers, their mean and spread, as `name` calls them.

    `name` maps "", "-2", "-mean" or "-spread" to a path; `tick` is told what share is done. Raises
    DataError and ConfigError for what does not fit, and for an image without anything missing.
    """
    if drawing.model.condition is not None:
        return _paired(drawing, task, path, given, name, tick)
    if task.missing:
        return _filled(drawing, path, given, name, tick)
    return _whole(drawing, task, path, given, name, tick)


def _filled(
    drawing: Drawing, path: Path, given: Given, name: Callable[[str], Path],
    tick: Callable[[float], object],
) -> Done:  # fmt: skip
    form = drawing.model.format
    with SceneReader(
        path, form, mask=given.mask, nodata=given.nodata, channels=given.channels
    ) as scene:
        share = scene.share()
        if share == 0:
            raise DataError(
                f"{path}: nothing is missing: mark what is, by --mask, transparent pixels, NaN or "
                "--nodata"
            )
        notes = ["nothing is known of it, so these are samples"] if share == 1 else []
        size = scene.format.height * scene.format.width
        small = size * form.channels <= _TO_SHOW
        shown_given, std = torch.zeros(form.channels, 1, 1), 0.0
        if small:
            whole = scene.read(0, 0, scene.format.height, scene.format.width)
            shown_given = torch.where(whole.known, whole.x, -1.0)
        if given.noise == "auto" and not small:
            raise ConfigError("--noise auto is for images that fit into memory: give a number")
        std = _std(given.noise, shown_given, form)
        done = restore_scene(drawing, scene, name, std, lambda n: tick(n / size), small)
        notes.insert(0, f"{share:.1%} of it was missing")
        if scene.geo is not None and name("").suffix.lower() not in (".tif", ".tiff"):
            notes.append("its georeference is lost: write a .tif to keep it")
        shown = None
        if done.answers is not None:
            truth = _truth(given, scene.format)
            shown = Shown(scene.name, shown_given, done.answers, truth)
        return Done(done.files, shown, scene.format, notes)


def _whole(
    drawing: Drawing, task: Task, path: Path, given: Given, name: Callable[[str], Path],
    tick: Callable[[float], object],
) -> Done:  # fmt: skip
    if given.mask is not None or given.nodata is not None:
        raise ConfigError("--mask and --nodata are for missing parts, and exclude other tasks")
    asked = question(task, path, drawing.model.format)
    std = _std(given.noise, asked.shown, asked.form)
    notes: list[str] = []
    start = None
    if task.noise is not None:
        level = _std(task.noise, asked.shown, asked.form)
        if not level > 0:
            raise ConfigError(f"--denoise needs noise above 0 to remove, not {task.noise}")
        notes.append(f"noise of {level * _unit(asked.form):.3g} pixel values removed")
        start = (asked.y[0], level)
    measured = None if start is not None else Measured(asked.operator, asked.y, std)
    steps = len(drawing.grid(None if start is None else start[1])) - 1
    x = drawing.draw(asked.shape, measured, start=start, tick=lambda n: tick(n / steps))
    shown = Shown(path.name, asked.shown, from_model(x, asked.form), _truth(given, asked.form))
    return Done(_write(x, shown.answers, asked.form, asked.damaged, name), shown, asked.form, notes)


def _paired(
    drawing: Drawing, task: Task, path: Path, given: Given, name: Callable[[str], Path],
    tick: Callable[[float], object],
) -> Done:  # fmt: skip
    model = drawing.model
    assert model.condition is not None
    if not task.missing or given.mask is not None:
        raise ConfigError(
            "this model was trained on pairs and knows from them what to restore: leave out --mask "
            "and the tasks"
        )
    seen = read_damaged(path, model.condition, nodata=given.nodata, channels=given.channels)
    height, width = seen.format.height, seen.format.width
    form = replace(model.format, height=height, width=width)
    steps = len(drawing.grid()) - 1
    x = drawing.draw(form.shape, None, condition=seen.x, tick=lambda n: tick(n / steps))
    shown = Shown(path.name, seen.x, from_model(x, form), _truth(given, form))
    like = replace(seen, format=form, raw=None, known=torch.zeros(1, height, width).bool())
    return Done(_write(x, shown.answers, form, like, name), shown, form, [])


def _write(
    x: Tensor, raw: NDArray[Any], form: PixelFormat, like: Damaged | None,
    name: Callable[[str], Path],
) -> list[Path]:  # fmt: skip
    """Write answers; where there are several, their mean and spread too."""
    named = [(number(i, len(raw)), one) for i, one in enumerate(raw)]
    if len(raw) > 1:
        named.append(("-mean", from_model(x.mean(0), form)))
    files: list[Path] = []
    for suffix, one in named:
        where = name(suffix)
        if like is not None:
            write_restored(one, like, where)
        else:
            save_image(one, form, where)
        files.append(where)
    if len(raw) > 1:
        files.append(name("-spread").with_suffix(".npy"))
        spread = x.std(0).mean(0).numpy() * _unit(form)
        save_array(spread.astype(np.float32), files[-1])
    return files


def _std(told: str, image: Tensor, form: PixelFormat) -> float:
    """A deviation in [-1, 1] units of one in pixel values, or an image's own."""
    if told == "auto":
        return noise_std(image.double())
    try:
        value = float(told)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f'noise is a number of pixel values, 0 or more, or "auto", not {told!r}')
    return value / _unit(form)


def _unit(form: PixelFormat) -> float:
    """Pixel values to 1 of [-1, 1]."""
    return (form.high - form.low) / 2


def _truth(given: Given, form: PixelFormat) -> NDArray[Any] | None:
    if given.truth is None:
        return None
    truth = read_damaged(given.truth, form)
    if truth.format.shape != form.shape:
        raise DataError(
            f"{given.truth}: the truth is {truth.format.describe()}, and the restored image "
            f"{form.describe()}"
        )
    return from_model(truth.x, form)
