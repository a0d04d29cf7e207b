"""What is measured: a recipe's network for images of some shape, or that of a run."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sfumato.data.arrays import InMemory
from sfumato.data.images import Images
from sfumato.data.loader import Batches
from sfumato.data.pixels import PixelFormat
from sfumato.errors import ConfigError
from sfumato.recipes.config import Recipe
from sfumato.recipes.presets import names, recipe
from sfumato.recipes.toml import from_toml
from sfumato.training.checkpoint import read_description
from sfumato.training.history import latest_checkpoint
from sfumato.training.step import ImageBatch

_SYNTHETIC = 1024


@dataclass(frozen=True)
class Subject:
    """A recipe, the shape [C, H, W] of its images, its classes, and channels of a start image."""

    name: str
    recipe: Recipe
    shape: tuple[int, int, int]
    classes: int = 0
    condition: int = 0

    @classmethod
    def of(
        cls, name: str, size: tuple[int, int] | None = None, channels: int | None = None
    ) -> Subject:
        """Return a recipe's by name, or a run's by its folder, which knows its own shape.

        A recipe is for images of 3 x 32 x 32 if nothing is said. Raises ConfigError for neither of
        them, for sizes below 1, and for those of a run.
        """
        if name in names():
            height, width = size or (32, 32)
            channels = 3 if channels is None else channels
            if min(height, width, channels) < 1:
                raise ConfigError(
                    f"--size and --channels must be at least 1, not {height} {width} and {channels}"
                )
            return cls(name, _known(recipe(name)), (channels, height, width))
        folder = Path(name)
        if not folder.exists():
            if len(folder.parts) == 1:
                recipe(name)  # Suggests the nearest.
            raise ConfigError(
                f"there is no folder {name}: give a run's folder, or the name of a recipe, such as "
                "edm-tiny"
            )
        if size is not None or channels is not None:
            raise ConfigError("--size and --channels: a run has its own; leave them out")
        where = folder if (folder / "checkpoint.toml").is_file() else latest_checkpoint(folder).path
        about = read_description(where)["describe"]
        data, told = about["data"], about["data"].get("condition")
        return cls(
            str(folder),
            _known(from_toml(about["recipe"])),
            PixelFormat.from_toml(data["format"]).shape,
            len(data.get("classes", ())),
            0 if told is None else PixelFormat.from_toml(told).channels,
        )


def _known(recipe: Recipe) -> Recipe:
    """The recipe with a sigma_data, measured or not: it does not change what anything costs."""
    process = replace(recipe.process, sigma_data=recipe.process.sigma_data or 0.5)
    return replace(recipe, process=process)


@contextmanager
def feed(
    subject: Subject, batch: int, images: Images | None, device: str = "cpu"
) -> Generator[Iterator[ImageBatch]]:
    """Give batches of the images, or of random 8-bit ones in memory, to a training loop.

    Raises ConfigError for images of another shape than the subject's.
    """
    chosen = _random(subject) if images is None else images
    if chosen.format.shape != subject.shape:
        raise ConfigError(
            f"the images are {chosen.format.describe()}, and the network is measured on "
            f"{' x '.join(map(str, subject.shape))}: give --size and --channels that agree"
        )
    flip = subject.recipe.flip and not subject.recipe.augment
    pinned = device.startswith("cuda")
    with Batches(chosen, batch, subject.recipe.seed, flip=flip, pinned=pinned) as batches:
        if subject.condition and chosen.inputs is None:
            yield (_Pair(b.x, _start(subject, len(b.x))) for b in batches)
        else:
            yield batches


@dataclass(frozen=True)
class _Pair:
    x: Tensor
    condition: Tensor | None
    labels: Tensor | None = None


def _start(subject: Subject, count: int) -> Tensor:
    return torch.zeros(count, subject.condition, *subject.shape[1:])


def _random(subject: Subject) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (_SYNTHETIC, *subject.shape), dtype=torch.uint8, generator=generator
    )
    return InMemory(pixels.numpy(), layout="NCHW")
