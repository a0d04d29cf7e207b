"""What restoring leaves to look at: one page of damaged, restored, mean, spread, and how near."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sfumato.data.pixels import PixelFormat, to_model
from sfumato.metrics.paired import paired_scores
from sfumato.recipes.restoring.drawing import deviation
from sfumato.report.grid import image_grid, png_bytes
from sfumato.report.html import Report

_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Shown:
    """One image's answers [n, C, H, W] raw, what was given [C', h, w] in [-1, 1], and the truth."""

    name: str
    given: Tensor
    answers: NDArray[Any]
    truth: NDArray[Any] | None


def scores(shown: Shown, form: PixelFormat) -> dict[str, tuple[float, float | None]]:
    """PSNR in dB and SSIM of the first answer, and of the mean of several, against the truth."""
    if shown.truth is None:
        return {}
    truth = to_model(shown.truth[None], form)
    x = to_model(shown.answers, form)
    told = {"one answer": x[:1]}
    if len(x) > 1:
        told[f"mean of {len(x)}"] = x.mean(0, keepdim=True)
    found: dict[str, tuple[float, float | None]] = {}
    for name, one in told.items():
        score = paired_scores(one, truth)
        similar = None if score.ssim is None else float(score.ssim.mean())
        found[name] = (float(score.psnr.mean()), similar)
    return found


def sheet(shown: Shown, form: PixelFormat) -> bytes:
    """Return a PNG: given, up to 8 answers, mean and spread, and the truth."""
    x = to_model(shown.answers[:_SHOWN], form)
    size = x.shape[-2:]
    given = functional.interpolate(shown.given[None].float(), size=size, mode="nearest")
    row = [_colours(given, x), x]
    if len(shown.answers) > 1:
        every = to_model(shown.answers, form)
        row.append(every.mean(0, keepdim=True))
        spread = deviation(every).mean(0, keepdim=True)
        row.append((2 * spread / spread.max().clamp(min=1e-9) - 1).expand_as(x[:1]))
    if shown.truth is not None:
        row.append(to_model(shown.truth[None], form))
    images = torch.cat(row)
    return png_bytes(image_grid(images, columns=len(images)))


def _colours(given: Tensor, like: Tensor) -> Tensor:
    """The given picture with as many channels as the answers."""
    if given.shape[1] == like.shape[1]:
        return given
    if given.shape[1] < like.shape[1]:
        return given[:, :1].expand(-1, like.shape[1], -1, -1)
    return given[:, : like.shape[1]]


def write_page(
    out: Path,
    title: str,
    found: list[Shown],
    form_of: dict[str, PixelFormat],
    facts: dict[str, str],
) -> Path:
    """Write restored.html and return its path."""
    page = Report(title, kind="Sfumato restoration").facts(facts)
    rows: list[list[str | float | None]] = []
    for one in found:
        form = form_of[one.name]
        for what, (peak, similar) in scores(one, form).items():
            rows.append([one.name, what, round(peak, 2), similar and round(similar, 4)])
    if rows:
        page.section("How near the truth")
        page.table(rows, ["image", "what", "PSNR, dB", "SSIM"])
        for what in dict.fromkeys(str(row[1]) for row in rows):
            mean = float(np.mean([row[2] for row in rows if row[1] == what]))  # type: ignore[arg-type]
            page.text(f"{what}: {mean:.2f} dB on average.")
    page.section("Pictures", _order(found[0]) if found else "")
    for one in found[:64]:
        page.figure(sheet(one, form_of[one.name]), one.name, f"{one.name}, restored", True)
    where = out / "restored.html"
    page.write(where)
    return where


def _order(one: Shown) -> str:
    several = len(one.answers) > 1
    parts = ["what was given", "answers" if several else "the answer"]
    parts += ["their mean", "their spread (white: most uncertain)"] if several else []
    parts += ["the truth"] if one.truth is not None else []
    return "From left to right: " + ", ".join(parts) + "."
