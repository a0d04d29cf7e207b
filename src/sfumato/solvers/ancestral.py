"""DDPM's ancestral sampler and DDIM's family between it and the probability flow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from sfumato.diffusion import transition
from sfumato.protocols import Denoise
from sfumato.randomness import Noise
from sfumato.solvers.runge_kutta import combine
from sfumato.solvers.support import fresh


@dataclass(frozen=True)
class Ancestral:
    """DDPM's sampler (DDPM Algorithm 2): draw x_s from p(x_s | x_sigma); the last step is its mean.

    The variance is the denoiser's: var = 0 is "fixed small", `unit_gaussian` "fixed large".
    On a sub-sequence with `unit_gaussian` it is the sigma-hat sampler of DDIM's Table 1.
    """

    order: int = field(default=1, init=False, repr=False)
    invertible: bool = field(default=False, init=False, repr=False)
    stages: ClassVar[int] = 1

    def start(self, x: Tensor, sigmas: Tensor) -> None:
        """Return no state."""

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: None,
        noise: Noise | None,
    ) -> tuple[Tensor, None]:
        """Draw from the transition."""
        x0 = denoise(x, sigma)
        if sigma_next == 0:
            return x0.mean, None
        z = fresh(noise, x, sigma, sigma_next)
        return transition(x0, x, sigma, sigma_next).sample(z), None


@dataclass(frozen=True)
class DDIM:
    """DDIM(eta) (DDIM eq. 12 and 16): eta = 0 is the probability flow, 1 is DDPM's "fixed small".

    eta is the paper's ratio of standard deviations, in [0, 1]. The denoiser's variance is not
    used. With eta = 0 it may walk up (inversion). Raises ValueError for eta outside [0, 1].
    """

    eta: float = 0.0
    order: int = field(default=1, init=False, repr=False)
    stages: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM's eta lies in [0, 1], not {self.eta}")

    @property
    def invertible(self) -> bool:
        """Only without fresh noise."""
        return self.eta == 0

    def start(self, x: Tensor, sigmas: Tensor) -> None:
        """Return no state."""

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        state: None,
        noise: Noise | None,
    ) -> tuple[Tensor, None]:
        """Keep part of the noise in x, replace the rest by fresh noise."""
        here, s = float(sigma), float(sigma_next)
        x0 = denoise(x, sigma).mean
        if s == 0:
            return x0, None
        fresh_var = self.eta**2 * s**2 * (1 - (s / here) ** 2)
        keep = (s**2 - fresh_var) ** 0.5 / here if fresh_var else s / here
        out = combine((keep, 1 - keep), (x, x0))
        if fresh_var > 0:
            out.add_(fresh(noise, x, sigma, sigma_next), alpha=fresh_var**0.5)
        return out, None
