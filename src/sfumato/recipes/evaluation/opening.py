"""The sets of an evaluation, opened as a run opened its own, and what became of those now gone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sfumato.data.images import Images, Subset, first_of
from sfumato.errors import CheckpointError, DataError
from sfumato.recipes.evaluation.sets import ImageSet, Stored
from sfumato.recipes.model import Model
from sfumato.recipes.run_config import DataConfig, RunConfig
from sfumato.recipes.run_data import IN_MEMORY, open_to_measure
from sfumato.training.checkpoint import read_description

_SHOWN = 3


@dataclass
class Opened:
    """Sets by name, as opened and as measured, and what the reader should know of them."""

    images: dict[str, Images] = field(default_factory=dict[str, Images])
    sets: dict[str, Stored] = field(default_factory=dict[str, Stored])
    notes: list[str] = field(default_factory=list[str])

    def add(self, name: str, images: Images, most: int = 0) -> None:
        """Add a set, of which `most` images (0: all) are measured."""
        self.images[name] = images
        self.sets[name] = Stored(images, name, most)


def of_class(opened: Opened, label: str, most: int) -> Opened:
    """Return each set's images of one class, under the same name, of which `most` are measured.

    A set that has fewer than two stays whole, and a note says so.
    """
    chosen = Opened(notes=list(opened.notes))
    for name, images in opened.images.items():
        where = np.zeros(0, np.int64)
        if images.labels is not None and label in images.classes:
            where = np.flatnonzero(images.labels == images.classes.index(label))
        if len(where) >= 2:
            some = Subset(images, where, f"{images.source}, {label}")
            chosen.images[name] = some
            chosen.sets[name] = Stored(some, f"{name} of class {label}", most)
            continue
        chosen.images[name], chosen.sets[name] = images, opened.sets[name]
        chosen.notes.append(
            f"The {name} have fewer than two labelled {label!r}: the samples of that class are "
            "compared with all of them, of whatever class."
        )
    return chosen


def config_of(run: Path) -> RunConfig | None:
    """The configuration of a run; None for a checkpoint by itself."""
    try:
        return RunConfig.read(run / "config.toml")
    except CheckpointError:
        return None


def open_set(opening: DataConfig, path: str, name: str) -> Images:
    """Open images as `opening` says; DataError for fewer than two."""
    images = open_to_measure(opening, path)
    if len(images) < 2:
        raise DataError(f"{name}: a metric needs at least 2 images, {path} holds {len(images)}")
    return images


def gone(path: str, name: str, option: str) -> str:
    """Why a run's own images cannot be opened any more; "" where they can."""
    if path == IN_MEMORY:
        return f"{name}: they were in the memory of the program that trained: give {option} IMAGES"
    if path.startswith("fashion-mnist") or Path(path).exists():
        return ""
    return f"{name}: {path} is no longer there: give {option} IMAGES"


def unlike_training(model: Model, images: Images) -> str:
    """A warning where images are not those a model was trained on, by name and size of file."""
    assert model.path is not None
    data = read_description(model.path)["describe"]["data"]
    if data.get("fingerprint") in (None, images.fingerprint):
        return ""
    return (
        f"The training images ({images.source}) are not, or are no longer, those the model was "
        "trained on: memorisation and their column may mislead."
    )


def broken_files(sets: list[ImageSet]) -> list[str]:
    """A line for every set with files that cannot be read."""
    lines: list[str] = []
    for images in sets:
        broken = images.broken if isinstance(images, Stored) else ()
        if broken:
            shown = first_of(broken, _SHOWN)
            lines.append(
                f"{images.name}: {len(broken)} of the files cannot be read and were passed over: "
                f"{shown}"
            )
    return lines
