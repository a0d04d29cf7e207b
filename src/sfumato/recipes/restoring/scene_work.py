"""Scenes of any size restored part by part, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.recipes.restoring.damaged import Damaged
from sfumato.recipes.restoring.drawing import Drawing, deviation
from sfumato.recipes.restoring.scenes import SceneReader, SceneWriter, spread_writer
from sfumato.restoration import Mask, Measured

_PART = 256
"""About so many pixels of a side are restored at once, and a window's side around them."""


@dataclass(frozen=True)
class Part:
    """A part of a scene: rows and columns that it fills in, and those it looks at, from .. to."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    seen_rows: tuple[int, int]
    seen_columns: tuple[int, int]


def parts(drawing: Drawing, height: int, width: int) -> list[Part]:
    """Cut a scene into parts; they begin at multiples of the stride, so that windows agree."""

    def cut(whole: int, side: int, step: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        if whole <= _PART + 2 * side:
            return [((0, whole), (0, whole))]
        core = max(_PART // step, 1) * step
        margin = -(-side // step) * step
        found: list[tuple[tuple[int, int], tuple[int, int]]] = []
        for first in range(0, whole, core):
            last = min(first + core, whole)
            found.append(((first, last), (max(first - margin, 0), min(last + margin, whole))))
        return found

    (high, wide), (down, right) = drawing.window, drawing.stride
    return [
        Part(rows, columns, seen_rows, seen_columns)
        for rows, seen_rows in cut(height, high, down)
        for columns, seen_columns in cut(width, wide, right)
    ]


@dataclass(frozen=True, eq=False)
class Written:
    """Files of a restored scene, and its answers [n, C, H, W] raw where it is small enough."""

    files: list[Path]
    answers: NDArray[Any] | None


def restore_scene(
    drawing: Drawing,
    scene: SceneReader,
    name: Callable[[str], Path],
    std: float,
    tick: Callable[[float], object],
    keep: bool,
) -> Written:
    """Fill in what is unknown of a scene, and write each answer, their mean and spread.

    `name` gives the path of "", "-2", "-mean", "-spread"; `std` is the known values' noise in
    [-1, 1]; `tick` is told of parts done, in pixels. With `keep` the answers are returned too.
    """
    form, count = scene.format, drawing.how.answers
    kept = np.zeros((count, *form.shape), form.dtype) if keep else None
    with ExitStack() as stack:
        writers = [
            stack.enter_context(SceneWriter(name(number(i, count)), form, scene.geo))
            for i in range(count)
        ]
        middle = spread = None
        if count > 1:
            middle = stack.enter_context(SceneWriter(name("-mean"), form, scene.geo))
            spread = stack.enter_context(spread_writer(name("-spread"), form, scene.geo))
        for part in parts(drawing, form.height, form.width):
            (top, bottom), (left, right) = part.rows, part.columns
            here = scene.read(top, left, bottom - top, right - left)
            if std > 0:  # known pixels are noisy: the answers' own are better
                here = replace(here, raw=None)
            area = (bottom - top) * (right - left)
            x = _answers(
                drawing, scene, part, std, here, lambda share, area=area: tick(area * share)
            )
            for i, writer in enumerate(writers):
                raw = here.compose(x[i])
                writer.write(raw, top, left)
                if kept is not None:
                    kept[i, :, top:bottom, left:right] = raw
            if middle is not None and spread is not None:
                middle.write(here.compose(x.mean(0)), top, left)
                apart = deviation(x, drawing.how.seed)
                if std == 0:
                    apart = torch.where(here.known, 0.0, apart)
                wide = apart.mean(0, keepdim=True).numpy() * (form.high - form.low) / 2
                spread.write(wide.astype(np.float32), top, left)
    told = [one for one in (*writers, middle, spread) if one is not None]
    return Written([one.path for one in told], kept)


def _answers(
    drawing: Drawing, scene: SceneReader, part: Part, std: float, here: Damaged,
    tick: Callable[[float], object],
) -> Tensor:  # fmt: skip
    """Answers [n, C, h, w] for what a part fills in; `tick` is told what share of it is done."""
    if here.share == 0 and std == 0:
        tick(1)
        return here.x.expand(drawing.how.answers, *here.x.shape)
    (top, bottom), (left, right) = part.seen_rows, part.seen_columns
    seen = scene.read(top, left, bottom - top, right - left)
    known = seen.known.expand_as(seen.x)
    measured = Measured(Mask(known), seen.x[None], std)
    whole = (bottom - top, right - left) == drawing.window
    x = drawing.draw(
        (len(seen.x), bottom - top, right - left),
        measured,
        origin=None if whole else (top, left),
        tick=tick,
    )
    down, across = part.rows[0] - top, part.columns[0] - left
    return x[:, :, down : down + here.x.shape[1], across : across + here.x.shape[2]]


def number(index: int, count: int) -> str:
    """Return what an answer's name ends with, one of so many."""
    return f"-{index + 1}" if count > 1 else ""
