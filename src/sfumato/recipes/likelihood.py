"""Bits per dimension of a model on images: the bound and the flow, resumable, level by level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sfumato.diffusion import bits_per_dim
from sfumato.errors import ConfigError
from sfumato.gaussian import Gaussian, tanh_log_mass
from sfumato.likelihood import (
    Bound,
    Hutchinson,
    bound_grid,
    dequantise,
    elbo,
    estimate_elbo,
    fit_decoder_var,
    flow_log_prob,
)
from sfumato.likelihood.flow import discrete_nats
from sfumato.noise import F64
from sfumato.parameterization import Adapted
from sfumato.processes import Processes
from sfumato.randomness import Noise, derive_seed
from sfumato.recipes import build
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.evaluation.sets import CHUNK, ImageSet, Stored, pixels
from sfumato.recipes.likelihood_results import Measured
from sfumato.recipes.model import Model
from sfumato.solvers import Adaptive

BATCH = 64
LEVELS = 1000
"""Levels of the bound where the model has no ladder, in geometric progression over its range."""


@dataclass(frozen=True)
class Asked:
    """What is measured of how many images."""

    n: int = 1000
    draws: int = 32
    """Levels drawn for each image; 0: all."""
    flow: int = 64
    """Images whose density the flow tells, too."""
    tolerance: float = 1e-3
    """Of the flow's adaptive steps."""
    seed: int = 0
    steps: int = 0
    """Levels of the bound in geometric progression (rounded to a ladder's); 0: all of a ladder."""
    variance: Literal["zero", "unit-gaussian"] | None = None
    """Of x0, in place of the recipe's."""
    tanh: bool = False
    """The decoder as DDPM's code approximates it."""

    def __post_init__(self) -> None:
        if self.n < 2 or self.draws < 0 or self.flow < 0 or self.seed < 0:
            raise ConfigError("-n must be at least 2, --draws, --flow and --seed at least 0")
        if self.steps < 0 or self.steps == 1:
            raise ConfigError(
                f"the bound needs two levels at least, and 0 means all: --steps {self.steps}"
            )
        if not self.tolerance > 0:
            raise ConfigError(f"--tolerance must be above 0, not {self.tolerance}")


class Measurer:
    """A model ready to measure images by."""

    def __init__(
        self, model: Model, asked: Asked, cache: Cache, processes: Processes | None = None
    ) -> None:
        """Several `processes` compute their batches, and read those of all from the cache.

        Raises ConfigError for a model of floating-point images, which have no pixel's bins, or for
        a variance asked of a model that has learned its own.
        """
        build.adapt(model.recipe, model.network, variance=asked.variance)
        levels = model.format.levels
        if levels is None:
            raise ConfigError(
                "this model's images are floating-point numbers, which have no bins to give "
                "probabilities to: bits per dimension are for images of 8 or 16 bits"
            )
        self.model, self.asked, self.cache = model, asked, cache
        self.processes = processes or Processes()
        self.half_bin = 1 / (levels - 1)
        limits = model.denoiser.range
        if limits.levels is not None and asked.steps > len(limits.levels):
            raise ConfigError(
                f"this model's ladder has {len(limits.levels)} levels, not {asked.steps}"
            )
        every = limits.levels if not asked.steps else None
        self.grid = (
            every.flip(0) if every is not None else bound_grid(limits, asked.steps or LEVELS)
        )
        self.mass = tanh_log_mass if asked.tanh else Gaussian.log_mass
        self.decoder_var: float | None = None

    def fit(self, images: ImageSet) -> float | None:
        """Fit the decoder's variance on these where the model has none of its own; return it."""
        if self.model.denoiser.range.levels is not None:
            return None
        x0 = pixels(images, 0)[:BATCH].to(self.model.device)
        denoise = self._bound(images, 0, len(x0))
        noise = Noise(tuple(derive_seed(self.asked.seed, "decoder", i) for i in range(len(x0))))
        self.decoder_var = self.processes.from_first(
            lambda: fit_decoder_var(denoise, x0, self.grid[-1], noise, half_bin=self.half_bin)
        )
        return self.decoder_var

    def total(self, images: ImageSet, *, flow: bool = True) -> int:
        """How many images are measured, those of the flow counted again if it is."""
        n = min(self.asked.n, len(images))
        return n + (min(self.asked.flow, n) if flow else 0)

    def measure(
        self, images: ImageSet, tick: Callable[[int], object], *, flow: bool = True
    ) -> Measured:
        """Measure a set, batch by batch; what is in the cache is not done again.

        `tick` is told of images done, `total` in all.
        """
        n = min(self.asked.n, len(images))
        bounds, flows = _runs(n), _runs(self.total(images, flow=flow) - n)
        if self.processes.count > 1:
            pieces = [(self._batch, run) for run in bounds] + [(self._flow, run) for run in flows]
            for number in filter(self.processes.mine, range(len(pieces))):
                work, (first, stop) = pieces[number]
                work(images, first, stop)
                tick(stop - first)
            self.processes.wait()
            # Others have done theirs meanwhile.
            theirs = [run for i, (_, run) in enumerate(pieces) if not self.processes.mine(i)]
            tick(sum(stop - first for first, stop in theirs))
            tick = _told
        parts: list[Bound] = []
        for first, stop in bounds:
            parts.append(self._batch(images, first, stop))
            tick(stop - first)
        densities: list[Tensor] = []
        calls: list[float] = []
        for first, stop in flows:
            bits, spent = self._flow(images, first, stop)
            densities.append(bits)
            calls.append(spent)
            tick(stop - first)
        joined = torch.cat(densities) if densities else torch.zeros(0, dtype=F64)
        names = images.names[:n] if isinstance(images, Stored) else ()
        return Measured(images.name, _joined(parts), joined, float(np.mean(calls or [0.0])), names)

    def _batch(self, images: ImageSet, first: int, stop: int) -> Bound:
        shelf = self.cache.shelf("bound", self._described(images, self.asked.draws))
        x0 = _raw(images, first, stop)
        number = first // BATCH
        size = x0[0].numel()
        if shelf.has(number) and len(shelf.get(number)) == len(x0):
            return _unpacked(shelf.get(number), self.grid, size)
        denoise = self._bound(images, first, stop)
        noise = Noise(tuple(derive_seed(self.asked.seed, "bound", i) for i in range(first, stop)))
        x0 = x0.to(self.model.device)
        if self.asked.draws:
            bound = estimate_elbo(
                denoise, x0, self.grid, noise,
                draws=self.asked.draws, half_bin=self.half_bin, mass=self.mass,
            )  # fmt: skip
        else:
            bound = elbo(denoise, x0, self.grid, noise, half_bin=self.half_bin, mass=self.mass)
        packed = [bound.prior[:, None], bound.levels, bound.decoder[:, None], bound.error]
        shelf.put(number, torch.cat(packed, 1).numpy())
        return bound

    def _flow(self, images: ImageSet, first: int, stop: int) -> tuple[Tensor, float]:
        shelf = self.cache.shelf("flow", self._described(images, self.asked.tolerance))
        x0 = _raw(images, first, stop)
        number = first // BATCH
        if not (shelf.has(number) and len(shelf.get(number)) == len(x0) + 1):
            noise = Noise(
                tuple(derive_seed(self.asked.seed, "flow", i) for i in range(first, stop))
            )
            denoise = self._bound(images, first, stop, interpolate=True)
            limits = denoise.range
            found = flow_log_prob(
                denoise,
                dequantise(x0, noise, self.half_bin).to(self.model.device),
                Adaptive(self.asked.tolerance, self.asked.tolerance),
                [limits.low, limits.high],
                trace=Hutchinson(),
                noise=noise,
            )
            bits = bits_per_dim(
                discrete_nats(found.log_prob, x0[0].numel(), self.half_bin), x0[0].numel()
            )
            shelf.put(number, np.append(bits.numpy(), found.evaluations))
        kept = torch.from_numpy(shelf.get(number))
        return kept[:-1], float(kept[-1])

    def _bound(
        self, images: ImageSet, first: int, stop: int, *, interpolate: bool = False
    ) -> Adapted:
        """The model's denoiser, told the classes of these images."""
        model = self.model
        denoise = build.adapt(
            model.recipe, model.network, interpolate=interpolate, variance=self.asked.variance
        )
        if self.decoder_var is not None:
            denoise = replace(denoise, fixed_decoder_var=self.decoder_var)
        if not model.classes:
            return denoise
        labels = images.labels()
        if labels is None or images.classes != model.classes:
            if model.recipe.network.label_dropout:
                return denoise
            raise ConfigError(
                "this model knows images by their class, and these have none, or others: give "
                f"images of the classes {', '.join(model.classes)}"
            )
        index = torch.from_numpy(labels[first:stop])
        told = functional.one_hot(index, len(model.classes)).float()
        return denoise.given(class_labels=told.to(model.device))

    def _described(self, images: ImageSet, how: float) -> dict[str, Any]:
        about = {k: v for k, v in Drawn(self.model, 1, self.cache).description.items() if k != "n"}
        return {
            "model": {k: v for k, v in about.items() if k not in ("sampler", "seed", "class")},
            "images": images.description,
            "how": how,
            "seed": self.asked.seed,
            "decoder": self.decoder_var or 0.0,
            "grid": self.grid.tolist(),
            "variance": self.asked.variance or "",
            "tanh": self.asked.tanh,
        }


def _told(done: int) -> None:
    """Say nothing of what was told before."""
    del done


def _runs(n: int) -> list[tuple[int, int]]:
    """0 to n - 1 in batches: first and one past the last of each."""
    return [(first, min(first + BATCH, n)) for first in range(0, n, BATCH)]


def _raw(images: ImageSet, first: int, stop: int) -> Tensor:
    """Images [n, C, H, W] in [-1, 1]; a batch lies in one chunk."""
    offset = first % CHUNK
    return pixels(images, first // CHUNK)[offset : offset + stop - first]


def _unpacked(array: np.ndarray, grid: Tensor, size: int) -> Bound:
    rows, steps = torch.from_numpy(array), len(grid) - 1
    return Bound(
        grid, rows[:, 0], rows[:, 1 : 1 + steps], rows[:, 1 + steps], rows[:, 2 + steps :], size
    )


def _joined(parts: list[Bound]) -> Bound:
    return Bound(
        parts[0].sigmas,
        torch.cat([part.prior for part in parts]),
        torch.cat([part.levels for part in parts]),
        torch.cat([part.decoder for part in parts]),
        torch.cat([part.error for part in parts]),
        parts[0].dimensions,
    )
