"""3x3 convolutions of bfloat16 images as one step of autograd, by the compiled kernels."""

from __future__ import annotations

from ctypes import CDLL
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.native.library import library, threads
from sfumato.native.plain import (
    channels_last,
    gradients_by_torch,
    is_plain,
    is_plain_image_batch,
    needs_torch,
    numbers,
)


def takes(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether `conv3` can be asked for x, a weight [K, C, 3, 3] and a bias [K]."""
    return (
        x.dtype == torch.bfloat16
        and weight.dtype == bias.dtype == torch.float32
        and weight.shape[1:] == (*x.shape[1:2], 3, 3)
        and weight.shape[0] % 16 == 0
        and bias.shape == weight.shape[:1]
        and is_plain(weight, bias)
        and is_plain_image_batch(x)
        and library("conv") is not None
    )


PLAIN, DOUBLED, HALVED = range(3)


def conv3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: float = 1.0,
    plus: Tensor | None = None,
    *,
    doubled: bool = False,
) -> Tensor:
    """Gain times the sum of a convolution of bfloat16 [B, C, H, W] and of `plus`, if given.

    Weight [K, C, 3, 3] and bias [K] are float32, as are their gradients. `doubled` repeats every
    pixel of x to 2 x 2 before: 9 products for 4 pixels in place of 16. Second derivatives go
    through torch's layers.
    """
    if plus is not None:
        height, width = (2 * n if doubled else n for n in x.shape[2:])
        plus = plus.to(x.dtype).expand(len(x), len(weight), height, width)
        plus = plus.contiguous(memory_format=torch.channels_last)
    return cast(
        Tensor, _Conv3.apply(x, weight.contiguous(), bias.contiguous(), gain, plus, doubled)
    )


class _Conv3(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gain: float,
        plus: Tensor | None,
        doubled: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, plus)
        ctx.gain, ctx.doubled = gain, doubled
        return _convolved(x, weight, gain, bias * gain, plus, DOUBLED if doubled else PLAIN)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight, bias, plus = ctx.saved_tensors
        if needs_torch(grad_outputs[0]):

            def again(x: Tensor, weight: Tensor, bias: Tensor, plus: Tensor | None) -> Tensor:
                h = F.interpolate(x, scale_factor=2.0) if ctx.doubled else x
                h = F.conv2d(h, weight.to(x.dtype), bias.to(x.dtype), padding=1)
                return (h if plus is None else h + plus) * ctx.gain

            made = gradients_by_torch(again, (x, weight, bias, plus), grad_outputs[0])
            return *made[:3], None, made[3], None
        weight = weight.contiguous()
        x, dy = channels_last(x.dtype, x, grad_outputs[0])
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            flipped, zeros = weight.transpose(0, 1), numbers(weight.shape[1]).zero_()
            kind = HALVED if ctx.doubled else PLAIN
            dx = _convolved(dy, flipped, ctx.gain, zeros, None, kind, reverse=True)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dweight, dbias = numbers(*weight.shape), numbers(len(weight))
            batch, outputs, height, width = dy.shape
            sizes = (batch, height, width, x.shape[1], outputs)
            failed = _kernels().conv_gradient(
                *(t.data_ptr() for t in (x, dy, dweight, dbias)),
                *(*sizes, DOUBLED if ctx.doubled else PLAIN, threads()),
            )
            _check(failed, x)
            dweight, dbias = dweight.mul_(ctx.gain), dbias.mul_(ctx.gain)
        dplus = dy * ctx.gain if ctx.needs_input_grad[4] else None
        return dx, dweight, dbias, None, dplus, None


def _convolved(
    x: Tensor,
    weight: Tensor,
    gain: float,
    bias: Tensor,
    plus: Tensor | None,
    kind: int,
    *,
    reverse: bool = False,
) -> Tensor:
    """The convolution with weight [K, C, 3, 3] of any strides between the filters."""
    outputs, inputs = weight.shape[:2]
    batch, _, height, width = x.shape
    if kind == DOUBLED:
        height, width = 2 * height, 2 * width
    size = (height // 2, width // 2) if kind == HALVED else (height, width)
    ready = x.new_empty(16 * inputs * outputs)
    y = x.new_empty((batch, *size, outputs)).permute(0, 3, 1, 2)
    strides = weight.stride()[:2]
    _kernels().conv_weights(
        weight.data_ptr(), *strides, reverse, gain, inputs, outputs, ready.data_ptr(), threads()
    )
    failed = _kernels().conv_bfloat16(
        *(x.data_ptr(), ready.data_ptr(), bias.data_ptr()),
        None if plus is None else plus.data_ptr(),
        gain,
        *(y.data_ptr(), batch, height, width, inputs, outputs, kind, threads()),
    )
    _check(failed, x)
    return y


def _check(failed: int, x: Tensor) -> None:
    if failed:
        raise MemoryError(f"no memory for a convolution of images {tuple(x.shape)}")


def _kernels() -> CDLL:
    return cast(CDLL, library("conv"))
