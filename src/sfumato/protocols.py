"""The interfaces at which everything meets."""

from __future__ import annotations

from inspect import getattr_static
from typing import Protocol, TypeGuard, TypeVar

from torch import Tensor

from sfumato.gaussian import Gaussian
from sfumato.noise import NoiseRange
from sfumato.randomness import Noise

State = TypeVar("State")


class Denoise(Protocol):
    """The part of a denoiser that sampling needs: any callable of this form samples."""

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Gaussian:
        """Return the distribution of x0 [B, *data] given x; sigma [] or [B]."""
        ...


class Denoiser(Protocol):
    """A network adapted once: the distribution of x0 given x, and where it may be asked."""

    @property
    def range(self) -> NoiseRange:
        """The noise levels the network was trained on."""
        ...

    @property
    def prior(self) -> Gaussian:
        """The distribution of x at range.high."""
        ...

    @property
    def decoder_var(self) -> Tensor | None:
        """Variance of the last, discretised step of the bound, in data units squared.

        None where D's own variance at the first level is that.
        """
        ...

    def on(self, sigmas: Tensor) -> Denoiser:
        """Rebind what depends on pairs of levels (a learned variance, decoder_var) to this grid."""
        ...

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Gaussian:
        """Return the distribution of x0 [B, *data] given x; sigma [] or [B], in data units."""
        ...


def is_denoiser(denoise: Denoise) -> TypeGuard[Denoiser]:
    """Return whether this callable also tells its range and can be bound to a grid.

    Unlike isinstance with a runtime-checkable protocol on Python 3.11 it evaluates no property:
    `decoder_var` may raise, which is no reason to refuse sampling.
    """
    names = ("range", "prior", "decoder_var", "on")
    return all(getattr_static(denoise, name, None) is not None for name in names)


class Paired(Denoiser, Protocol):
    """A denoiser that can answer for itself and for another one in one network call."""

    def beside(
        self, other: Denoise, x: Tensor, sigma: Tensor, /
    ) -> tuple[Gaussian, Gaussian] | None:
        """Return what both say of x [B, *data]; None where one call cannot answer for both."""
        ...


def is_paired(denoise: Denoiser) -> TypeGuard[Paired]:
    """Return whether this denoiser knows how to be asked beside another one."""
    return getattr_static(denoise, "beside", None) is not None


class Conditional(Protocol):
    """A denoiser whose condition (label, image) is bound before any solver sees it."""

    def given(self, **condition: Tensor) -> Denoiser:
        """Return the denoiser for this condition."""
        ...


class Solver(Protocol[State]):
    """A way to walk from one noise level to the next."""

    @property
    def order(self) -> int:
        """Order of convergence of the method in the step size (weak order for stochastic ones)."""
        ...

    @property
    def invertible(self) -> bool:
        """Whether it may walk up the noise levels as well as down."""
        ...

    def start(self, x: Tensor, sigmas: Tensor) -> State:
        """Return the state before the first step on this grid."""
        ...

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: State,
        noise: Noise | None,
    ) -> tuple[Tensor, State]:
        """Walk from sigma to sigma_next (both [], float64, on the host)."""
        ...
