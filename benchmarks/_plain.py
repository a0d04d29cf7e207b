"""DDPM++ as anybody would write it with torch's own layers: what ours is measured against.

Names are those of sfumato's network, so its state dict loads; the output is the same to 1e-5.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.networks.base import attending
from sfumato.networks.config import UNetConfig


def group_norm(channels: int) -> nn.GroupNorm:
    groups = min(32, channels // 4)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=1e-6)


class Attention(nn.Module):
    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, 1, c, h * w).transpose(-1, -2)
        a = F.scaled_dot_product_attention(*qkv.unbind(1))
        return (x + self.proj(a.transpose(-1, -2).reshape(b, c, h, w))) * self.scale


class Block(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: UNetConfig,
        resample: str = "",
        attend: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.dropout, self.scale = resample, config.dropout, config.skip_scale
        self.norm0 = group_norm(inputs)
        self.conv0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(config.width * config.embedding_width, outputs)
        self.norm1 = group_norm(outputs)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs or resample else None
        self.attention = Attention(outputs, self.scale) if attend else None

    def resize(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(self.resize(F.silu(self.norm0(x))))
        h = F.silu(self.norm1(h + self.affine(embedding)[:, :, None, None]))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = self.resize(x)
        x = (h + (x if self.skip is None else self.skip(x))) * self.scale
        return x if self.attention is None else self.attention(x)


class Level(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.entry, self.blocks = nn.ModuleList(), nn.ModuleList()


class Plain(nn.Module):
    """F(x [B, C, H, W], noise label [B]) of the standard encoder and decoder, unconditional."""

    def __init__(self, config: UNetConfig, channels: int = 3, size: int = 32) -> None:
        super().__init__()
        self.width = config.width
        embedding = config.width * config.embedding_width
        self.map0 = nn.Linear(config.width, embedding)
        self.map1 = nn.Linear(embedding, embedding)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        widths = [config.width * m for m in config.multipliers]
        attends = attending(config.attention, size, size, len(widths))
        width, skips = config.width, list[int]()
        for i, outputs in enumerate(widths):
            level = Level()
            level.entry.append(
                Block(width, width, config, "down")
                if i
                else nn.Conv2d(channels, width, 3, padding=1)
            )
            skips.append(width)
            for _ in range(config.blocks):
                level.blocks.append(Block(width, outputs, config, attend=attends[i]))
                skips.append(outputs)
                width = outputs
            self.encoder.append(level)
        for i in reversed(range(len(widths))):
            level = Level()
            level.entry.extend(
                [Block(width, width, config, "up")]
                if i < len(widths) - 1
                else [Block(width, width, config, attend=True), Block(width, width, config)]
            )
            for j in range(config.blocks + 1):
                attend = attends[i] and j == config.blocks
                level.blocks.append(Block(width + skips.pop(), widths[i], config, attend=attend))
                width = widths[i]
            self.decoder.append(level)
        self.norm = group_norm(width)
        self.head = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        half = self.width // 2
        frequencies = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half, device=x.device))
        angle = noise_label[:, None] * frequencies
        embedding = torch.cat([angle.sin(), angle.cos()], 1)
        embedding = F.silu(self.map1(F.silu(self.map0(embedding))))
        skips: list[Tensor] = []
        level: Any
        for level in self.encoder:
            entry = level.entry[0]
            x = entry(x, embedding) if isinstance(entry, Block) else entry(x)
            skips.append(x)
            for block in level.blocks:
                x = block(x, embedding)
                skips.append(x)
        for level in self.decoder:
            for entry in level.entry:
                x = entry(x, embedding)
            for block in level.blocks:
                x = block(torch.cat([x, skips.pop()], 1), embedding)
        return self.head(F.silu(self.norm(x)))
