"""What lies between convolutions in one pass over a GPU's memory: a block's end, resampling.

By Triton, which PyTorch brings along for CUDA. On a GPU these layers are bound by memory, and each
of torch's is a pass of its own. The norms are in `gpu_norm`.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import first_line
from sfumato.native.plain import is_watched, needs_torch

_KINDS = (torch.float32, torch.bfloat16, torch.float16)


def takes(x: Tensor, *others: Tensor) -> bool:
    """Whether kernels can be asked for x, channels last, with the others, [C] or [B, C]."""
    return (
        x.is_cuda
        and x.dtype in _KINDS
        and all(type(t) in (Tensor, nn.Parameter) and t.device == x.device for t in (x, *others))
        and x.ndim == 4
        and 0 < len(x) < 65536
        and x.numel() > 0
        and x.shape[2] * x.shape[3] > 1
        and x.shape[1:].numel() < 2**31
        and all(t.shape[-1] == x.shape[1] for t in others)
        and not is_watched()
        and x.is_contiguous(memory_format=torch.channels_last)
        and not why_not(x.device)
    )


def join(h: Tensor, plus: Tensor, bias: Tensor, gain: float) -> Tensor:
    """h + gain (plus + bias) for h and plus [B, C, H, W] and bias [C], in h's dtype and layout."""
    h, plus = (t.to(h.dtype).contiguous(memory_format=torch.channels_last) for t in (h, plus))
    return cast(Tensor, _Join.apply(h, plus, bias.float().contiguous(), gain))


def doubled(x: Tensor) -> Tensor:
    """Every pixel of [B, C, H, W] as 2 x 2, in x's dtype and layout."""
    return cast(Tensor, _Resampled.apply(x, True, 1.0))


def halved(x: Tensor) -> Tensor:
    """The means of every 2 x 2 pixels of [B, C, H, W], H and W even, in x's dtype and layout."""
    return cast(Tensor, _Resampled.apply(x, False, 0.25))


def in_words(device: torch.device | str) -> str:
    """Which kernels there are, for a record of how something was computed."""
    why = why_not(device)
    return f"none: {why}" if why else "norm, join, resample by Triton"


@cache
def why_not(device: torch.device | str) -> str:
    """Why Triton's kernels are not used on a GPU, as a sentence; "" where they are."""
    if os.environ.get("SFUMATO_NATIVE") == "0":
        return "SFUMATO_NATIVE=0 leaves them out: unset it"
    if torch.version.hip:
        return "they are written for NVIDIA's GPUs"
    try:
        x = torch.ones(1, 4, 2, 2, device=device).contiguous(memory_format=torch.channels_last)
        doubled(x)
    except ModuleNotFoundError:
        return "there is no triton: it comes with PyTorch for CUDA on Linux"
    except Exception as error:  # No compiler, an old GPU: each in its own way.
        why = first_line(error)
        warnings.warn(f"Sfumato's GPU kernels are left out: {why}", RuntimeWarning, stacklevel=2)
        return why
    return ""


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, plus: Tensor, bias: Tensor, gain: float) -> Tensor:
        ctx.gain = gain
        out, block = torch.empty_like(h), 4096
        with torch.cuda.device(h.device):
            _kernels().join_forward[(-(-h.numel() // block),)](
                h, plus, bias, out, h.numel(), h.shape[1], gain, BLOCK=block, num_warps=8
            )
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (dout,) = grad_outputs
        gain: float = ctx.gain
        if needs_torch(dout):
            return dout, dout * gain, dout.float().sum((0, 2, 3)) * gain, None
        dout = dout.contiguous(memory_format=torch.channels_last)
        channels = dout.shape[1]
        rows = dout.numel() // channels
        width, height = min(power_of_two(channels), 128), 64
        strip = max(-(-rows // 2048), height)
        count = -(-rows // strip)
        dplus = torch.empty_like(dout)
        sums = torch.empty(count, channels, dtype=torch.float32, device=dout.device)
        with torch.cuda.device(dout.device):
            _kernels().join_backward[(count, -(-channels // width))](
                dout, dplus, sums, rows, channels, gain, strip, CB=width, BP=height, num_warps=8
            )
        return dout, dplus, sums.sum(0) * gain, None


class _Resampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: bool, gain: float) -> Tensor:
        ctx.up, ctx.gain = up, gain
        batch, channels, height, width = x.shape
        size = (2 * height, 2 * width) if up else (height // 2, width // 2)
        y = torch.empty(
            (batch, channels, *size),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        small = x if up else y
        pixels, lanes, rows = small.numel() // channels, min(power_of_two(channels), 128), 16
        kernel = _kernels().doubled if up else _kernels().halved
        with torch.cuda.device(x.device):
            kernel[(-(-pixels // rows), -(-channels // lanes))](
                x, y, pixels, small.shape[3], channels, gain, CB=lanes, BP=rows, num_warps=4
            )
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (dy,) = grad_outputs
        if needs_torch(dy):
            if ctx.up:
                return F.avg_pool2d(dy, 2) * (4 * ctx.gain), None, None
            return F.interpolate(dy, scale_factor=2.0, mode="nearest") * ctx.gain, None, None
        dy = dy.contiguous(memory_format=torch.channels_last)
        return _Resampled.apply(dy, not ctx.up, ctx.gain), None, None


def power_of_two(n: int) -> int:
    """The least one that is not below n."""
    return 1 << (n - 1).bit_length()


def _kernels() -> ModuleType:
    from sfumato.native import gpu_kernels

    return gpu_kernels
