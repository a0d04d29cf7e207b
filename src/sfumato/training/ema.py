"""Averages of the weights over training: what is sampled from."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Averaging(Protocol):
    """How quickly the average forgets."""

    def decay(self, batch: int, images: int, step: int) -> float:
        """Return beta of ema = beta * ema + (1 - beta) * weights.

        For an update after a batch, `images` and `step` counting what was seen *before* it.
        """
        ...


@dataclass(frozen=True)
class HalfLife:
    """EDM's average: a half-life in images, capped at a share of the images seen so far.

    The first update copies the weights. ramp_up = 0 leaves the cap out. EDM: 500,000 images for
    CIFAR-10, share 0.05.
    """

    halflife_images: float = 500_000
    ramp_up: float = 0.05

    def decay(self, batch: int, images: int, step: int) -> float:
        """Return 0.5 ** (batch / half-life)."""
        cap = self.ramp_up * images if self.ramp_up else self.halflife_images
        halflife = min(self.halflife_images, cap)
        return 0.5 ** (batch / halflife) if halflife > 0 else 0.0


@dataclass(frozen=True)
class Constant:
    """DDPM's average: one decay a step; with warm_up at most (1 + step) / (10 + step)."""

    value: float = 0.9999
    warm_up: bool = False

    def decay(self, batch: int, images: int, step: int) -> float:
        """Return the decay, whatever the batch."""
        return min(self.value, (1 + step) / (10 + step)) if self.warm_up else self.value


class Ema:
    """A network whose parameters are an average of another's; its buffers are copies."""

    def __init__(self, network: nn.Module) -> None:
        """Start from a copy of `network`, in evaluation mode and without gradients."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, decay: float) -> None:
        """Move the average towards `network`: ema = decay * ema + (1 - decay) * weights."""
        mine: list[Tensor] = list(self.network.parameters())
        theirs: list[Tensor] = list(network.parameters())
        if mine:
            torch._foreach_lerp_(mine, theirs, 1 - decay)  # pyright: ignore
        for target, source in zip(self.network.buffers(), network.buffers(), strict=True):
            target.copy_(source)
