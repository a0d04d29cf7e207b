"""A trained model: its network with all that is needed to draw images from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sfumato.data.pixels import PixelFormat, from_model
from sfumato.denoiser import Mirrored
from sfumato.errors import ConfigError
from sfumato.guidance import guide
from sfumato.networks.base import Network
from sfumato.networks.graphed import Graphed
from sfumato.parameterization import Adapted
from sfumato.protocols import Denoiser, Solver
from sfumato.recipes import build
from sfumato.recipes.class_names import class_index, classes_for
from sfumato.recipes.config import Recipe
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.recipes.samplers import solver_of
from sfumato.sampling import generate
from sfumato.training.precision import Precision

RawImages = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Model:
    """A network with its recipe, the format of its images and the names of its classes.

    `condition` is the format of the images that it starts from, None where it needs none; `notes`
    tells which damaged checkpoints were passed over.
    """

    recipe: Recipe
    network: Network
    format: PixelFormat
    classes: tuple[str, ...] = ()
    path: Path | None = None
    images_seen: int = 0
    weights: str = "ema"
    precision: str = "float32"
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    """Hash of the weights as saved; "" for a model in memory."""
    condition: PixelFormat | None = None
    weaker: Model | None = None
    """What guidance leads away from, in place of images without their class (autoguidance)."""

    @property
    def run(self) -> Path:
        """The folder of its run; the checkpoint's own where that lies by itself.

        Raises ConfigError for a model in memory.
        """
        if self.path is None:
            raise ConfigError("this model was not loaded from a run or checkpoint")
        inside = self.path.parent.name == "checkpoints"
        return self.path.parent.parent if inside else self.path

    @property
    def denoiser(self) -> Adapted:
        """The network as a denoiser of images in [-1, 1]; classes unbound.

        Raises ConfigError for a model that needs images to start from.
        """
        self.refuse_condition()
        return build.adapt(self.recipe, self.network)

    def solver(self, sampler: SamplerConfig) -> Solver[Any]:
        """Return the solver a sampler names, for the process this model was trained on."""
        lowest = float(self.grid(sampler)[-2])
        return solver_of(sampler, build.process_of(self.recipe.process), lowest)

    def refuse_condition(self) -> None:
        """Raise ConfigError where the model needs images to start from, and there are none."""
        if self.condition is not None:
            raise ConfigError(
                f"this model needs images to start from ({self.condition.describe()}): use "
                "sfumato restore RUN IMAGE"
            )

    def _asked_by(self, config: SamplerConfig) -> Adapted:
        return build.adapt(
            self.recipe, self.network, interpolate=config.interpolate, variance=config.variance
        )

    def with_precision(self, name: str) -> Model:
        """Return the model with its body in "float32" or "bfloat16"; "auto" keeps what it has."""
        if name == "auto":
            return self
        chosen = Precision(name, channels_last=True)
        chosen.apply(self.network)
        return replace(self, precision=str(chosen))

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.network.parameters()).device

    def class_index(self, name: str) -> int:
        """Return the index of a class by name or number; ConfigError suggests the nearest."""
        return class_index(self.classes, name)

    def classes_for(self, seeds: Sequence[int], name: str | None = None) -> list[int] | None:
        """Return the class of each image: the named one, or one drawn by the image's seed.

        None for a model without classes; ConfigError where such a one is asked for a class.
        """
        return classes_for(self.classes, seeds, name)

    def labels_for(self, seeds: Sequence[int], name: str | None) -> Tensor | None:
        """Return `classes_for` as one-hot labels [n, K]."""
        index = self.classes_for(seeds, name)
        if index is None:
            return None
        return functional.one_hot(torch.tensor(index), len(self.classes)).float()

    def grid(self, sampler: SamplerConfig | None = None) -> Tensor:
        """Return the levels the sampler walks, ending with 0: one more than its steps.

        On a ladder, levels that fall together count once. ConfigError for what cannot be walked.
        """
        config = sampler or self.recipe.sampler
        return build.grid_of(config, self._asked_by(config))

    def samples(
        self,
        seeds: Sequence[int],
        *,
        label: str | None = None,
        sampler: SamplerConfig | None = None,
        images: Tensor | None = None,
    ) -> Iterator[RawImages]:
        """Yield raw images [<= batch, C, H, W] in the format of the training data, one per seed.

        `label` names a class; a model with classes draws one for each seed otherwise. `sampler`
        defaults to the recipe's. `images` [n, K, H, W] in [-1, 1], one for each seed, are what a
        model with a `condition` starts from. The same seed is the same picture for any number of
        seeds. Raises ConfigError, at the call, for what this model cannot do.
        """
        drawn = self.drawn(seeds, label=label, sampler=sampler, images=images)
        return (from_model(x, self.format) for x in drawn)

    def drawn(
        self,
        seeds: Sequence[int],
        *,
        label: str | None = None,
        sampler: SamplerConfig | None = None,
        images: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Yield what `samples` yields before it is rounded to pixels: float32 on the host."""
        config = sampler or self.recipe.sampler
        if not seeds:
            raise ConfigError("there is nothing to sample: ask for at least one image (-n 1)")
        grid = self.grid(config)
        if images is not None:
            self._check_images(images, len(seeds))
        self.bound(seeds[:1], label, sampler=config, images=None if images is None else images[:1])
        return self._drawn(seeds, label, config, grid, images)

    def _drawn(
        self,
        seeds: Sequence[int],
        label: str | None,
        config: SamplerConfig,
        grid: Tensor,
        images: Tensor | None,
    ) -> Iterator[Tensor]:
        solver = self.solver(config)
        model = self._replayed() if len(grid) * len(seeds) > 4 * config.batch else self
        for first in range(0, len(seeds), config.batch):
            part = list(seeds[first : first + config.batch])
            starts = None if images is None else images[first : first + config.batch]
            bound = model.bound(part, label, sampler=config, batch=config.batch, images=starts)
            finished = generate(
                build.sampler_denoiser(config, bound),
                solver,
                grid,
                self.format.shape,
                part,
                batch=config.batch,
                device=self.device,
            )
            yield from (x.cpu() for x in finished)

    def _replayed(self) -> Model:
        """The model with networks that a GPU replays: for a few calls of one shape, or more."""
        if self.device.type != "cuda":
            return self
        weaker = None if self.weaker is None else self.weaker._replayed()
        return replace(self, network=cast(Network, Graphed(self.network)), weaker=weaker)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        label: str | None = None,
        sampler: SamplerConfig | None = None,
        images: Tensor | None = None,
    ) -> RawImages:
        """Return n raw images [n, C, H, W]; image i is seeded with seed + i, and see `samples`."""
        drawn = self.samples(range(seed, seed + n), label=label, sampler=sampler, images=images)
        return np.concatenate(list(drawn))

    def bound(
        self,
        seeds: Sequence[int],
        label: str | None = None,
        *,
        sampler: SamplerConfig | None = None,
        batch: int | None = None,
        images: Tensor | None = None,
    ) -> Denoiser:
        """Return the denoiser with the classes of these images bound, padded to `batch` rows.

        `sampler` says how it is guided; the recipe's by default. `images` [n, K, H, W] in [-1, 1],
        one for each seed, are what a model with a `condition` starts from. Raises ConfigError for
        such a model without them, for images it has no use for, or of another number or shape, for
        guidance on a model trained without classes or label dropout, and for the mirror average of
        one whose images have a left and right.
        """
        config = sampler or self.recipe.sampler
        ask = partial(self.bound, seeds, label, batch=batch)
        if config.mirror:
            self._refuse_mirror()
            own = replace(config, mirror=False)
            there = None if images is None else images.flip(-1)
            return Mirrored(ask(sampler=own, images=images), ask(sampler=own, images=there))
        if self.weaker is not None and config.guidance != 1:
            own = replace(config, guidance=1.0)
            asked = replace(own, variance=None)
            weak = self.weaker.bound(seeds, label, sampler=asked, batch=batch, images=images)
            return _guided(ask(sampler=own, images=images), weak, config)
        rows = batch or len(seeds)
        if images is None:
            self.refuse_condition()
        else:
            self._check_images(images, len(seeds))
        labels = self.labels_for(seeds, label)
        denoise, guidance = self._asked_by(config), config.guidance
        if images is not None:
            denoise = denoise.given(image=_padded(images, rows).to(self.device))
        if guidance != 1 and (labels is None or not self.recipe.network.label_dropout):
            raise ConfigError(
                f"guidance {guidance:g} needs a model that also knows images without their class: "
                "train with --classes --network.label-dropout 0.1"
            )
        if labels is None:
            return denoise
        given = denoise.given(class_labels=_padded(labels, rows).to(self.device))
        if guidance == 1:
            return given
        free = given.given(class_labels=torch.zeros_like(given.condition["class_labels"]))
        return _guided(given, free, config)

    def _refuse_mirror(self) -> None:
        guided_by = self.weaker or self
        if not (self.recipe.flip and guided_by.recipe.flip):
            raise ConfigError(
                "mirror averages what is said of an image and of its mirror image, which this "
                "model, trained without --flip, takes for different ones: leave it out"
            )

    def _check_images(self, images: Tensor, count: int) -> None:
        if self.condition is None:
            raise ConfigError("this model was trained on images alone: it starts from none")
        wanted = (count, *self.condition.shape)
        if images.shape != wanted:
            raise ConfigError(
                f"this model starts from images of {self.condition.describe()}, one for each seed: "
                f"expected {list(wanted)}, got {list(images.shape)}"
            )


def _guided(given: Denoiser, free: Denoiser, config: SamplerConfig) -> Denoiser:
    low, high = config.guidance_low, config.guidance_high
    return guide(given, free, config.guidance, low=low, high=high)


def _padded(rows: Tensor, count: int) -> Tensor:
    """Return rows [n, ...] with the last one repeated to `count`."""
    return torch.cat([rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])])
