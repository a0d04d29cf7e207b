"""What measuring bits per dimension leaves behind: lines, a JSON file, a page, a table by image."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion import bits_per_dim
from sfumato.errors import MissingExtraError
from sfumato.files import write_json, write_text
from sfumato.likelihood import Bound, rate_distortion
from sfumato.noise import F64
from sfumato.recipes.likelihood_results import Measured
from sfumato.report import plots
from sfumato.report.html import Report


def in_lines(found: list[Measured]) -> Iterator[str]:
    """Yield the table for a terminal, in bits per dimension."""
    for one in found:
        yield f"{one.name}: {len(one.bound.prior):,} images, bits per dimension (95 % interval)"
        for name, mean in one.rows().items():
            count = "1 image" if mean.n == 1 else f"{mean.n} images"
            yield f"  {name:<26}{mean}" + (f"   ({count})" if mean.n < 1000 else "")
    if len(found) > 1:
        first, second = (one.bound.bits_per_dim for one in found[:2])
        gap = float(first.mean() - second.mean())
        error = math.hypot(
            float(first.std()) / len(first) ** 0.5, float(second.std()) / len(second) ** 0.5
        )
        yield f"gap, {found[0].name} less {found[1].name}: {gap:.4f} ± {1.96 * error:.4f}"


def write_likelihood(
    out: Path, title: str, found: list[Measured], facts: dict[str, str], *, per_image: bool
) -> dict[str, Path]:
    """Write likelihood.json and .html, and per-image.csv where asked; return their paths."""
    paths = {"JSON": out / "likelihood.json", "page": out / "likelihood.html"}
    kept: dict[str, Any] = {
        "facts": facts,
        "sets": [
            {"name": one.name, **{k.strip(): asdict(v) for k, v in one.rows().items()}}
            for one in found
        ],
    }
    curve = rate_distortion(found[0].bound) if not found[0].bound.error.isnan().any() else None
    if curve is not None:
        kept["rate_distortion"] = {
            "sigma": curve.sigmas.tolist(),
            "bits_per_dim": curve.rate.tolist(),
            "rmse_of_255": curve.distortion.tolist(),
            "decoder_bits_per_dim": curve.last,
        }
    write_json(paths["JSON"], kept)
    if per_image:
        paths["per image"] = out / "per-image.csv"
        write_text(paths["per image"], _table_of(found))
    page = Report(title, "", kind="Sfumato · likelihood")
    page.section("Bits per dimension", "Means over images; ± is half the 95 % interval.")
    page.table(
        [(one.name, name.strip(), f"{mean.bits:.4f}", mean.interval, mean.n)
         for one in found for name, mean in one.rows().items()],
        ("images", "what", "bits per dimension", "±", "n"),
    )  # fmt: skip
    page.section("Level by level", "What each noise level costs: the bound is the area.")
    try:
        bound = found[0].bound
        at, cost = per_level(bound)
        page.figure(plots.bits_by_level(at, cost), "", "bits per dimension by noise level")
        if curve is not None:
            page.figure(
                plots.rate_against_distortion(curve.rate, curve.distortion), "",
                "distortion against rate",
            )  # fmt: skip
    except MissingExtraError:
        page.missing("The plots", "matplotlib", "train")
    page.section("Provenance")
    page.facts(facts)
    page.write(paths["page"])
    return paths


def per_level(bound: Bound, bins: int = 40) -> tuple[Tensor, Tensor]:
    """Return sigma [bins] and bits per dimension per unit of ln sigma [bins] of the steps there."""
    at = (bound.sigmas[:-1] * bound.sigmas[1:]).sqrt().log()
    width = (bound.sigmas[:-1] / bound.sigmas[1:]).log()
    bits = bits_per_dim(bound.levels.mean(0), bound.dimensions)
    edges = torch.linspace(float(at.min()), float(at.max()) + 1e-9, bins + 1, dtype=F64)
    place = (torch.searchsorted(edges, at, right=True) - 1).clamp(0, bins - 1)
    total = torch.zeros(bins, dtype=F64).index_add(0, place, bits)
    wide = torch.zeros(bins, dtype=F64).index_add(0, place, width)
    some = wide > 0
    return ((edges[1:] + edges[:-1]) / 2).exp()[some], (total / wide.clamp(min=1e-300))[some]


def _table_of(found: list[Measured]) -> str:
    memory = io.StringIO()
    writer = csv.writer(memory)
    writer.writerow(("set", "image", "name", "bound", "prior", "levels", "decoder", "flow"))
    for one in found:
        d = one.bound.dimensions
        columns = (
            one.bound.bits_per_dim,
            bits_per_dim(one.bound.prior, d),
            bits_per_dim(one.bound.levels.sum(1), d),
            bits_per_dim(one.bound.decoder, d),
        )
        for index in range(len(one.bound.prior)):
            flow = f"{float(one.flow[index]):.6f}" if index < len(one.flow) else ""
            numbers = (f"{float(column[index]):.6f}" for column in columns)
            name = one.names[index] if one.names else ""
            writer.writerow((one.name, index, name, *numbers, flow))
    return memory.getvalue()
