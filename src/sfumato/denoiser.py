"""Combinators: Denoiser -> Denoiser. Each forwards what it does not change."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from sfumato.gaussian import Gaussian
from sfumato.noise import NoiseRange
from sfumato.protocols import Denoise, Denoiser


@dataclass(frozen=True)
class Wrapped:
    """What a denoiser made of an `inner` one tells as that does: all but its answers."""

    inner: Denoiser

    @property
    def range(self) -> NoiseRange:
        """As the inner denoiser's."""
        return self.inner.range

    @property
    def prior(self) -> Gaussian:
        """As the inner denoiser's."""
        return self.inner.prior

    @property
    def decoder_var(self) -> Tensor | None:
        """As the inner denoiser's."""
        return self.inner.decoder_var

    def on(self, sigmas: Tensor) -> Self:
        """Rebind the inner denoiser."""
        return replace(self, inner=self.inner.on(sigmas))


@dataclass(frozen=True)
class Clipped(Wrapped):
    """A denoiser whose mean is clamped to [low, high].

    This changes the ODE that is solved (algorithms.md calls it clip_denoised): a likelihood
    refuses it, and outputs record it.
    """

    low: float = -1.0
    high: float = 1.0

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        """Return the inner distribution with its mean clamped."""
        x0 = self.inner(x, sigma)
        return Gaussian(x0.mean.clamp(self.low, self.high), x0.var)


@dataclass(frozen=True)
class Mirrored(Wrapped):
    """A denoiser averaged with what it says of the mirror image, mirrored back.

    For images that have no left and right: of a symmetric distribution the exact denoiser commutes
    with the mirror, so the part of the error that does not goes away (the geometric self-ensemble
    of Timofte et al. 2016, section 3.6, at every noise level). `mirrored` is the denoiser under the
    mirrored condition; the inner one again where there is none.
    """

    mirrored: Denoiser

    def on(self, sigmas: Tensor) -> Mirrored:
        """Rebind both denoisers."""
        return replace(super().on(sigmas), mirrored=self.mirrored.on(sigmas))

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        """Return the averaged distribution for images x [B, ..., W]."""
        here, there = self.inner(x, sigma), self.mirrored(x.flip(-1), sigma)
        var = there.var if there.var.ndim < x.ndim else there.var.flip(-1)
        return Gaussian((here.mean + there.mean.flip(-1)) / 2, (here.var + var) / 2)


@dataclass
class Counted:
    """Counts calls of a denoiser and keeps the last mean: the sampling loop's instrument."""

    inner: Denoise
    evaluations: int = 0
    last: Tensor | None = field(default=None, repr=False)

    @property
    def range(self) -> NoiseRange | None:
        """As the inner denoiser's, where it tells one."""
        limits = getattr(self.inner, "range", None)
        return limits if isinstance(limits, NoiseRange) else None

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        """Return the inner distribution."""
        x0 = self.inner(x, sigma)
        self.evaluations += 1
        self.last = x0.mean
        return x0
