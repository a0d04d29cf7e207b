"""Answers to what was measured of one image: windows, batches, and the walk itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.parameterization import Spectral
from sfumato.protocols import Denoiser
from sfumato.randomness import Noise, Purpose
from sfumato.recipes import build
from sfumato.recipes.model import Model
from sfumato.recipes.restoring.how import How
from sfumato.recipes.restoring.names import MethodName
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.restoration import Measured
from sfumato.restoration.covariance import Covariance
from sfumato.restoration.windows import PlacedNoise, Window, Windowed
from sfumato.sampling import sample, start_from_prior

Tick = Callable[[float], object]


def deviation(answers: Tensor, seed: int) -> Tensor:
    """Return the standard deviation [C, H, W] of answers [n, C, H, W] of `Drawing.draw`, n > 1.

    `seed` is the first one's. Those of an even seed and the next lie on two sides of the mean,
    which they have as good as known; the others count as independent draws do.
    """
    count, odd = len(answers), seed % 2
    alone = odd + (count - odd) % 2
    squares = (answers - answers.mean(0)).square().sum(0)
    return (squares / (count - alone / count)).sqrt()


@dataclass(frozen=True, eq=False)
class Drawing:
    """A model that draws answers, and how. Raises ConfigError for a class it does not know.

    A model with classes must be told the one of the images; one that starts from images is given
    them with each question.
    """

    model: Model
    how: How
    sampler: SamplerConfig
    label: str | None = None

    def __post_init__(self) -> None:
        if self.model.classes and self.label is None:
            raise ConfigError(
                "this model was trained with classes, so it has to be told what the image shows: "
                f"add --class, one of {', '.join(self.model.classes[:12])}"
            )
        self.model.classes_for([0], self.label)
        self.model.grid(self.sampler)
        self.how.refuse_unused(self.method)
        own_levels = self.sampler.restarts or self.sampler.table is not None
        if self.method in ("repaint", "daps") and own_levels:
            raise ConfigError(
                f"{self.method} walks levels again and again, which no tuned sampler "
                "and none with restarts can: choose another solver, or leave out --restarts"
            )

    @property
    def method(self) -> MethodName | None:
        """How a measurement enters; None for a model of pairs, which is given it."""
        return self.how.method_for(self.model)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of what the network sees at once."""
        return self.model.format.height, self.model.format.width

    @property
    def stride(self) -> tuple[int, int]:
        """How far apart windows lie."""
        high, wide = self.window
        share = 1 - self.how.overlap
        return max(1, round(share * high)), max(1, round(share * wide))

    def draw(
        self,
        shape: tuple[int, int, int],
        measured: Measured | None,
        *,
        condition: Tensor | None = None,
        origin: tuple[int, int] | None = None,
        start: tuple[Tensor, float] | None = None,
        tick: Tick = lambda share: None,
    ) -> Tensor:
        """Return answers [answers, C, H, W] in [-1, 1] to what was measured of one image.

        Answers of an even seed and the next are antithetic, so that few have a good mean.
        `condition` [K, H, W] in [-1, 1] is what a model trained on pairs starts from. `origin` is
        the place of a scene's part. `start` is x [C, H, W] and its noise level, where the walk
        begins there rather than from noise. `tick` is told of every share done. The network is
        always asked about sampler.batch answers, the last ones being padded, so that the same seed
        is the same answer for any number of them. Raises ConfigError for an image smaller than the
        model's.
        """
        seeds = list(range(self.how.seed, self.how.seed + self.how.answers))
        batch = self.sampler.batch
        grid = self.grid(None if start is None else start[1])
        steps = -(-len(seeds) // batch) * (len(grid) - 1)
        parts: list[Tensor] = []
        for first in range(0, len(seeds), batch):
            part = seeds[first : first + batch]
            rows = tuple(part + part[-1:] * (batch - len(part)))
            noise: Noise = Noise(rows, antithetic=True)
            if origin is not None:
                noise = PlacedNoise(rows, antithetic=True, origin=origin)
            walk = self._walk(shape, measured, condition, start, grid, noise)
            x = next(walk)
            for there in walk:
                x = there
                tick(1 / steps)
            parts.append(x[: len(part)].clamp(-1, 1).cpu())
        return torch.cat(parts)

    def _walk(
        self,
        shape: tuple[int, int, int],
        measured: Measured | None,
        condition: Tensor | None,
        start: tuple[Tensor, float] | None,
        grid: Tensor,
        noise: Noise,
    ) -> Iterator[Tensor]:
        """Yield x [batch, C, H, W] where it begins, and after every step."""
        denoise = self._denoiser(shape, condition, noise.seeds)
        solver = self.model.solver(self.sampler)
        if measured is not None:
            denoise, solver = self.how.bend(
                denoise, solver, measured, noise, self._covariance(shape)
            )
        denoise = build.sampler_denoiser(self.sampler, denoise)
        if start is None:
            x = start_from_prior(denoise, grid[0], shape, noise, device=self.model.device)
        else:
            x = start[0].to(self.model.device).expand(len(noise.seeds), *shape).float()
            # A level of the grid: noise is added up to it.
            gap = max(float(grid[0]) ** 2 - start[1] ** 2, 0.0)
            x = x + gap**0.5 * noise.like(x, Purpose.START)
        yield x
        yield from (step.x for step in sample(denoise, solver, grid, x, noise))

    def grid(self, highest: float | None = None) -> Tensor:
        """Return the levels that are walked, from the `highest` if one is given."""
        if highest is None:
            return self.model.grid(self.sampler)
        limits = build.adapt(self.model.recipe, self.model.network).range
        if not limits.low < highest:
            raise ConfigError(
                f"noise of deviation {highest:.4g} in [-1, 1] is below what this model knows, "
                f"{limits.low:.4g}: there is nothing to remove"
            )
        if highest > limits.high:
            raise ConfigError(
                f"noise of deviation {highest:.4g} in [-1, 1] is above what this model knows, "
                f"{limits.high:.4g}: nothing of the image is left in it"
            )
        if self.sampler.table is not None:
            raise ConfigError("--denoise walks other levels than a tuned sampler: choose a solver")
        if limits.levels is not None:  # the ladder's next level up
            highest = float(limits.levels[limits.levels >= highest * (1 - 1e-9)].min())
        capped = replace(self.sampler, sigma_max=highest)
        if self.sampler.grid in ("uniform", "quadratic", "all", "vp", "iddpm"):
            capped = replace(capped, grid="karras")
        return self.model.grid(capped)

    def check(self, height: int, width: int) -> None:
        """Raise ConfigError for an image smaller than the model's."""
        high, wide = self.window
        if height < high or width < wide:
            raise ConfigError(
                f"this image is {height} x {width} pixels, smaller than the {high} x {wide} that "
                "the model was trained on: enlarge it, or train on smaller images (--size)"
            )

    def _covariance(self, shape: tuple[int, int, int]) -> Covariance | None:
        """What the model knows of its data, for images of a shape."""
        spectrum = self.model.network.spectrum
        if not isinstance(spectrum, Spectral):
            return None
        return spectrum.resized(*shape[1:]).covariance

    def _denoiser(
        self, shape: tuple[int, int, int], condition: Tensor | None, seeds: Sequence[int]
    ) -> Denoiser:
        self.check(*shape[1:])
        high, wide = self.window
        height, width = shape[1:]

        def ask(windows: Sequence[Window]) -> Denoiser:
            cut = None
            if condition is not None:
                cut = torch.stack(
                    [condition[:, w.top : w.top + high, w.left : w.left + wide] for w in windows]
                )
            rows = [seeds[w.row] for w in windows]
            return self.model.bound(rows, self.label, sampler=self.sampler, images=cut)

        if (height, width) == (high, wide):
            return ask([Window(row, 0, 0) for row in range(len(seeds))])
        # So many small windows at once as make good use of the machine, few large ones.
        at_once = max(self.sampler.batch, min(16, 2**16 // (high * wide)))
        return Windowed(ask([Window(0, 0, 0)]), ask, (high, wide), self.stride, at_once)
