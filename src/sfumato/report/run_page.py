"""The page of one training run, from plain arrays and numbers; a section appears with its data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.errors import MissingExtraError
from sfumato.report import plots
from sfumato.report.animation import gif_bytes
from sfumato.report.grid import image_grid, png_bytes
from sfumato.report.html import Card, Cell, Picture, Report
from sfumato.report.run_report import FrechetRow, RunReport
from sfumato.report.words import duration


def write_run_report(path: Path, run: RunReport) -> None:
    """Write the page of a training run to `path`, whole or not at all."""
    run_page(run).write(path)


def run_page(run: RunReport) -> Report:
    """The page of a training run, open for further sections."""
    page = Report(run.name, run.subtitle, kind="Sfumato · training run")
    for warning in run.warnings:
        page.note(warning, warning=True)
    if cards := _headline(run):
        page.cards(cards)
    _samples(page, run)
    _trajectory(page, run)
    _frechet(page, run)
    _classes(page, run)
    _neighbours(page, run)
    _training(page, run)
    _timings(page, run)
    if run.recipe:
        page.section("Recipe", "Every option of the run, as saved in config.toml.")
        page.facts(run.recipe)
    if run.commands or run.environment:
        page.section("How to reproduce it")
        if run.commands:
            page.code("\n".join(run.commands))
        if run.environment:
            page.facts(run.environment)
    return page


def _headline(run: RunReport) -> list[Card]:
    cards: list[Card] = []
    if run.frechet:
        row = run.frechet[0]
        floor = "" if row.real_vs_real is None else f"real images: {_floor(row)} · "
        cards.append(
            Card("Fréchet distance", f"{row.value:.4g}", f"{floor}{_count(row.n)} samples")
        )
    seen = run.images_seen or next((r["images"] for r in run.log[::-1] if "images" in r), None)
    if seen is not None:
        cards.append(Card("Images seen", _count(seen)))
    if speeds := [r["images_per_second"] for r in run.log if "images_per_second" in r]:
        cards.append(Card("Training speed", f"{statistics.median(speeds):.3g} img/s", "median"))
    if waited := [r["waited_share"] for r in run.log if "waited_share" in r]:
        share = 100 * statistics.fmean(waited, _lengths(run.log))
        slow = "; images kept as one .npy need no decoding" if share >= 10 else ""
        cards.append(Card("Waited for data", f"{share:.1f} %", f"of the training time{slow}"))
    sure = [(row.share, row.confidence) for row in run.classes if row.confidence is not None]
    if weight := sum(share for share, _ in sure):
        mean = sum(share * confidence for share, confidence in sure) / weight
        cards.append(
            Card("Certainty of class", f"{100 * mean:.0f} %", "classifier's mean over samples")
        )
    if run.timings:
        cards.append(Card("Total time", duration(sum(run.timings.values()))))
    return cards


def _samples(page: Report, run: RunReport) -> None:
    pictures = [
        Picture(png_bytes(image_grid(images)), f"{what}: {len(images)} images", alt)
        for images, what, alt in (
            (run.samples, "Generated", "grid of generated images"),
            (run.real, "Real", "grid of real images from the data set"),
        )
        if images is not None and len(images)
    ]
    if pictures:
        page.section("Samples", "Images drawn by the model beside real ones.")
        page.figures(pictures)


def _trajectory(page: Report, run: RunReport) -> None:
    if not run.trajectory:
        return
    page.section("From noise to images", "The model's states during sampling, noise first.")
    columns = min(8, len(run.trajectory[0]))
    frames = [image_grid(state, columns=columns, scale=1, pad=1) for state in run.trajectory]
    caption = f"{len(frames)} states of {len(run.trajectory[0])} images; the last is held."
    page.figure(gif_bytes(frames), caption, "animation of images forming out of noise", True)


def _frechet(page: Report, run: RunReport) -> None:
    if not run.frechet:
        return
    beside = any(row.real_vs_real is not None for row in run.frechet)
    page.section(
        "Fréchet distance",
        "Distance between the feature statistics of two sets of images, lower is nearer. It is "
        "biased upwards at small n: compare it with numbers of the same n and extractor"
        + (", and with the value for real images." if beside else "."),
    )
    page.table(
        [
            (row.name, row.value, _floor(row), row.n, row.reference_n, row.extractor)
            for row in run.frechet
        ],
        ("compared", "distance", "real images", "n", "reference n", "features"),
    )


def _classes(page: Report, run: RunReport) -> None:
    if not run.classes:
        return
    page.section("Classes", run.class_note)
    names = [row.name for row in run.classes]
    shares = [row.share for row in run.classes]
    real = [row.real_share for row in run.classes if row.real_share is not None]
    reference = real if len(real) == len(names) else None
    try:
        chart = plots.class_shares(names, shares, reference)
        page.figure(chart, "Share of each class among the samples.", "bar chart of class shares")
    except MissingExtraError:
        page.missing("The chart", "matplotlib", "train")
    page.table(
        [
            (row.name, _percent(row.share), _percent(row.real_share), _percent(row.confidence))
            for row in run.classes
        ],
        ("class", "share of samples, %", "share of real images, %", "mean certainty, %"),
    )


def _neighbours(page: Report, run: RunReport) -> None:
    near = run.neighbours
    if near is None:
        return
    page.section(
        "Nearest training images",
        "Upper rows: samples. Lower rows: the training image nearest to each. Copies would be "
        "a sign of memorising.",
    )
    columns = min(8, len(near.samples))
    shown = [
        image_grid(part[start : start + columns], columns=columns)
        for start in range(0, len(near.samples) - columns + 1, columns)
        for part in (near.samples, near.nearest)
    ]
    caption = (
        f"Distance ({near.unit}): median {np.median(near.distances):.3g}, "
        f"least {np.min(near.distances):.3g} of {len(near.distances)} samples."
    )
    if near.searched is not None:
        every = "all " if near.searched == near.total else ""
        rest = f" of {near.total:,}, picked at random" if near.total and not every else ""
        caption += f" Looked for among {every}{near.searched:,} training images{rest}."
    page.figure(png_bytes(np.concatenate(shown)), caption, "samples and nearest training images")
    facts: dict[str, Cell] = {}
    if near.ratio is not None:
        facts["distance to training / to held-out images (1 expected)"] = near.ratio
    if near.closer_share is not None:
        error = near.closer_share_error
        spread = "" if error is None else f" ± {100 * error:.1f}"
        share = f"{100 * near.closer_share:.1f} %{spread}"
        facts["samples nearer to training than to held-out (50 % expected)"] = share
    if facts:
        page.table(list(facts.items()))


def _training(page: Report, run: RunReport) -> None:
    records = [record for record in run.log if "images" in record and "loss" in record]
    if not records and run.levels is None:
        return
    page.section("Training")
    measured = [record for record in run.log if "frechet" in record]
    try:
        if measured:
            pairs = [(record["images"], record["frechet"]) for record in measured]
            curve = plots.quality_curve(*zip(*pairs, strict=True))
            page.figure(curve, _measuring(measured), "Fréchet distance against images seen")
        if records:
            curve = plots.training_curve(
                [record["images"] for record in records], [record["loss"] for record in records]
            )
            page.figure(curve, "Training loss.", "training loss against images seen")
        if run.levels is not None:
            level = run.levels
            chart = plots.level_loss(level.sigma, level.loss, level.density)
            caption = "Loss at each noise level, over where training spends its effort (shaded)."
            page.figure(chart, caption, "loss against noise level")
            page.text(level.advice)
    except MissingExtraError:
        page.missing("The training curve", "matplotlib", "train")


def _measuring(measured: Sequence[Mapping[str, Any]]) -> str:
    last, best = measured[-1], min(measured, key=lambda record: record["frechet"])
    spent = duration(sum(record["evaluation_seconds"] for record in measured))
    return (
        f"Fréchet distance of {_count(last['frechet_n'])} samples to {last['frechet_against']} "
        f"({last['frechet_features']}); best {best['frechet']:.4g} at step {_count(best['step'])}. "
        f"Measuring took {spent}."
    )


def _timings(page: Report, run: RunReport) -> None:
    if not run.timings:
        return
    page.section("Time")
    try:
        page.figure(plots.time_split(run.timings), "", "bar of where the time went")
    except MissingExtraError:
        page.table([(name, duration(seconds)) for name, seconds in run.timings.items()])


def _floor(row: FrechetRow) -> str | None:
    """The value for real images, with their number where it is another than the samples'."""
    if row.real_vs_real is None:
        return None
    other = "" if row.real_n in (None, row.n) else f" (of {_count(row.real_n)})"
    return f"{row.real_vs_real:.4g}{other}"


def _lengths(log: Sequence[Mapping[str, Any]]) -> list[float]:
    """How long the window of each record with a waited share took, as a weight."""
    rates = [r.get("images_per_second", 1.0) for r in log if "waited_share" in r]
    return [1 / max(rate, 1e-9) for rate in rates]


def _count(number: float) -> str:
    return f"{number:,.0f}".replace(",", "\u202f")


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"
