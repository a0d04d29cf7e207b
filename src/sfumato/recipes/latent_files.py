"""What inverting and interpolating leave behind: arrays, images, sheets, and how they were made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

from sfumato.data.pixels import from_model
from sfumato.data.save import save_images
from sfumato.files import write_bytes, write_json, write_text
from sfumato.latents import RoundTrip
from sfumato.recipes.environment import describe
from sfumato.recipes.inputs import save_array
from sfumato.recipes.latent_figures import Progress
from sfumato.recipes.latents import Flow, TableRow, mean_square
from sfumato.report.animation import gif_bytes
from sfumato.report.grid import image_grid, save_png

SHOWN = 16
"""Images of a sheet that has a column for each."""


def write_inversion(
    folder: Path, flow: Flow, x: Tensor, names: Sequence[str], trip: RoundTrip, how: str
) -> dict[str, Path]:
    """Write latents.npy with latents.toml, the reconstructions, and a grid; return where."""
    folder.mkdir(parents=True, exist_ok=True)
    latents = folder / "latents.npy"
    save_array(trip.latent.float().numpy(), latents)
    save_images(from_model(trip.image, flow.model.format), flow.model.format, folder)
    difference, gain = amplified(trip.image - x)
    shown = torch.cat([x[:SHOWN], trip.image[:SHOWN], difference[:SHOWN]])
    grid = folder / "grid.png"
    save_png(image_grid(shown, columns=min(len(x), SHOWN)), grid)
    record = {
        **provenance(flow),
        "inversion": how,
        "lowest": float(flow.up[0]),
        "highest": float(flow.up[-1]),
        "shape": list(trip.latent.shape),
        "mean": float(trip.latent.double().mean()),
        "std": float(trip.latent.double().std()),
        "mse": mean_square(trip.error) / 4,
        "image_mse": mean_square(trip.image_error) / 4,
        "difference_times": gain,
        "images": [
            {"name": name, "rmse": float(error), "image_rmse": float(image)}
            for name, error, image in zip(names, trip.error, trip.image_error, strict=True)
        ],
    }
    write_text(folder / "latents.toml", tomli_w.dumps(record))
    return {"latents": latents, "grid of originals, reconstructions, differences": grid}


def amplified(difference: Tensor) -> tuple[Tensor, int]:
    """Return a difference times the power of 2 (up to 1024) that makes it fill [-1, 1]."""
    largest = float(difference.abs().max())
    exponent = 10 if largest == 0 else min(10, max(0, math.floor(-math.log2(largest))))
    return difference * 2**exponent, 2**exponent


def write_table(
    path: Path, flow: Flow, names: Sequence[str], rows: Sequence[TableRow], how: str
) -> None:
    """Write the round-trip table as JSON."""
    content = {
        "rows": [asdict(row) for row in rows],
        "units": {
            "mse": "per dimension on [0, 1], first level to last and back (DDIM Table 2)",
            "rmse": "per dimension on [-1, 1]",
            "image_mse, image_rmse": "the same after the last step to 0",
        },
        "inversion": how,
        "images": list(names),
        "provenance": provenance(flow),
    }
    write_json(path, content)


def write_strip(
    folder: Path, flow: Flow, images: Tensor, columns: int, about: dict[str, Any]
) -> dict[str, Path]:
    """Write images [n, C, H, W] laid out in rows of `columns`; of one row an animation too."""
    folder.mkdir(parents=True, exist_ok=True)
    save_images(from_model(images, flow.model.format), flow.model.format, folder)
    single = len(images) == columns
    name = "strip" if single else "grid"
    written = {name: folder / f"{name}.png"}
    save_png(image_grid(images, columns=columns), written[name])
    if single:
        frames = [image_grid(image[None], pad=0) for image in images]
        written["animation"] = folder / "strip.gif"
        # There and back: the way back makes the loop smooth.
        write_bytes(written["animation"], gif_bytes(frames + frames[-2::-1], hold=0.5))
    record = {**provenance(flow), **about}
    write_text(folder / "interpolate.toml", tomli_w.dumps(record))
    return written


def write_progress(path: Path, progress: Progress) -> None:
    """Write predictions of x0 as a picture: a row an image, a column a level."""
    rows, columns = progress.x0.shape[:2]
    save_png(image_grid(progress.x0.reshape(rows * columns, *progress.x0.shape[2:]), columns), path)


def provenance(flow: Flow) -> dict[str, Any]:
    """Return what made the files: the checkpoint, the sampler, the machine."""
    model = flow.model
    sampler = {key: value for key, value in asdict(flow.sampler).items() if value is not None}
    return {
        "checkpoint": str(model.path),
        "weights": model.weights,
        "fingerprint": model.fingerprint,
        "precision": model.precision,
        "class": flow.label or "",
        "steps": len(flow.down) - 1,
        "sampler": sampler,
        "environment": describe(str(model.device)),
    }
