"""Score-SDE's predictors (Song et al. 2021): discretisations of the reverse SDE.

Score-SDE walks scale(sigma) x. Divided by its scale, the reverse SDE of the VP, VE and sub-VP
processes is one and the same,

    dx = (x - D) / sigma^2 d(sigma^2) + dW,    W a Brownian motion on the clock sigma^2,

and processes and predictors differ only in how they discretise it. A step from sigma to s is

    x_s = r ((1 + loss) x + growth / sigma^2 (D - x) + sqrt(growth) z),  r = scale(sigma) / scale(s)

where growth and loss are what the forward step from s to sigma adds to sigma^2 and takes from the
scale: exactly, or along the tangent in time at sigma. The step to 0 is Tweedie's mean D, as
Score-SDE advises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.noise import VE, VP, SubVP
from sfumato.protocols import Denoise
from sfumato.randomness import Noise
from sfumato.solvers.support import Scaled, fresh


@dataclass(frozen=True)
class ReverseDiffusion:
    """The reverse diffusion predictor (Score-SDE eq. 46; Algorithms 2 and 3): order 1.

    It reverses the exact forward step: growth = sigma^2 - s^2, loss = 1 - r. `process` is what the
    network was trained on: a ladder or `VP` gives x_s = (2 - sqrt(1 - b)) x + b score + sqrt(b) z
    in DDPM's coordinates, b its variance of a forward step; `VE` (r = 1) has the mean of
    `Ancestral` and DDIM(1), and more noise: sigma^2 - s^2 in place of (s / sigma)^2 of it. For
    `SubVP` the authors' code takes an `EulerMaruyama` step. (Their ancestral predictor is
    `Ancestral`: on VE with var = 0, on VP with `unit_gaussian`.)
    """

    process: Scaled
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
        """Undo one forward step, and add as much noise as it did."""
        ratio = self.process.scale(sigma) / self.process.scale(sigma_next)
        growth, loss = sigma**2 - sigma_next**2, 1 - ratio
        return _reverse(denoise, x, sigma, sigma_next, (ratio, growth, loss), noise), None


@dataclass(frozen=True)
class EulerMaruyama:
    """The Euler-Maruyama predictor (Score-SDE section 4.1; its code's `EulerMaruyama`): order 1.

    Euler's step of the reverse SDE in the process's own time and scale: growth and loss are those
    of the tangent at sigma. On `VE` time is log sigma, and x_s = x + 2 h (D - x) + sigma sqrt(2 h)
    z with h = log(sigma / s). The step in time is the grid's (the authors' code takes 1 / N on a
    grid that is spaced by (1 - 1e-3) / (N - 1)).
    """

    process: VP | SubVP | VE
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
        """Walk along the drift at sigma, with the noise of a step at sigma."""
        ratio = self.process.scale(sigma) / self.process.scale(sigma_next)
        growth, loss = _tangent(self.process, sigma, sigma_next)
        return _reverse(denoise, x, sigma, sigma_next, (ratio, growth, loss), noise), None


def _reverse(
    denoise: Denoise,
    x: Tensor,
    sigma: Tensor,
    s: Tensor,
    coefficients: tuple[Tensor, Tensor, Tensor],
    noise: Noise | None,
) -> Tensor:
    x0 = denoise(x, sigma).mean
    if s == 0:
        return x0
    ratio, growth, loss = coefficients
    gain = growth / sigma**2
    mean = float(ratio * (1 + loss - gain)) * x + float(ratio * gain) * x0
    return mean + float(ratio * growth.sqrt()) * fresh(noise, x, sigma, s)


def _tangent(process: VP | SubVP | VE, sigma: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return growth of sigma^2 and relative loss of scale over the step, at sigma's rates in time.

    On VE any time that is linear in log sigma gives the same.
    """
    if isinstance(process, VE):
        return 2 * sigma**2 * (sigma / s).log(), torch.zeros_like(sigma)
    walked = (process.time(sigma) - process.time(s)) / _slope(process.time, sigma)
    loss = -_slope(process.scale, sigma) / process.scale(sigma) * walked
    return 2 * sigma * walked, loss


def _slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the derivative of a function of a number."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        return torch.autograd.grad(function(at), at)[0]
