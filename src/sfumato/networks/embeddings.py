"""Features of a noise level: geometric frequencies (positional) or random ones (Fourier)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PositionalEmbedding(nn.Module):
    """Sines and cosines of [B] at frequencies 10000^-(j / n): [B, channels].

    With `endpoint` the last frequency is 1/10000 exactly (n = channels / 2 - 1: DDPM, DDPM++),
    otherwise it lies one step before (n = channels / 2: Improved DDPM, ADM).
    """

    def __init__(self, channels: int, *, endpoint: bool, sine_first: bool) -> None:
        super().__init__()
        self.count = channels // 2
        self.last = max(self.count - int(endpoint), 1)
        self.sine_first = sine_first

    def forward(self, label: Tensor) -> Tensor:
        """Features [B, channels] of labels [B], in the labels' dtype."""
        # Not a buffer: a network turned to float64 gets float64 frequencies.
        j = torch.arange(self.count, device=label.device, dtype=label.dtype)
        angle = torch.outer(label, torch.exp(-math.log(10000) / self.last * j))
        return _waves(angle, self.sine_first)


class FourierEmbedding(nn.Module):
    """Sine and cosine of [B] at fixed random frequencies N(0, scale^2): [B, channels] (Song 2021).

    The frequencies are a buffer of the state dict: they are drawn once and never trained.
    """

    frequencies: Tensor

    def __init__(self, channels: int, *, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(channels // 2) * scale)

    def forward(self, label: Tensor) -> Tensor:
        """Features [B, channels] of labels [B], in the labels' dtype."""
        angle = torch.outer(label, 2 * math.pi * self.frequencies.to(label.dtype))
        return _waves(angle, sine_first=True)


def _waves(angle: Tensor, sine_first: bool) -> Tensor:
    sine, cosine = angle.sin(), angle.cos()
    return torch.cat([sine, cosine] if sine_first else [cosine, sine], dim=1)
