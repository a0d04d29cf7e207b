"""Images larger than a network knows: D averaged over overlapping windows, for every solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.denoiser import Wrapped
from sfumato.gaussian import Gaussian
from sfumato.noise import F64
from sfumato.protocols import Denoiser
from sfumato.randomness import Noise, Purpose, derive_seed


@dataclass(frozen=True)
class Window:
    """A window of an image of a batch: the image's row, and the window's upper left corner."""

    row: int
    top: int
    left: int


class Ask(Protocol):
    """What is asked about windows: a model may want to know which (for a condition's part)."""

    def __call__(self, windows: Sequence[Window], /) -> Denoiser:
        """Return the denoiser of these windows [n, C, h, w]."""
        ...


@dataclass(frozen=True, eq=False)
class Windowed(Wrapped):
    """A denoiser of images of any size, at least `size`, by overlapping windows of that size.

    Windows lie at multiples of `stride`, and at the far borders; their means are averaged with
    weights that fall towards the borders (Bar-Tal et al. 2023, "MultiDiffusion", eq. 4, for D).
    At most `batch` windows are asked about at once, of one image, so that what is beside it in a
    batch changes nothing. The variance is 0: only the mean is modelled.
    `inner` is one of single windows: what it tells of itself is told. Raises ValueError for a
    stride outside 1..size and, when called, for smaller images.
    """

    ask: Ask
    size: tuple[int, int]
    stride: tuple[int, int]
    batch: int = 16

    def __post_init__(self) -> None:
        if not all(1 <= step <= side for step, side in zip(self.stride, self.size, strict=True)):
            raise ValueError(f"a stride goes from 1 to the window's {self.size}: {self.stride}")

    def on(self, sigmas: Tensor) -> Windowed:
        """Rebind the windows' denoiser."""
        ask = self.ask
        return replace(super().on(sigmas), ask=lambda windows: ask(windows).on(sigmas))

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        """Return the averaged mean [B, C, H, W]; sigma [] or [B]."""
        height, width = self.size
        tops, lefts = (
            places(whole, side, step)
            for whole, side, step in zip(x.shape[-2:], self.size, self.stride, strict=True)
        )
        corners = [(top, left) for top in tops for left in lefts]
        windows = [
            [Window(row, *corner) for corner in corners[first : first + self.batch]]
            for row in range(len(x))
            for first in range(0, len(corners), self.batch)
        ]
        total = torch.zeros_like(x)
        weight, sums = self._weight(x), torch.zeros_like(x[0, 0])
        for top, left in corners:
            sums[top : top + height, left : left + width] += weight
        for part in windows:
            cut = torch.stack(
                [x[w.row, :, w.top : w.top + height, w.left : w.left + width] for w in part]
            )
            level = sigma if sigma.ndim == 0 else sigma[[w.row for w in part]]
            means = _asked(self.ask(part), cut, level) * weight
            for w, mean in zip(part, means, strict=True):
                total[w.row, :, w.top : w.top + height, w.left : w.left + width] += mean
        return Gaussian(total / sums, torch.zeros((), dtype=x.dtype, device=x.device))

    def _weight(self, x: Tensor) -> Tensor:
        """Weights [h, w], least at the borders and never 0."""
        sides = [torch.sin(math.pi * (torch.arange(n, dtype=F64) + 0.5) / n) for n in self.size]
        return (torch.outer(*sides).square() + 1e-3).to(x)


def _asked(denoise: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """D's mean; where it is to be differentiated, it is asked again then rather than remembered.

    A network's activations for all windows of a scene at once would not fit into memory.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return denoise(x, sigma).mean

    def mean(x: Tensor) -> Tensor:
        return denoise(x, sigma).mean

    found = checkpoint(mean, x, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(found, Tensor)
    return found


def places(whole: int, side: int, step: int) -> list[int]:
    """Return where windows of a side begin on a whole: every step, and at its end.

    Raises ValueError where the whole is smaller than a window.
    """
    if whole < side:
        raise ValueError(f"the image is {whole} pixels where the model's windows have {side}")
    return sorted({*range(0, whole - side + 1, step), whole - side})


_CELL = 64


@dataclass(frozen=True)
class PlacedNoise(Noise):
    """Noise of a part of a scene whose upper left corner is at `origin`: a function of the place.

    Parts that overlap see the same noise where they do. Images are [C, H, W].
    """

    origin: tuple[int, int] = (0, 0)

    def normal(
        self,
        shape: Sequence[int],
        purpose: Purpose,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return [B, C, H, W] independent standard normal numbers."""
        channels, height, width = shape
        top, left = self.origin
        out = torch.empty(len(self.seeds), channels, height, width, dtype=dtype)
        for row in range(top // _CELL, -(-(top + height) // _CELL)):
            for column in range(left // _CELL, -(-(left + width) // _CELL)):
                seeds = tuple(derive_seed(seed, "cell", row, column) for seed, _ in self._signed())
                cell = Noise(seeds, self.number).normal((channels, _CELL, _CELL), purpose, dtype)
                down, right = row * _CELL - top, column * _CELL - left
                a, b = max(down, 0), min(down + _CELL, height)
                c, d = max(right, 0), min(right + _CELL, width)
                out[:, :, a:b, c:d] = cell[:, :, a - down : b - down, c - right : d - right]
        for image, (_, sign) in zip(out, self._signed(), strict=True):
            image *= sign
        return out.to(device)
