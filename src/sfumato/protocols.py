"""The interfaces at which everything meets."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

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


@runtime_checkable
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
    def decoder_var(self) -> Tensor:
        """Variance of the last, discretised step of the bound, in data units squared."""
        ...

    def on(self, sigmas: Tensor) -> Denoiser:
        """Rebind what depends on pairs of levels (a learned variance, decoder_var) to this grid."""
        ...

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Gaussian:
        """Return the distribution of x0 [B, *data] given x; sigma [] or [B], in data units."""
        ...


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
