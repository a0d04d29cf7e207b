"""Guidance: two denoisers combined into one, so that every solver works with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.denoiser import Wrapped
from sfumato.diffusion import expand
from sfumato.gaussian import Gaussian
from sfumato.noise import NoiseRange
from sfumato.protocols import Denoiser, is_paired


@dataclass(frozen=True)
class Guided(Wrapped):
    """A conditional denoiser, `inner`, pushed away from an unconditional or a weaker one (`guide`).

    Where both are one network under two conditions, one call of twice the batch answers for both.
    """

    unconditional: Denoiser
    scale: float
    low: float = 0.0
    high: float = math.inf

    def on(self, sigmas: Tensor) -> Guided:
        """Rebind both denoisers."""
        return replace(super().on(sigmas), unconditional=self.unconditional.on(sigmas))

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        """Return the guided distribution, each image by its own sigma; var is the conditional's.

        Raises ValueError where the two answer in different shapes.
        """
        inside = (sigma > self.low) & (sigma <= self.high)
        if self.scale == 1 or not inside.any():
            return self.inner(x, sigma)
        given, free = self._both(x, sigma)
        if given.mean.shape != free.mean.shape:
            raise ValueError(
                f"guidance needs two denoisers of the same images, got {list(given.mean.shape)} "
                f"and {list(free.mean.shape)}"
            )
        mean = free.mean + self.scale * (given.mean - free.mean)
        return Gaussian(torch.where(expand(inside, x) > 0, mean, given.mean), given.var)

    def _both(self, x: Tensor, sigma: Tensor) -> tuple[Gaussian, Gaussian]:
        if is_paired(self.inner):
            answers = self.inner.beside(self.unconditional, x, sigma)
            if answers is not None:
                return answers
        return self.inner(x, sigma), self.unconditional(x, sigma)


def guide(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: float,
    *,
    low: float = 0.0,
    high: float = math.inf,
) -> Guided:
    """Return the guided denoiser: mean = free + scale * (given - free), low < sigma <= high.

    scale = 1 is the conditional denoiser to the bit, 0 the unconditional one; larger is more
    typical of the condition and less varied: classifier-free guidance (Ho & Salimans 2022, eq. 6,
    where w = scale - 1; the interval is that of Kynkaanniemi et al. 2024). With a weaker model
    under the same condition in place of the unconditional one (smaller, or trained for less long)
    it is autoguidance, eq. 5 of Karras et al. 2024, "Guiding a diffusion model with a bad version
    of itself": images improve without losing variety. For one network call in place of two, bind
    conditions of the same names to both, such as labels of zeros. Raises ValueError for a scale
    that is negative or not finite, low > high, or an unconditional denoiser that was not trained on
    all levels of the conditional one that are guided.
    """
    if not (math.isfinite(scale) and scale >= 0) or not low <= high:
        raise ValueError(f"guidance needs scale >= 0 and low <= high, not {scale}, {low}, {high}")
    asked, known = conditional.range, unconditional.range
    if not covers(known, asked, low, high):
        raise ValueError(
            "guidance asks two denoisers at the same levels: the conditional one was trained on "
            f"{in_words(asked)}, the other on {in_words(known)}; guide where both were, by low and "
            "high, or with another one"
        )
    return Guided(conditional, unconditional, scale, low, high)


def covers(known: NoiseRange, asked: NoiseRange, low: float = 0.0, high: float = math.inf) -> bool:
    """Return whether every level of `asked` with low < sigma <= high is one of `known` too."""
    slack = 1 + 1e-6
    if asked.levels is None:
        bottom, top = max(asked.low, low), min(asked.high, high)
        if bottom >= top:  # nothing is guided
            return True
        return known.levels is None and known.low <= bottom * slack and top <= known.high * slack
    levels = asked.levels[(asked.levels > low) & (asked.levels <= high)]
    try:
        known.check(levels)
    except ValueError:
        return False
    return True


def in_words(limits: NoiseRange) -> str:
    """Return a range of noise levels as a phrase."""
    ladder = "" if limits.levels is None else f"{len(limits.levels)} levels, "
    return f"{ladder}sigma {limits.low:.6g} to {limits.high:.6g}"
