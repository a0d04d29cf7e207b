"""A network with its parameterization: D(x, sigma) = c_skip x + c_out F(c_in x, c_noise).

`predicts` and `edm` say what c_skip and c_out are for what a network F predicts. In the place of
c_skip x may stand a linear estimate that knows more of the data (`Spectral`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from sfumato.diffusion import expand, first_decoder_var
from sfumato.gaussian import Gaussian
from sfumato.noise import F64, NoiseRange
from sfumato.placement import to_like
from sfumato.protocols import Denoise

Network = Callable[..., Tensor]


class Process(Protocol):
    """How a network sees a noise level: its range, input scale, number for it, and prior."""

    @property
    def range(self) -> NoiseRange:
        """Trained levels."""
        ...

    @property
    def prior_var(self) -> float:
        """Variance of x at range.high."""
        ...

    def scale(self, sigma: Tensor) -> Tensor:
        """Return c_in, the factor between x and the network's input."""
        ...

    def condition(self, sigma: Tensor) -> Tensor:
        """Return c_noise, the number by which the network is told the level."""
        ...


class Head(Protocol):
    """What the second half of the output of a network that learns its variance means.

    `respaced`: whether it tells of the step to the next lower level of whatever grid is bound, or
    of that of the ladder it was trained on.
    """

    respaced: ClassVar[bool]

    def variance(self, out: Tensor, sigma: Tensor, levels: Tensor) -> Tensor:
        """Return var of x0 [B, *data] at sigma [] or [B]; `levels` ascend, sigma is one of them."""
        ...


class Skip(Protocol):
    """A linear estimate of x0 that stands in the place of c_skip x."""

    @property
    def shown(self) -> bool:
        """Whether the network sees it, too, in the place of x."""
        ...

    def __call__(
        self, x: Tensor, sigma: Tensor, c_skip: Tensor, image: Tensor | None = None
    ) -> Tensor:
        """Return the estimate less c_skip x, for x [B, *data]; sigma and c_skip [] or [B].

        `image` is what x0 starts from, in pairs.
        """
        ...


Coefficients = Callable[[Tensor], tuple[Tensor, Tensor]]
Variance = Callable[[Tensor], Tensor]


def zero_variance(sigma: Tensor) -> Tensor:
    """Return 0: DDPM's "fixed small" variance, optimal for data that are points."""
    return torch.zeros_like(sigma)


def unit_gaussian(sigma: Tensor) -> Tensor:
    """Return sigma^2 / (1 + sigma^2): "fixed large", exact for unit Gaussian data (DDPM 3.2)."""
    return sigma**2 / (1 + sigma**2)


@dataclass(frozen=True, eq=False)
class Adapted:
    """A network with its parameterization: a `Denoiser`, and a `Conditional`.

    Coefficients are float64 on the host; x keeps its dtype (float32 or float64). The network sees
    the image in the dtype of its own parameters, c_noise in that or, below float32, in float32.
    Raises ValueError for a fixed_decoder_var that is not above 0.
    """

    network: Network
    process: Process
    coefficients: Coefficients
    variance: Variance = zero_variance
    fixed_decoder_var: float | None = None
    grid: Tensor | None = None
    head: Head | None = None
    skip: Skip | None = None
    condition: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        var = self.fixed_decoder_var
        if var is not None and not 0 < var < math.inf:
            raise ValueError(f"the decoder's variance must be above 0 and finite, not {var}")

    @property
    def range(self) -> NoiseRange:
        """The levels the network was trained on."""
        return self.process.range

    @property
    def prior(self) -> Gaussian:
        """N(0, prior variance) at range.high."""
        return Gaussian(torch.zeros((), dtype=F64), torch.tensor(self.process.prior_var, dtype=F64))

    @property
    def decoder_var(self) -> Tensor | None:
        """Variance of the discretised last step; on a ladder DDPM's, of the grid in use after `on`.

        None where the network has learned it: then it is D's own var at the first level. Raises
        ValueError where there is neither a ladder, a grid nor a fitted value.
        """
        if self.fixed_decoder_var is not None:
            return torch.tensor(self.fixed_decoder_var, dtype=F64)
        if self.head is not None:
            return None
        levels = self._levels
        if levels is None or len(levels) < 2:
            raise ValueError(
                "this denoiser has no ladder to take the last step's variance from: "
                "bind a grid of at least two levels with on(sigmas), or fit fixed_decoder_var"
            )
        return first_decoder_var(levels[0], levels[1])

    @property
    def _levels(self) -> Tensor | None:
        """The levels above 0 of the grid in use, else of the ladder, ascending."""
        levels = self.range.levels if self.grid is None else self.grid
        return None if levels is None else levels[levels > 0].sort().values

    def on(self, sigmas: Tensor) -> Adapted:
        """Rebind what depends on neighbouring levels to the levels of this grid."""
        return replace(self, grid=sigmas.to(F64))

    def given(self, **condition: Tensor) -> Adapted:
        """Bind conditions, passed to the network by name (for example class_labels [B, K])."""
        return replace(self, condition={**self.condition, **condition})

    def beside(self, other: Denoise, x: Tensor, sigma: Tensor) -> tuple[Gaussian, Gaussian] | None:
        """Return what this and the other one say of x, by one network call of twice the batch.

        None where the other is not this same network under conditions of the same names and shapes,
        with a row an image.
        """
        if not (isinstance(other, Adapted) and _alike(self, other, len(x))):
            return None
        both = {
            name: torch.cat([mine, other.condition[name]]) for name, mine in self.condition.items()
        }
        sigmas = torch.cat([sigma, sigma]) if sigma.ndim else sigma
        out = replace(self, condition=both)(torch.cat([x, x]), sigmas)
        mean = out.mean.chunk(2)
        per_image = out.var.ndim > 0 and len(out.var) == 2 * len(x)
        var = out.var.chunk(2) if per_image else (out.var, out.var)
        return Gaussian(mean[0], var[0]), Gaussian(mean[1], var[1])

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        """Return the distribution of x0 given x [B, *data]; sigma [] or [B] in data units."""
        sigma = sigma.to(device="cpu", dtype=F64)
        c_skip, c_out = self.coefficients(sigma)
        linear = expand(c_skip, x) * x
        if self.skip is not None:
            linear = linear + self.skip(x, sigma, c_skip, self.condition.get("image"))
        if self.skip is not None and self.skip.shown:
            seen = expand(self.process.scale(torch.zeros_like(sigma)), x) * linear
        else:
            seen = expand(self.process.scale(sigma), x) * x
        c_noise = self.process.condition(sigma).expand(len(x))
        dtype = _dtype_of(self.network, x.dtype)
        # In bfloat16 the index 999 of a level would be 1000.
        told = to_like(c_noise, x, torch.promote_types(dtype, torch.float32))
        out = _tensor(self.network(seen.to(dtype), told, **self.condition)).to(x.dtype)
        if self.head is None:
            return Gaussian(linear + expand(c_out, x) * out, expand(self.variance(sigma), x))
        levels = self._levels
        if out.shape[1] != 2 * x.shape[1] or levels is None or len(levels) < 2:
            raise ValueError(
                "a learned variance needs two outputs a channel and a grid of at least two levels: "
                f"the network gives {out.shape[1]} for {x.shape[1]} channels"
            )
        out, variance = out.chunk(2, 1)
        ladder = self.range.levels
        if self.head.respaced or ladder is None or torch.equal(levels, ladder):
            var = self.head.variance(variance, sigma, levels)
        else:  # below 0 it could make the variance of a larger step negative
            var = self.head.variance(variance, sigma, ladder).clamp(min=0)
        return Gaussian(linear + expand(c_out, x) * out, var.to(x.dtype))


def _tensor(out: object) -> Tensor:
    """Return what a network returned; TypeError where it is wrapped, as diffusers' networks do."""
    if isinstance(out, Tensor):
        return out
    name = type(out).__name__
    raise TypeError(
        f"the network returned {name}, not a tensor: wrap it, for example "
        "lambda x, t: network(x, t).sample"
    )


def _alike(a: Adapted, b: Adapted, count: int) -> bool:
    """Whether two denoisers differ in nothing but the values of conditions of `count` rows."""
    apart = {"condition", "grid"}
    if any(getattr(a, f.name) is not getattr(b, f.name) for f in fields(a) if f.name not in apart):
        return False
    if a.grid is not b.grid and (a.grid is None or b.grid is None or not a.grid.equal(b.grid)):
        return False
    return a.condition.keys() == b.condition.keys() and all(
        mine.ndim and len(mine) == count and mine.shape == b.condition[name].shape
        for name, mine in a.condition.items()
    )


def _dtype_of(network: Network, default: torch.dtype) -> torch.dtype:
    """Return the dtype in which the network takes images: that of its first parameter."""
    if isinstance(network, nn.Module):
        for parameter in network.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return default
