"""The self-contained page of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfumato.recipes.evaluation.outcome import Outcome, number
from sfumato.recipes.evaluation.plan import Reference
from sfumato.recipes.evaluation.row import Row
from sfumato.recipes.evaluation.sets import ImageSet, pixels
from sfumato.report.grid import image_grid, png_bytes
from sfumato.report.html import Card, Picture, Report

_SHOWN = 64
_CARDS = 5


def write_page(
    path: Path, outcome: Outcome, samples: ImageSet, references: Sequence[Reference]
) -> None:
    """Write headline numbers, images of both sets, tables and provenance to `path`."""
    page = Report(outcome.title, "", kind="Sfumato · evaluation")
    page.cards(
        [
            Card(row.name, number(row.value), _beside(row.against, row.real, row.n))
            for row in _headline(outcome.evaluation.rows)
        ]
    )
    page.section("Images", "What was measured, beside what it was measured against.")
    real = next((r.images for r in references if r.images is not None), None)
    pictures = [
        Picture(
            png_bytes(image_grid(pixels(images, 0)[:_SHOWN])),
            f"{images.name}: {min(_SHOWN, len(images))} of {len(images):,}",
            f"grid of {images.name}",
        )
        for images in (samples, real)
        if images is not None
    ]
    page.figures(pictures)
    outcome.add_to(page)
    page.write(path)


def _headline(rows: Sequence[Row]) -> list[Row]:
    """The first few numbers against the first reference."""
    first = next((row.against for row in rows if row.against), "")
    return [row for row in rows if row.against in ("", first)][:_CARDS]


def add_to_report(path: Path, outcome: Outcome) -> None:
    """Put the tables into a run's report, in place of those of an earlier evaluation."""
    page = Report(outcome.title)
    outcome.add_to(page)
    page.extend(path, "evaluation")


def _beside(against: str, real: float | None, n: int) -> str:
    parts = [f"against {against}" if against else "", f"{n:,} samples"]
    if real is not None:
        parts.append(f"real images: {number(real)}")
    return " · ".join(part for part in parts if part)
