"""`sfumato info PATH`: what a run, a checkpoint or a set of images is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sfumato.cli.parse import duration, parse
from sfumato.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from sfumato.recipes.config import Recipe


@dataclass(frozen=True)
class InfoOptions:
    """Options of `sfumato info`."""

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]
    """A run's folder, a checkpoint folder, images (folder, zip, array, IDX, shards), or a .sfu."""


def run(arguments: Sequence[str]) -> int:
    """Print what the path is, in a few lines."""
    options = parse(InfoOptions, arguments, "info", "Say what a run, checkpoint or image set is.")
    path = Path(options.path)
    if (path / "config.toml").is_file() or (path / "checkpoint.toml").is_file():
        _print_run(path)
        return 0
    if path.is_dir() and (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path} looks like a run, but its config.toml is missing")
    if path.is_file() and _print_compressed(path):
        return 0
    from sfumato.data.shards.places import holds_shards

    if holds_shards(options.path):
        _print_shards(options.path)
        return 0
    from sfumato.data.pairs import holds_pairs, open_pairs
    from sfumato.data.pixels import UnknownRangeError, range_option
    from sfumato.data.sources import class_names, open_images

    if holds_pairs(path):
        print(open_pairs(path).describe())
        print("To learn targets given inputs: --condition image")
        return 0
    try:
        print(open_images(options.path).describe())
        _print_classes(class_names(options.path))
    except UnknownRangeError as error:
        span = (error.low, error.high if error.high > error.low else error.low + 1)
        print(open_images(options.path, value_range=span).describe())
        _print_classes(class_names(options.path, span))
        print(
            "Nothing says which values are black and white: to train on them, say so, for example "
            f"{range_option(error.low, error.high)}"
        )
    except DataError:
        # Images of several kinds are no one set yet; what there is can still be said.
        if not (path.is_dir() or path.suffix.lower() == ".zip") or not _print_mixture(path):
            raise
    return 0


def _print_shards(path: str) -> None:
    """Print what tar shards hold."""
    from sfumato.data.pairs import open_pairs
    from sfumato.data.shards.opening import shard_pairs
    from sfumato.data.sources import class_names, open_images

    pairs = shard_pairs(path)
    print((open_pairs if pairs else open_images)(path).describe())
    if pairs:
        print("To learn targets given inputs: --condition image")
    _print_classes(class_names(path))


def _print_compressed(path: Path) -> bool:
    """Print what a compressed file holds; False for a file of another kind."""
    from sfumato.codec.container import MAGIC, Container

    with path.open("rb") as file:
        if path.suffix != ".sfu" and file.read(len(MAGIC)) != MAGIC:
            return False
    header = Container.from_bytes(path.read_bytes()).header
    channels, height, width = header.shape
    values = header.count * channels * height * width
    size = path.stat().st_size
    rows = {
        "file": f"{path}, {size:,} bytes, {header.kind}",
        "images": f"{header.count:,} of {channels} x {height} x {width} {header.dtype}",
        "bits": f"{8 * size / values:.3f} a value",
        "model": f"{header.model.hex()} (sfumato decompress RUN tells whether RUN is it)",
        "coded": f"{header.levels} levels, {min(header.batch, header.count)} at once, "
        f"{header.threads} threads",
    }
    if header.raw:
        rows["kept as is"] = f"{len(header.raw)} images"
    for name, value in rows.items():
        print(f"{name:<12} {value}")
    return True


def _print_classes(names: tuple[str, ...]) -> None:
    if len(names) < 2:
        print("no class labels (sub-folders, a dataset.json or labels beside an array)")
        return
    listed = ", ".join(names[:12]) + (", ..." if names[12:] else "")
    print(f"{len(names)} classes, learned with --classes: {listed}")


def _print_mixture(path: Path) -> bool:
    """Print what images of several kinds there are; False where they are all alike."""
    from sfumato.data.files import common_side
    from sfumato.data.survey import survey

    found = survey(path)
    if not found.mixed:
        return False
    for name, value in {"path": found.where, **found.rows()}.items():
        print(f"{name:<12} {value}")
    if len(found.dtypes) > 1:
        print("To train on them, convert the files to one bit depth.")
        return True
    options: list[str] = []
    if len(found.channels) > 1:
        options.append(f"--channels {found.channels.most_common(1)[0][0]}")
    if len(found.sizes) > 1:
        side = common_side(found.sizes)
        options.append(f"--size {side} {side}")
    print(f"To train on them, choose what they become, for example {' '.join(options)}")
    return True


def _sampler(settings: Recipe) -> str:
    """The sampler in words; a whole ladder has its own number of steps."""
    sampler = settings.sampler
    steps = settings.process.steps if sampler.grid == "all" else sampler.steps
    return f"{sampler.solver}, {steps} steps, grid {sampler.grid}"


def _starts(data: Mapping[str, Any]) -> dict[str, str]:
    """A row about the images that a model trained on pairs starts from."""
    from sfumato.data.pixels import PixelFormat

    told = data.get("condition")
    return {"starts from": PixelFormat.from_toml(told).describe()} if told else {}


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
        **_starts(data),
        "trained": f"{about['images']:,} of {settings.images:,} images "
        f"({data['count']:,} different ones), {duration(described['seconds'])}",
        "arithmetic": described["precision"]["dtype"],
        "sampler": _sampler(settings),
    }
    if where != path:
        rows["checkpoints"] = ", ".join(item.name for item in checkpoints(path))
        report = path / "report.html"
        rows["report"] = str(report) if report.is_file() else "none yet"
    for name, value in rows.items():
        print(f"{name:<12} {value}")
    for note in notes:
        print(f"note: {note}")
