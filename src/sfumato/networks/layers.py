"""Layers that compute in the dtype of what they are given, whatever their parameters' dtype.

That rule replaces autocast: a body fed bfloat16 runs in bfloat16 with float32 master weights,
group norm included (its statistics stay float32), on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.native import gpu
from sfumato.native.conv import conv3, takes

# Fills a weight and a bias, given the weight's fan-in and fan-out.
Init = Callable[[Tensor, "Tensor | None", int, int], None]


def xavier(gain: float = 1.0) -> Init:
    """Uniform weights in +- gain sqrt(6 / (fan_in + fan_out)), zero bias (DDPM, DDPM++, NCSN++)."""

    def fill(weight: Tensor, bias: Tensor | None, fan_in: int, fan_out: int) -> None:
        bound = gain * (6 / (fan_in + fan_out)) ** 0.5
        weight.uniform_(-bound, bound)
        if bias is not None:
            bias.zero_()

    return fill


def kaiming(weight: Tensor, bias: Tensor | None, fan_in: int, fan_out: int) -> None:
    """Uniform weights and bias in +- sqrt(1 / fan_in) (ADM; torch's own default)."""
    del fan_out
    bound = fan_in**-0.5
    weight.uniform_(-bound, bound)
    if bias is not None:
        bias.uniform_(-bound, bound)


def normal(weight: Tensor, bias: Tensor | None, fan_in: int, fan_out: int) -> None:
    """Weights N(0, 1), zero bias: ADM's class embedding."""
    del fan_in, fan_out
    weight.normal_()
    if bias is not None:
        bias.zero_()


def zeros(weight: Tensor, bias: Tensor | None, fan_in: int, fan_out: int) -> None:
    """Zero weights and bias: a branch that starts silent."""
    del fan_in, fan_out
    weight.zero_()
    if bias is not None:
        bias.zero_()


class Linear(nn.Module):
    """An affine map of [B, inputs] to [B, outputs]."""

    def __init__(self, inputs: int, outputs: int, init: Init, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        with torch.no_grad():
            init(self.weight, self.bias, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Conv(nn.Module):
    """A convolution of odd kernel that keeps the size (or widens it by `extra` on every side)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, init: Init, *, stride: int = 1, extra: int = 0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.stride = stride
        self.padding = kernel // 2 + extra
        with torch.no_grad():
            init(self.weight, self.bias, inputs * kernel**2, outputs * kernel**2)

    def forward(
        self, x: Tensor, gain: float = 1.0, plus: Tensor | None = None, *, biased: bool = True
    ) -> Tensor:
        """Gain times the convolution of [B, inputs, H, W] (scaling weights, not images).

        `plus`, of the result's shape, is added before the gain. Not biased, it leaves the bias to
        whoever adds something to the result anyway: on a GPU that is a pass over memory less.
        """
        weight, bias = self.weight, self.bias
        if biased and self.stride == self.padding == 1 and takes(x, weight, bias):
            return conv3(x, weight, bias, gain, plus)
        if biased and plus is not None and gpu.takes(x):
            return gpu.join(Conv.forward(self, x, gain, biased=False), plus, bias, gain)
        if gain != 1:
            weight, bias = weight * gain, bias * gain
        h = self._convolved(x, weight, bias if biased else None)
        return h if plus is None else h.add(plus, alpha=gain)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else bias.to(x.dtype)
        if not gpu.takes(x):
            return F.conv2d(x, weight.to(x.dtype), bias, self.stride, self.padding)
        if weight.shape[2] == self.stride == 1 and self.padding == 0:
            # The product of matrices that it is.
            y = F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0].to(x.dtype), bias)
            return y.permute(0, 3, 1, 2)
        weight = weight.to(x.dtype, memory_format=torch.channels_last)
        return F.conv2d(x, weight, bias, self.stride, self.padding)

    def doubled(self, x: Tensor) -> Tensor:
        """The same of [B, inputs, H, W] with every pixel repeated to 2 x 2, for a 3x3 kernel.

        Taps that fall on one pixel are added first: 16 products for each pixel of x, not 36.
        """
        if takes(x, self.weight, self.bias):
            return conv3(x, self.weight, self.bias, doubled=True)
        kernel = self.weight.flip(2, 3)
        for dim in (2, 3):  # (a, b, c) to (a, a + b, b + c, c)
            a, b, c = kernel.split(1, dim)
            kernel = torch.cat([a, a + b, b + c, c], dim)
        kernel = kernel.transpose(0, 1).to(x.dtype)
        return F.conv_transpose2d(x, kernel, self.bias.to(x.dtype), stride=2, padding=1)


class StridedConv(Conv):
    """DDPM's halving: a 3x3 convolution of stride 2, one zero row and column at the far edges."""

    def __init__(self, channels: int, init: Init) -> None:
        super().__init__(channels, channels, 3, init, stride=2, extra=-1)

    def forward(
        self, x: Tensor, gain: float = 1.0, plus: Tensor | None = None, *, biased: bool = True
    ) -> Tensor:
        """[B, C, H, W] to [B, C, H/2, W/2]."""
        return super().forward(F.pad(x, (0, 1, 0, 1)), gain, plus, biased=biased)


def is_compiled_on_gpu(x: Tensor) -> bool:
    """Whether torch.compile is writing GPU kernels for what is done to x."""
    return x.is_cuda and torch.compiler.is_compiling()


def is_half_on_cpu(x: Tensor) -> bool:
    """Whether these are numbers of 16 bits on a CPU, for which torch's fast paths are fewer."""
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)


def layout_of(x: Tensor) -> torch.memory_format:
    """How an image batch lies in memory, by its strides (so that it can be asked within vmap)."""
    return torch.channels_last if x.stride(1) == 1 else torch.contiguous_format


class Resample(nn.Module):
    """Doubles or halves [B, C, H, W] with a separable filter of an even number of taps.

    Doubling inserts zeros and filters with gain 4, halving filters and keeps every second sample;
    outside of the image are zeros.
    """

    kernel: Tensor

    def __init__(self, taps: tuple[int, ...], *, up: bool, padded: bool = True) -> None:
        super().__init__()
        line = torch.tensor(taps, dtype=torch.float64, device="cpu") / sum(taps)
        kernel = torch.outer(line, line).float() * (4 if up else 1)
        self.register_buffer("kernel", kernel, persistent=False)
        self.up = up
        self.padding = len(taps) // 2 - 1 if padded else 0
        self.box = len(taps) == 2 and taps[0] == taps[1]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 2H, 2W] or [B, C, H/2, W/2]."""
        if self.box:
            if self.up:
                return repeated(x)
            return gpu.halved(x) if gpu.takes(x) and _is_even(x) else F.avg_pool2d(x, 2)
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        convolve = F.conv_transpose2d if self.up else F.conv2d
        return convolve(x, kernel, stride=2, padding=self.padding, groups=channels)

    def then(self, conv: Conv, x: Tensor) -> Tensor:
        """The convolution, 1x1 or 3x3, of the resampled x; with less work on a CPU."""
        if not (self.box and self.up and x.device.type == "cpu"):
            return conv(self(x))
        if conv.weight.shape[2] == 1:
            return self(conv(x))
        # Below 1024, adding the taps costs more than it saves; our kernel adds none.
        many = x.shape[0] * x.shape[2] * x.shape[3] >= 1024
        return conv.doubled(x) if many or takes(x, conv.weight, conv.bias) else conv(self(x))


class ResampledConv(nn.ModuleList):
    """A convolution of resampled images."""

    def __init__(self, resample: Resample, conv: Conv) -> None:
        super().__init__([resample, conv])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same at another size."""
        return cast(Resample, self[0]).then(cast(Conv, self[1]), x)


def repeated(x: Tensor) -> Tensor:
    """Every pixel of [B, C, H, W] as 2 x 2."""
    if is_compiled_on_gpu(x):
        return spread_out(x)
    if gpu.takes(x):
        return gpu.doubled(x)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _is_even(x: Tensor) -> bool:
    return x.shape[2] % 2 == x.shape[3] % 2 == 0


def spread_out(x: Tensor) -> Tensor:
    """`repeated` for torch.compile on a GPU, channels last.

    There the gradient of F.interpolate would add atomically, and come channels first.
    """
    last = x.permute(0, 2, 3, 1)
    batch, height, width, channels = last.shape
    wide = last[:, :, None, :, None].expand(batch, height, 2, width, 2, channels)
    return wide.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
