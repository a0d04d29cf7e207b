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
from sfumato.recipes.restoring.damaged import Damaged, read_damaged, write_restored
from sfumato.recipes.restoring.drawing import Drawing, deviation
from sfumato.recipes.restoring.scene_work import number, restore_scene
from sfumato.recipes.restoring.scenes import SceneReader, spread_writer
from sfumato.recipes.restoring.tasks import Question, Task, question, try_own
from sfumato.recipes.restoring.truth import TO_SHOW, Shown
from sfumato.restoration import Measured
from sfumato.restoration.estimate import noise_std
from sfumato.restoration.operators import is_spectral

_IN_MEMORY = 2**25
"""Values of an image that is still held as a whole where only parts are missing."""


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


_WHOLE: dict[str, Callable[[Given], bool]] = {
    "--truth": lambda given: given.truth is not None,
    "--noise auto": lambda given: given.noise == "auto",
}
"""Options that need a whole image at once, and whether they are given."""


def refuse_large(given: Given, path: Path, values: int) -> None:
    """Raise ConfigError for options that need a whole image, where parts of a large one miss."""
    for option, there in _WHOLE.items():
        if there(given) and values > _IN_MEMORY:
            raise ConfigError(
                f"{option} is for images of at most {_IN_MEMORY / 1e6:.0f} million values, and "
                f"{path} has {values / 1e6:.0f}: leave it out"
            )


def _filled(
    drawing: Drawing, path: Path, given: Given, name: Callable[[str], Path],
    tick: Callable[[float], object],
) -> Done:  # fmt: skip
    form = drawing.model.format
    with SceneReader(
        path, form, mask=given.mask, nodata=given.nodata, channels=given.channels
    ) as scene:
        height, width = scene.format.height, scene.format.width
        drawing.check(height, width)
        share = scene.share()
        if share == 0:
            raise DataError(
                f"{path}: nothing is missing: mark what is, by --mask, transparent pixels, NaN or "
                "--nodata"
            )
        notes = [*_read_as(scene), f"{share:.1%} of it was missing"]
        if share == 1:
            notes.append("nothing is known of it, so these are samples")
        size = height * width
        values = size * form.channels
        refuse_large(given, path, values)
        truth = _truth(given, scene.format)
        keep = truth is not None or values <= TO_SHOW
        whole = scene.read(0, 0, height, width) if keep or given.noise == "auto" else None
        if whole is not None:
            std = _std(given.noise, whole.x, form, whole.known)
        else:
            std = _std(given.noise, torch.zeros(1), form)
        done = restore_scene(drawing, scene, name, std, lambda n: tick(n / size), keep)
        if scene.geo is not None and not _holds_place(name("")):
            notes.append(_PLACE_LOST)
        shown = None
        if whole is not None and done.answers is not None:
            seen = torch.where(whole.known, whole.x, -1.0)
            shown = Shown(scene.name, seen, done.answers, truth, scene.format)
        return Done(done.files, shown, notes)


def _whole(
    drawing: Drawing, task: Task, path: Path, given: Given, name: Callable[[str], Path],
    tick: Callable[[float], object],
) -> Done:  # fmt: skip
    if given.mask is not None or given.nodata is not None:
        raise ConfigError("--mask and --nodata are for missing parts, and exclude other tasks")
    asked = question(task, path, drawing.model.format, given.channels)
    drawing.check(*asked.shape[1:])
    if task.operator is not None:
        like = torch.zeros(drawing.sampler.batch, *asked.shape, device=drawing.model.device)
        try_own(task.operator, asked.operator, like)
    truth = _truth(given, asked.form)
    seen = asked.damaged
    if seen is None and given.noise == "auto":
        raise ConfigError(f"--noise auto is for images, and {path} is none: give a number")
    known = None if seen is None else seen.known
    std = _std(given.noise, asked.shown, asked.form, known)
    notes = _read_as(seen)
    start = None
    if task.noise is not None:
        start = asked.y[0], _noise_to_remove(task.noise, path, asked, given)
        notes.append(f"noise of {start[1] * _unit(asked.form):.3g} pixel values removed")
    if asked.form.dtype != "float32":  # whole numbers are rounded ones
        std = max(std, 12**-0.5 / _unit(asked.form))
    if drawing.method == "ddrm" and std > 0 and not is_spectral(asked.operator):
        raise ConfigError(
            "the method ddrm needs to know how each direction was weakened, which for this task "
            "and image it does not: choose another --method"
        )
    measured = None if start is not None else Measured(asked.operator, asked.y, std)
    x = drawing.draw(asked.shape, measured, start=start, tick=tick)
    like = None
    if seen is not None and seen.geo is not None:
        factor = task.enlarge or 1
        size = (factor * seen.format.height, factor * seen.format.width)
        if size == asked.shape[1:]:
            alike = seen.format.channels == asked.form.channels
            geo = (seen.geo if alike else seen.geo.of_place()).enlarged(factor)
            like = replace(seen, format=asked.form, geo=geo, raw=None)
        if like is None:
            notes.append("its georeference is lost: what was measured is of another size")
        elif not _holds_place(name("")):
            notes.append(_PLACE_LOST)
    return _done(drawing, x, asked.form, like, name, path, asked.shown, truth, notes)


def _noise_to_remove(told: str, path: Path, asked: Question, given: Given) -> float:
    """The deviation in [-1, 1]; ConfigError where there is none, or other noise or damage too."""
    if given.noise != "0":
        raise ConfigError("--denoise tells the noise already: leave out --noise")
    if asked.damaged is not None and asked.damaged.share:
        raise ConfigError(
            f"{path}: parts of it are missing: say --noise {told} in place of --denoise {told}, "
            "and both are restored"
        )
    level = _std(told, asked.shown, asked.form)
    if not level > 0:
        raise ConfigError(f"--denoise needs noise above 0 to remove, not {told}")
    return level


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
    if given.noise != "0":
        raise ConfigError("a model trained on pairs knows its noise from them: leave out --noise")
    seen = read_damaged(path, model.condition, nodata=given.nodata, channels=given.channels)
    height, width = seen.format.height, seen.format.width
    drawing.check(height, width)
    form = replace(model.format, height=height, width=width)
    truth = _truth(given, form)
    x = drawing.draw(form.shape, None, condition=seen.x, tick=tick)
    notes = _read_as(seen)
    if seen.share:
        notes.append(f"{seen.share:.1%} of it is unknown, which the model saw as mid-grey")
    like = None
    if seen.geo is not None:
        like = replace(seen, format=form, geo=seen.geo.of_place(), raw=None)
        if not _holds_place(name("")):
            notes.append(_PLACE_LOST)
    return _done(drawing, x, form, like, name, path, seen.x, truth, notes)


def _read_as(seen: Damaged | SceneReader | None) -> list[str]:
    told = "read as [height, width, channels]; arrays are written as [channels, height, width]"
    return [told] if seen is not None and seen.last else []


_PLACE_LOST = "its georeference is lost: write a .tif to keep it"


def _holds_place(out: Path) -> bool:
    return out.suffix.lower() in (".tif", ".tiff")


def _done(
    drawing: Drawing, x: Tensor, form: PixelFormat, like: Damaged | None,
    name: Callable[[str], Path], path: Path, given: Tensor, truth: NDArray[Any] | None,
    notes: list[str],
) -> Done:  # fmt: skip
    raw = _raw(x, form, like)
    files = _write(x, raw, form, like, name)
    if len(x) > 1:
        geo = None if like is None else like.geo
        with spread_writer(name("-spread"), form, geo) as spread:
            apart = deviation(x, drawing.how.seed).mean(0, keepdim=True)
            spread.write((apart.numpy() * _unit(form)).astype(np.float32), 0, 0)
        files.append(spread.path)
    return Done(files, Shown(path.name, given, raw, truth, form), notes)


def _raw(x: Tensor, form: PixelFormat, like: Damaged | None) -> NDArray[Any]:
    """Raw images [n, C, H, W] that avoid a georeferenced file's nodata value."""
    if like is None:
        return from_model(x, form)
    return np.stack([like.compose(one) for one in x])


def _write(
    x: Tensor, raw: NDArray[Any], form: PixelFormat, like: Damaged | None,
    name: Callable[[str], Path],
) -> list[Path]:  # fmt: skip
    """Write answers; where there are several, their mean too."""
    named = [(number(i, len(raw)), one) for i, one in enumerate(raw)]
    if len(raw) > 1:
        named.append(("-mean", _raw(x.mean(0, keepdim=True), form, like)[0]))
    files: list[Path] = []
    for suffix, one in named:
        where = name(suffix)
        if like is not None:
            write_restored(one, like, where)
        else:
            save_image(one, form, where)
        files.append(where)
    return files


def _std(told: str, image: Tensor, form: PixelFormat, known: Tensor | None = None) -> float:
    """A deviation in [-1, 1] units of one in pixel values, or an image's own where it is known."""
    if told == "auto":
        return noise_std(image.double(), known)
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
    truth = read_damaged(given.truth, form, channels=given.channels)
    if truth.format.shape != form.shape:
        raise DataError(
            f"{given.truth}: the truth is {truth.format.describe()}, and the restored image "
            f"{form.describe()}"
        )
    return from_model(truth.x, form)
