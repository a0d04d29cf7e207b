"""A model's latents: its images inverted and decoded by the sampler of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.latents import RoundTrip, invert, invert_exactly, reconstruct, round_trip
from sfumato.noise import NoiseRange
from sfumato.protocols import Denoiser
from sfumato.randomness import Noise
from sfumato.recipes import build
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import SamplerConfig, plain
from sfumato.recipes.samplers import solver_of
from sfumato.sampling import start_from_prior

_INVERTIBLE = 32


@dataclass(frozen=True)
class TableRow:
    """The round trip of some images with `steps` steps: means over images and dimensions.

    `mse` is DDIM Table 2's, on [0, 1], from the first level to the last and back; `rmse` is its
    per-dimension root on [-1, 1]; `image_mse` and `image_rmse` are after the step to 0.
    """

    steps: int
    mse: float
    rmse: float
    image_mse: float
    image_rmse: float
    images: int


@dataclass(frozen=True, eq=False)
class Flow:
    """A model with the sampler and class (None: none, or the unconditional branch) it walks by."""

    model: Model
    sampler: SamplerConfig
    label: str | None = None

    @property
    def down(self) -> Tensor:
        """The sampler's levels, from the highest to 0."""
        return self.model.grid(self.sampler)

    @property
    def up(self) -> Tensor:
        """The same without 0, from the first level to the last."""
        grid = self.down[:-1].flip(0)
        if len(grid) < 2:
            raise ConfigError(
                f"with {len(grid)} step there is no way between a first and a last level: "
                "take --steps 2 or more"
            )
        return grid

    def check_invertible(self) -> None:
        """Raise ConfigError for a sampler that draws noise on the way."""
        if self.sampler.solver == "tuned":
            raise ConfigError(
                "a tuned sampler walks down only: invert with --solver ddim (eta 0) or heun"
            )
        if not self.model.solver(self.sampler).invertible:
            extra = " with churn" if self.sampler.churn else ""
            extra += " with restarts" if self.sampler.restarts else ""
            extra += f" with eta {self.sampler.eta:g}" if self.sampler.eta else ""
            raise ConfigError(
                f"{self.sampler.solver}{extra} draws fresh noise on the way, so that no latent "
                "determines an image: use a deterministic one, such as --solver ddim (eta 0) or "
                "--solver heun"
            )

    def denoiser(self, count: int) -> Denoiser:
        """Return the denoiser for `count` images, of the class if there is one.

        Raises ConfigError where the model needs a class that was not given.
        """
        model, sampler = self.model, self.sampler
        if self.label is not None or not model.classes:
            bound = model.bound(range(count), self.label, sampler=sampler)
        else:
            if not model.recipe.network.label_dropout:
                raise ConfigError(
                    "this model knows images by their class only (it was trained without label "
                    f"dropout): name it with --class, one of {', '.join(model.classes)}"
                )
            if sampler.guidance != 1:
                raise ConfigError("guidance wants a class: name it with --class")
            if sampler.mirror:
                raise ConfigError("--mirror wants a class here: name it with --class")
            bound = self._plain
        return build.sampler_denoiser(sampler, bound)

    @property
    def limits(self) -> NoiseRange:
        """The noise levels the network may be asked at."""
        return self._plain.range

    @property
    def _plain(self) -> Denoiser:
        model = self.model
        return build.adapt(model.recipe, model.network, interpolate=self.sampler.interpolate)

    def seeded(self, seeds: Sequence[int]) -> Tensor:
        """Return the latents [n, C, H, W] from which `sample` draws these seeds."""
        shape = self.model.format.shape
        return start_from_prior(self._plain, self.down[0], shape, Noise(tuple(seeds)))

    def invert(self, x: Tensor, *, exactly: bool = False) -> Tensor:
        """Return latents [n, C, H, W] of images in [-1, 1], at the sampler's highest level.

        `exactly` solves each step by a fixed-point iteration. Raises ConfigError for a sampler
        that cannot do it.
        """
        self.check_invertible()
        return self._in_batches(x, lambda part: self._inverted(part, exactly))

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images [n, C, H, W] that latents lead to: those of `sample`."""
        self.check_invertible()
        solver, grid = self.model.solver(self.sampler), self.down
        return self._in_batches(
            latents, lambda part: reconstruct(self.denoiser(len(part)), part, solver, grid)
        )

    def round_trip(self, x: Tensor, *, exactly: bool = False) -> RoundTrip:
        """Invert images and reconstruct them, with the error of each.

        Raises ConfigError as `invert` does.
        """
        self.check_invertible()
        solver, up = self.model.solver(self.sampler), self.up
        trips: list[RoundTrip] = []
        for part in x.split(self.sampler.batch):
            part = part.to(self.model.device)
            latent = self._inverted(part, exactly)
            trips.append(round_trip(self.denoiser(len(part)), part, latent, solver, up))

        def joined(of: Callable[[RoundTrip], Tensor]) -> Tensor:
            return torch.cat([of(trip) for trip in trips]).cpu()

        return RoundTrip(
            joined(lambda trip: trip.latent),
            joined(lambda trip: trip.returned),
            joined(lambda trip: trip.image),
            joined(lambda trip: trip.error),
            joined(lambda trip: trip.image_error),
        )

    def _inverted(self, x: Tensor, exactly: bool) -> Tensor:
        denoise, solver = self.denoiser(len(x)), self.model.solver(self.sampler)
        if not exactly:
            return invert(denoise, x, solver, self.up)
        try:
            return invert_exactly(denoise, x, solver, self.up).latent
        except ValueError as error:
            raise ConfigError(
                f"--fixed-point does not work with {self.sampler.solver}: {error}; "
                "choose --solver ddim, euler or heun"
            ) from error

    def _in_batches(self, x: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
        parts = x.split(self.sampler.batch)
        return torch.cat([work(part.to(self.model.device)).cpu() for part in parts])


def table(
    flow: Flow, x: Tensor, steps: Sequence[int], *, exactly: bool = False
) -> Iterator[TableRow]:
    """Yield the round trip's error for each number of steps (DDIM Table 2), as it is measured.

    Raises ConfigError, before the first, for a sampler that cannot invert or steps it cannot take.
    """
    grid = "uniform" if flow.sampler.grid == "all" else flow.sampler.grid
    flows = [replace(flow, sampler=replace(flow.sampler, grid=grid, steps=n)) for n in steps]
    for one in flows:
        one.check_invertible()
        assert len(one.up)
    for one in flows:
        trip = one.round_trip(x, exactly=exactly)
        mse, image_mse = mean_square(trip.error), mean_square(trip.image_error)
        yield TableRow(len(one.down) - 1, mse / 4, mse**0.5, image_mse / 4, image_mse**0.5, len(x))


def mean_square(error: Tensor) -> float:
    """Mean over images of the squared RMSE [n]."""
    return float(error.square().mean())


def deterministic(own: SamplerConfig) -> SamplerConfig:
    """Return a run's own sampler without its noise: DDIM with eta 0 in place of a stochastic one.

    That is what inverting starts from where no solver is asked for.
    """
    quiet = replace(own, churn=0.0, restarts=0, eta=0.0)
    return quiet if solver_of(quiet).invertible else plain(own, "ddim")


def fine_enough(own: SamplerConfig, ladder: Tensor | None) -> SamplerConfig:
    """Return a sampler with steps fine enough to have an inverse, and of a ladder not all levels.

    Fashion-MNIST networks were seen to have one at 25 steps of Heun, not always at 10.
    """
    if own.grid == "all" and ladder is not None:
        return replace(own, grid="uniform", steps=min(100, len(ladder)))
    steps = max(own.steps, _INVERTIBLE)
    return replace(own, steps=steps if ladder is None else min(steps, len(ladder)))
