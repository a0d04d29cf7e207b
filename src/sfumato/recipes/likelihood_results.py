"""Bits per dimension of sets of images, as they were measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sfumato.diffusion import bits_per_dim
from sfumato.likelihood import Bound


@dataclass(frozen=True)
class Mean:
    """Bits per dimension: the mean over n images and its 95 % confidence interval's half width."""

    bits: float
    half_width: float | None
    """None of a single image, which has no spread."""
    n: int

    @classmethod
    def of(cls, bits: Tensor) -> Mean:
        """Of each image's, [n]."""
        some = len(bits) > 1
        half_width = 1.96 * float(bits.std()) / math.sqrt(len(bits)) if some else None
        return cls(float(bits.mean()), half_width, len(bits))

    @property
    def interval(self) -> str:
        """The half width as text; "" where there is none."""
        return "" if self.half_width is None else f"{self.half_width:.4f}"

    def __str__(self) -> str:
        return f"{self.bits:.4f}" + (f" ± {self.interval}" if self.interval else "")


@dataclass(frozen=True, eq=False)
class Measured:
    """One set of images: the bound's terms, and the flow's bits [m] of the first of them."""

    name: str
    bound: Bound
    flow: Tensor
    flow_calls: float
    """Network calls the flow took."""
    names: tuple[str, ...] = ()
    """Of the images, as their files or places in an array are named."""

    def rows(self) -> dict[str, Mean]:
        """The numbers worth printing."""
        d = self.bound.dimensions
        made = {
            "bound": Mean.of(self.bound.bits_per_dim),
            "  prior": Mean.of(bits_per_dim(self.bound.prior, d)),
            "  levels": Mean.of(bits_per_dim(self.bound.levels.sum(1), d)),
            "  decoder": Mean.of(bits_per_dim(self.bound.decoder, d)),
        }
        if len(self.flow):
            made["flow"] = Mean.of(self.flow)
            made["bound of the same images"] = Mean.of(self.bound.bits_per_dim[: len(self.flow)])
        return made
