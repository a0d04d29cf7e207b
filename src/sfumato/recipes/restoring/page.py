"""What restoring leaves to look at: one page of damaged, restored, mean, spread, and how near."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from sfumato.data.pixels import to_model
from sfumato.recipes.restoring.truth import Score, Shown, averages
from sfumato.report.grid import image_grid, png_bytes
from sfumato.report.html import Cell, Report

_SHOWN = 8
"""Answers of one image on the page."""
PICTURES = 64
"""Images on the page."""


def sheet(shown: Shown) -> bytes:
    """Return a PNG: given, up to 8 answers, mean and spread, and the truth."""
    form = shown.form
    x = to_model(shown.answers[:_SHOWN], form)
    size = x.shape[-2:]
    given = functional.interpolate(shown.given[None].float(), size=size, mode="nearest")
    row = [_colours(given, x), x]
    if len(shown.answers) > 1:
        every = to_model(shown.answers, form)
        row.append(every.mean(0, keepdim=True))
        spread = every.std(0).mean(0, keepdim=True)  # of any scale
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
    out: Path, title: str, found: Sequence[Shown], near: Sequence[Score], facts: dict[str, str]
) -> Path:
    """Write restored.html and return its path.

    `found` are the images to be shown, `near` is how near all of them are to the truth.
    """
    page = Report(title, kind="Sfumato restoration").facts(facts)
    if near:
        page.section("How near the truth")
        rows: list[list[Cell]] = [
            [one.image, one.what, *_rounded(one)] for one in (*near, *averages(near))
        ]
        page.table(rows, ["image", "what", "PSNR, dB", "SSIM", "features"])
        page.text(
            "Features: the distance of EfficientNet-Lite0's to those of the truth, at 96 x 96 px; "
            "less is nearer, 0 is the truth itself."
        )
    page.section("Pictures", _order(found[0]) if found else "Too large to be shown here.")
    for one in found:
        page.figure(sheet(one), one.name, f"{one.name}, restored", True)
    where = out / "restored.html"
    page.write(where)
    return where


def _rounded(one: Score) -> list[Cell]:
    similar = None if one.ssim is None else round(one.ssim, 4)
    return [round(one.psnr, 2), similar, None if one.features is None else round(one.features, 2)]


def _order(one: Shown) -> str:
    several = len(one.answers) > 1
    parts = ["what was given", "answers" if several else "the answer"]
    parts += ["their mean", "their spread (white: most uncertain)"] if several else []
    parts += ["the truth"] if one.truth is not None else []
    return "From left to right: " + ", ".join(parts) + "."
