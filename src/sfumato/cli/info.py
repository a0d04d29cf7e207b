"""`sfumato info PATH`: what a run, a checkpoint or a set of images is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sfumato.cli.parse import duration, parse
from sfumato.errors import CheckpointError


@dataclass(frozen=True)
class InfoOptions:
    """Options of `sfumato info`."""

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]
    """A run's folder, a checkpoint folder, or images (folder, zip, array, IDX)."""


def run(arguments: Sequence[str]) -> int:
    """Print what the path is, in a few lines."""
    options = parse(InfoOptions, arguments, "info", "Say what a run, checkpoint or image set is.")
    path = Path(options.path)
    if (path / "config.toml").is_file() or (path / "checkpoint.toml").is_file():
        _print_run(path)
        return 0
    if path.is_dir() and (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path} looks like a run, but its config.toml is missing")
    from sfumato.data.sources import open_images

    images = open_images(options.path)
    print(images.describe())
    return 0


def _print_run(path: Path) -> None:
    from sfumato.data.pixels import PixelFormat
    from sfumato.recipes.presets import names, recipe
    from sfumato.recipes.toml import difference, from_toml
    from sfumato.training.checkpoint import read_description
    from sfumato.training.history import checkpoints, latest_checkpoint

    where, notes = path, ()
    if not (path / "checkpoint.toml").is_file():
        latest = latest_checkpoint(path)
        where, notes = latest.path, latest.skipped
    about = read_description(where)
    described: Mapping[str, Any] = about["describe"]
    settings = from_toml(described["recipe"])
    data = described["data"]
    known = settings.name in names()
    changed = difference(settings, recipe(settings.name)) if known else {}
    rows = {
        "checkpoint": str(where),
        "recipe": settings.name,
        "changed": ", ".join(f"{key} = {value}" for key, value in changed.items()) or "nothing",
        "images": PixelFormat.from_toml(data["format"]).describe(),
        "classes": ", ".join(data["classes"]) or "none",
        "trained": f"{about['images']:,} of {settings.images:,} images "
        f"({data['count']:,} different ones), {duration(described['seconds'])}",
        "arithmetic": described["precision"]["dtype"],
        "sampler": f"{settings.sampler.solver}, {settings.sampler.steps} steps, "
        f"grid {settings.sampler.grid}",
    }
    if where != path:
        rows["checkpoints"] = ", ".join(item.name for item in checkpoints(path))
        report = path / "report.html"
        rows["report"] = str(report) if report.is_file() else "none yet"
    for name, value in rows.items():
        print(f"{name:<12} {value}")
    for note in notes:
        print(f"note: {note}")
