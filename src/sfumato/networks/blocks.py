"""The residual block, with optional resampling and self-attention, of all networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.native import gpu
from sfumato.networks.layers import (
    Conv,
    Init,
    Linear,
    Resample,
    is_half_on_cpu,
    layout_of,
)
from sfumato.networks.norm import GroupNorm, largest_divisor

Resolution = Literal["same", "up", "down"]


@dataclass(frozen=True)
class Style:
    """What all blocks of a network share.

    `adaptive` scales and shifts the second norm by the embedding (ADM), otherwise the embedding is
    added before it. `project_resample` puts a 1x1 convolution on the skip of a resampling block.
    """

    embedding: int
    dropout: float
    skip_scale: float
    eps: float
    adaptive: bool
    channels_per_head: int
    taps: tuple[int, ...]
    project_resample: bool
    init: Init
    init_output: Init
    init_attention: Init


class Block(nn.Module):
    """Norm, SiLU, (resample,) convolution, embedding, norm, SiLU, dropout, convolution; plus skip.

    Followed by self-attention where asked for. EDM figure 8 and Table 7; DDPM appendix B.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        style: Style,
        *,
        resolution: Resolution = "same",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.style = style
        resampled = resolution != "same"
        self.norm0 = GroupNorm(inputs, style.eps)
        self.resample = Resample(style.taps, up=resolution == "up") if resampled else None
        self.conv0 = Conv(inputs, outputs, 3, style.init)
        self.affine = Linear(style.embedding, outputs * (1 + style.adaptive), style.init)
        self.norm1 = GroupNorm(outputs, style.eps)
        self.conv1 = Conv(outputs, outputs, 3, style.init_output)
        project = inputs != outputs or (resampled and style.project_resample)
        self.skip = Conv(inputs, outputs, 1, style.init) if project else None
        self.attention = SelfAttention(outputs, style) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, inputs, H, W] and [B, E] to [B, outputs, H', W']."""
        h = self._on_gpu(x, embedding) if gpu.takes(x) else self._by_layers(x, embedding)
        return h if self.attention is None else self.attention(h)

    def _by_layers(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self._resampled(self.conv0, self.norm0(x, silu=True))
        h = self._conditioned(h, embedding, None)
        if self.skip is not None:
            x = self._resampled(self.skip, x)
        elif self.resample is not None:
            x = self.resample(x)
        return self.conv1(h, gain=self.style.skip_scale, plus=x)

    def _on_gpu(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The same where a pass over memory costs most: biases join what is added anyway."""
        h, x = self.norm0(x, silu=True, forked=True)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv0(h, biased=False)
        h = self._conditioned(h, embedding, self.conv0.bias)
        bias, gain = self.conv1.bias, self.style.skip_scale
        if self.skip is not None:
            x, bias = self.skip(x, biased=False), bias + self.skip.bias
        return gpu.join(self.conv1(h, gain, biased=False), x, bias, gain)

    def _conditioned(self, h: Tensor, embedding: Tensor, bias: Tensor | None) -> Tensor:
        """The second norm, by the embedding, of h plus bias."""
        p = self.style.dropout if self.training else 0.0
        condition = self.affine(embedding)
        if not self.style.adaptive:
            offset = condition if bias is None else condition + bias
            return self.norm1(h, offset=offset, silu=True, p=p)
        factor, shift = condition.chunk(2, dim=1)
        offset = None if bias is None else bias.expand(len(h), -1)
        return self.norm1(h, offset=offset, factor=factor + 1, shift=shift, silu=True, p=p)

    def _resampled(self, conv: Conv, x: Tensor) -> Tensor:
        return conv(x) if self.resample is None else self.resample.then(conv, x)


class SelfAttention(nn.Module):
    """Softmax attention between all pixels, added to its input.

    One convolution makes queries, keys and values, in this order along its outputs and each of
    them head by head. (EDM's order is head, channel, then q-k-v: converting permutes rows.)
    """

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        per_head = style.channels_per_head or channels
        self.heads = largest_divisor(channels, max(channels // per_head, 1))
        self.scale = style.skip_scale
        self.norm = GroupNorm(channels, style.eps)
        self.qkv = Conv(channels, 3 * channels, 1, style.init_attention)
        self.proj = Conv(channels, channels, 1, style.init_output)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        batch, channels, height, width = x.shape
        h, x = self.norm(x, forked=True)
        qkv = self.qkv(h).permute(0, 2, 3, 1)
        qkv = qkv.reshape(batch, height * width, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        h = _attend(q, k, v)  # [B, heads, HW, C / heads]
        h = h.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        h = h.contiguous(memory_format=layout_of(x))
        return self.proj(h, gain=self.scale, plus=x)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of [B, heads, tokens, channels]."""
    if is_half_on_cpu(q) and q.shape[2] <= 1024:
        # Two plain products are twice as fast there, while their weights fit.
        return (q * q.shape[3] ** -0.5 @ k.mT).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)
