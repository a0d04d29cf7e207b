"""Opening a path as images, whatever it holds."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from sfumato.data.arrays import InMemory, Layout, open_npy, open_npz
from sfumato.data.builtin import fashion_mnist
from sfumato.data.containers import Archive, Folder
from sfumato.data.decode import Alpha
from sfumato.data.files import FileImages, Shaping, image_names
from sfumato.data.idx import looks_like_idx, open_idx
from sfumato.data.images import Images, Subset
from sfumato.data.labels import file_labels
from sfumato.data.reader import as_arrays
from sfumato.data.shaping import Fit
from sfumato.data.shards.images import ShardImages
from sfumato.data.shards.opening import open_shards, shard_classes
from sfumato.data.shards.places import holds_shards
from sfumato.errors import DataError

__all__ = ["Images", "InMemory", "Opening", "Subset", "as_arrays", "class_names", "open_images"]

BUILTIN = ("fashion-mnist:train", "fashion-mnist:test")


@dataclass(frozen=True)
class Opening:
    """How images are opened, wherever they lie; what each means says `open_images`."""

    size: tuple[int, int] | None = None
    fit: Fit = "crop"
    alpha: Alpha = "drop"
    value_range: tuple[float, float] | None = None
    layout: Layout | None = None
    labels: bool = False
    channels: int | None = None

    def images(self, path: str | Path) -> Images:
        """The images there; raises what `open_images` does."""
        if holds_shards(str(path)):
            return self.shards(path)
        where = Path(path)
        shaping = Shaping(self.size, self.fit, self.alpha, self.channels, self.value_range)
        images = _open(str(path), shaping, self.layout, self.labels)
        images.opened = {
            "path": str(where.resolve()) if where.exists() else str(path),
            **vars(self),
        }
        return images

    def shards(
        self,
        path: str | Path,
        *,
        pairs: bool = False,
        input_range: tuple[float, float] | None = None,
        input_channels: int | None = None,
    ) -> ShardImages:
        """The images of shards there; raises what `open_shards` does."""
        return open_shards(
            path,
            size=self.size,
            fit=self.fit,
            alpha=self.alpha,
            value_range=self.value_range,
            labels=self.labels,
            channels=self.channels,
            pairs=pairs,
            input_range=input_range,
            input_channels=input_channels,
        )


def open_images(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    alpha: Alpha = "drop",
    value_range: tuple[float, float] | None = None,
    layout: Layout | None = None,
    labels: bool = False,
    channels: int | None = None,
) -> Images:
    """Images of a folder tree, zip, .npy, .npz, IDX file, tar shards, or a built-in set by name.

    Shards are a folder of .tar files, a pattern like shards/{000..099}.tar, or a URL of either.

    size: (height, width) to bring every image to, needed when sizes are mixed; fit: crop (scale
    the short side, keep the centre), stretch, or strict (mismatch is an error). alpha: drop it or
    keep it as the last channel of image files (arrays keep every channel). value_range: raw values
    of black and white, where the dtype does not say. layout: axes of 4-axis arrays, where their
    sizes do not say. labels: class labels are wanted. channels: 1 or 3 to turn RGB grey or grey
    RGB. What was given stays in the set's `opened`.

    Raises DataError when there is nothing usable, naming what was expected and found, and
    MissingExtraError when a file needs tifffile or imagecodecs.
    """
    return Opening(size, fit, alpha, value_range, layout, labels, channels).images(path)


def class_names(
    path: str | Path, value_range: tuple[float, float] | None = None
) -> tuple[str, ...]:
    """Names of the classes that labels=True would find at this path; none where it would fail."""
    where = Path(path)
    try:
        if holds_shards(str(path)):
            return shard_classes(path) or open_shards(path, labels=True).classes
        if where.is_dir() or where.suffix.lower() == ".zip":
            container = Folder(where) if where.is_dir() else Archive(where)
            return file_labels(container, image_names(container))[1]
        return open_images(path, value_range=value_range, labels=True).classes
    except DataError:
        return ()


def _open(name: str, shaping: Shaping, layout: Layout | None, labels: bool) -> Images:
    path = Path(name)
    if not path.exists():
        return _builtin(name, shaping, labels)
    if path.is_dir():
        return FileImages(Folder(path), shaping, labels)
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return FileImages(Archive(path), shaping, labels)
    if suffix == ".npy":
        array, array_labels = open_npy(path, labels)
    elif suffix == ".npz":
        array, array_labels = open_npz(path, labels)
    elif looks_like_idx(path):
        array, array_labels = open_idx(path, labels)
    else:
        raise DataError(
            f"{path}: expected a folder, a .zip, .npy, .npz or IDX file (also .gz), or tar shards, "
            "got a file of another kind; for image files give the folder that holds them"
        )
    return InMemory(
        array,
        array_labels,
        value_range=shaping.value_range,
        layout=layout,
        size=shaping.size,
        fit=shaping.fit,
        channels=shaping.channels,
        source=str(path),
    )


def _builtin(name: str, shaping: Shaping, labels: bool) -> Images:
    """The built-in set of this name, reshaped where asked; DataError for any other name."""
    if name == "fashion-mnist":
        name = BUILTIN[0]
    if name not in BUILTIN:
        near = difflib.get_close_matches(Path(name).name, _neighbours(Path(name)), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise DataError(
            f"no such data: {name}; {hint}expected a folder, .zip, .npy, .npz or IDX file, tar "
            f"shards, or the built-in {' or '.join(BUILTIN)}"
        )
    return fashion_mnist("train" if name == BUILTIN[0] else "test", shaping, labels=labels)


def _neighbours(path: Path) -> list[str]:
    try:
        beside = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        beside = []
    return [*beside, *BUILTIN]
