"""Denoisers bent towards a measurement y = A x0 + noise: D + sigma^2 grad log p(y | x), or near it.

Each method is a Denoiser -> Denoiser, so every solver draws restored images with it. What differs
is how p(y | x), an integral over x0, is approximated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.denoiser import Wrapped
from sfumato.diffusion import expand
from sfumato.gaussian import Gaussian
from sfumato.protocols import Denoise
from sfumato.randomness import Noise, Purpose
from sfumato.restoration.operators import (
    Operator,
    conjugate_gradients,
    inverse,
    is_spectral,
    solve,
)

DATA_STD = 0.5
"""Deviation of pixels in [-1, 1]: what is expected of x0 where nothing is known of it."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured, y [B, *measured], and by what: `operator`, noise of deviation `std`.

    Raises ValueError for a deviation that is negative or y that is not finite.
    """

    operator: Operator
    y: Tensor
    std: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.std < float("inf"):
            raise ValueError(f"the measurement's noise must be 0 or more, not {self.std}")
        if not self.y.isfinite().all():
            raise ValueError("the measurement holds NaN or infinity: mask such values")

    def to(self, like: Tensor) -> Tensor:
        """Return y in the dtype and on the device of a state, a row for each of its images."""
        return self.y.to(like).expand(len(like), *self.y.shape[1:])

    def rest(self, x0: Tensor) -> Tensor:
        """Return y - A x0."""
        return self.to(x0) - self.operator(x0)


class Method(Protocol):
    """How a denoiser is bent: returns the mean of x0 given x and y."""

    def __call__(self, denoise: Denoise, measured: Measured, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean [B, *data]."""
        ...


@dataclass(frozen=True, eq=False)
class Restored(Wrapped):
    """A denoiser that knows a measurement. Its variance is 0: only the mean is modelled."""

    measured: Measured
    method: Method

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        """Return the bent mean."""
        mean = self.method(self.inner, self.measured, x, sigma)
        return Gaussian(mean, torch.zeros((), dtype=x.dtype, device=x.device))


@dataclass(frozen=True, eq=False)
class Replacement:
    """What is measured is replaced, in x by y at its noise level, and in the mean by y.

    Song et al. 2021 (Score-SDE), appendix I.2, for any operator by its pseudo-inverse. `noise` has
    a seed for each image; its draw is the same at all levels. The measurement's own noise is
    ignored. What is unknown hears of what is known by the network alone.
    """

    noise: Noise

    def __call__(self, denoise: Denoise, measured: Measured, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean with what is measured in place."""
        z = self.noise.like(x, Purpose.MEASUREMENT)
        wanted = _pseudo(measured.operator, measured.to(x)) + _visible(
            measured.operator, expand(sigma, x) * z
        )
        mean = denoise(x - _visible(measured.operator, x) + wanted, sigma).mean
        return mean + _pseudo(measured.operator, measured.rest(mean))


@dataclass(frozen=True)
class DDRM:
    """What is measured is set in the mean, singular vector by singular vector, by its noise.

    Kawar et al. 2022, eq. 7 and 8, with eta_b = 1; without noise it is DDNM (Wang et al. 2023,
    eq. 11). A singular value s is trusted wholly at levels above std / s, and by sqrt(1 - eta^2)
    s sigma / std below. Raises ValueError for an operator that does not know its spectrum.
    """

    eta: float = 0.85

    def __call__(self, denoise: Denoise, measured: Measured, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean with what is measured in place."""
        mean = denoise(x, sigma).mean
        if not is_spectral(measured.operator):
            if measured.std == 0:
                return mean + _pseudo(measured.operator, measured.rest(mean))
            raise ValueError(
                "DDRM needs an operator that knows its singular values: choose another method"
            )
        rest = measured.rest(mean)
        levels = sigma.reshape(-1).expand(len(x)).tolist()
        if len(set(levels)) == 1:
            back = measured.operator.spectral(self._trusted(measured.std, levels[0]), rest)
        else:
            parts = [
                measured.operator.spectral(self._trusted(measured.std, level), part[None])
                for level, part in zip(levels, rest, strict=True)
            ]
            back = torch.cat(parts)
        return mean + measured.operator.adjoint(back)

    def _trusted(self, std: float, level: float) -> Callable[[Tensor], Tensor]:
        """Of an eigenvalue s^2: how far s is trusted at a level, over s^2."""

        def trusted(value: Tensor) -> Tensor:
            if std == 0:
                return inverse(value)
            ratio = value.sqrt() * level / std
            weight = torch.where(ratio >= 1, 1.0, (1 - self.eta**2) ** 0.5 * ratio)
            return weight * inverse(value)

        return trusted


@dataclass(frozen=True)
class DiffPIR:
    """The mean that is near the denoiser's and explains y: one proximal step, no gradient.

    Zhu et al. 2023, eq. 12a-b: argmin |y - A x|^2 / std^2 + weight / sigma^2 |x - D|^2. `least` is
    the smallest deviation of y that is believed.
    """

    weight: float = 7.0
    least: float = 0.002

    def __call__(self, denoise: Denoise, measured: Measured, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean after the proximal step."""
        mean = denoise(x, sigma).mean
        var = expand(sigma, x).square() / self.weight
        floor = torch.tensor(max(measured.std, self.least) ** 2, dtype=x.dtype, device=x.device)
        return mean + var * measured.operator.adjoint(
            solve(measured.operator, measured.rest(mean), var, floor)
        )


@dataclass(frozen=True)
class DPS:
    """The gradient of |y - A D(x)|^2 through the network: p(y | x) as if x0 were D(x).

    Chung et al. 2023, eq. 16. Their step is zeta / |y - A D| for each of 1,000 steps, which no
    other solver or grid can take over; here the mean moves by zeta J' A' (y - A D), J being D's
    Jacobian: less where y's noise is above x0's deviation given x. Steps above 2 / |A|^2 diverge.
    """

    zeta: float = 1.0
    data_std: float = DATA_STD

    def __call__(self, denoise: Denoise, measured: Measured, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean with the gradient's step taken."""
        x0, pull = linearised(denoise, x, sigma)
        mean = x0.mean
        trust = 1 / (1 + measured.std**2 / spread(sigma, x, self.data_std))
        return mean + self.zeta * trust * pull(measured.operator.adjoint(measured.rest(mean)))


@dataclass(frozen=True)
class PiGDM:
    """The gradient with x0 Gaussian around D(x), of deviation r: sigma and the data's together.

    Song et al. 2023 ("Pseudoinverse-guided diffusion models"), eq. 7 and 8, with the data's own
    deviation in place of 1, and weighted by r^2 / sigma^2 as in their Algorithm 1: images are far
    from independent pixels, and without the weight their low frequencies overshoot.
    """

    data_std: float = DATA_STD

    def __call__(self, denoise: Denoise, measured: Measured, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean with the gradient's step taken."""
        x0, pull = linearised(denoise, x, sigma)
        mean = x0.mean
        floor = measured.std**2 / spread(sigma, x, self.data_std)
        rest = solve(measured.operator, measured.rest(mean), torch.ones_like(floor), floor)
        return mean + pull(measured.operator.adjoint(rest))


def spread(sigma: Tensor, x: Tensor, data_std: float) -> Tensor:
    """Return the variance of x0 given x where pixels are independent."""
    square = expand(sigma, x).square()
    return square * data_std**2 / (square + data_std**2)


@dataclass(frozen=True)
class MomentMatching:
    """The gradient with the covariance that the network itself has: sigma^2 times its Jacobian.

    Rozet et al. 2024, eq. 15 to 17; exact for Gaussian data. Each of `rounds` of conjugate
    gradients costs a pass back through the network. `least` is the smallest deviation of y that is
    believed.
    """

    rounds: int = 3
    least: float = 0.002

    def __call__(self, denoise: Denoise, measured: Measured, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean with sigma^2 times the gradient added."""
        x0, pull = linearised(denoise, x, sigma)
        return x0.mean + self.step(pull, measured, sigma, measured.rest(x0.mean))

    def step(
        self,
        pull: Callable[[Tensor], Tensor],
        measured: Measured,
        sigma: Tensor,
        rest: Tensor,
    ) -> Tensor:
        """Return V A' (A V A' + std^2)^-1 rest, V = sigma^2 J, by the Jacobian's pull J'."""
        floor = max(measured.std, self.least) ** 2

        def apply(v: Tensor) -> Tensor:
            through = pull(measured.operator.adjoint(v))
            return expand(sigma, v).square() * measured.operator(through) + floor * v

        v = conjugate_gradients(apply, rest, self.rounds)
        through = pull(measured.operator.adjoint(v))
        return expand(sigma, through).square() * through


def linearised(
    denoise: Denoise, x: Tensor, sigma: Tensor
) -> tuple[Gaussian, Callable[[Tensor], Tensor]]:
    """Return D(x), without gradient, and v -> J' v, J being its Jacobian at x, image by image."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        x0 = denoise(leaf, sigma)

    def pull(v: Tensor) -> Tensor:
        (out,) = torch.autograd.grad(x0.mean, leaf, v, retain_graph=True)
        return out

    return Gaussian(x0.mean.detach(), x0.var.detach()), pull


def _pseudo(operator: Operator, y: Tensor) -> Tensor:
    """The pseudo-inverse's image of y."""
    one = torch.ones((), dtype=y.dtype, device=y.device)
    return operator.adjoint(solve(operator, y, one, torch.zeros_like(one)))


def _visible(operator: Operator, x: Tensor) -> Tensor:
    """What of x is measured at all: its part in the span of A'."""
    return _pseudo(operator, operator(x))
