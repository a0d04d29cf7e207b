"""Group norm, SiLU and dropout as one step of autograd, by the compiled kernels."""

from __future__ import annotations

from ctypes import CDLL
from typing import Any, cast

import torch
from torch import Tensor

from sfumato.native.library import library, threads
from sfumato.native.plain import (
    channels_last,
    is_plain,
    is_plain_image_batch,
    needs_torch,
    norm_gradients_by_torch,
    numbers,
)


def takes(x: Tensor, *others: Tensor) -> bool:
    """Whether `norm_act` can be asked for x with what is made of the others, [C] or [B, C]."""
    return (
        x.dtype in (torch.bfloat16, torch.float32)
        and is_plain_image_batch(x)
        and is_plain(*others)
        and all(t.shape[-1] == x.shape[1] for t in others)
        and library("norm") is not None
    )


def norm_act(
    x: Tensor,
    offset: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """dropout(act(norm(x + offset) scale + shift)) of [B, C, H, W], in x's dtype and layout.

    offset is float32 [B, C]; scale and shift are float32, [C] or [B, C]. Dropout is in steps of
    2^-16; its mask is a hash of the element's place and of the seed, from 0 to 2^63 - 1, and is
    computed again for the gradient. Second derivatives go through torch's layers.
    """
    kept = round((1 - dropout) * 65536)
    size = x.shape[:2]
    offset = None if offset is None else offset.expand(size).contiguous()
    scale, shift = (
        (t if scale.ndim == shift.ndim == 1 else t.expand(size)).contiguous()
        for t in (scale, shift)
    )
    return cast(Tensor, _NormAct.apply(x, offset, scale, shift, (groups, eps, silu, kept, seed)))


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        offset: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        choices: tuple[int, float, bool, int, int],
    ) -> Tensor:
        groups, eps, silu, kept, seed = choices
        y, moments = torch.empty_like(x), numbers(len(x), 2, groups)
        batch, channels, height, width = x.shape
        _asked("norm_forward", x)(
            x.data_ptr(),
            None if offset is None else offset.data_ptr(),
            scale.data_ptr(),
            shift.data_ptr(),
            channels if scale.ndim == 2 else 0,
            y.data_ptr(),
            moments.data_ptr(),
            *(batch, height * width, channels, groups),
            eps,
            *(silu, kept, seed, threads()),
        )
        ctx.save_for_backward(x, offset, scale, shift, moments)
        ctx.choices = choices
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, offset, scale, shift, moments = ctx.saved_tensors
        groups, eps, silu, kept, seed = ctx.choices
        if needs_torch(grad_outputs[0]):
            found = norm_gradients_by_torch(
                (x, offset, scale, shift),
                grad_outputs[0],
                groups=groups,
                eps=eps,
                silu=silu,
                drops=kept < 65536,
                dtype=x.dtype,
            )
            return *found, None
        batch, channels, height, width = x.shape
        offset = None if offset is None else offset.contiguous()
        scale, shift, moments = (t.contiguous() for t in (scale, shift, moments))
        x, dy = channels_last(x.dtype, x, grad_outputs[0])
        dx = torch.empty_like(x)
        dscale, dshift, doffset = numbers(3, batch, channels).unbind()
        _asked("norm_backward", x)(
            x.data_ptr(),
            None if offset is None else offset.data_ptr(),
            scale.data_ptr(),
            shift.data_ptr(),
            channels if scale.ndim == 2 else 0,
            dy.data_ptr(),
            moments.data_ptr(),
            *(t.data_ptr() for t in (dx, dscale, dshift, doffset)),
            *(batch, height * width, channels, groups),
            *(silu, kept, seed, threads()),
        )
        if scale.ndim == 1:
            dscale, dshift = dscale.sum(0), dshift.sum(0)
        return dx, None if offset is None else doffset, dscale, dshift, None


def _asked(name: str, x: Tensor) -> Any:
    """The kernel for x's dtype; it raises MemoryError where it says that memory ran out."""
    kernels = cast(CDLL, library("norm"))
    kernel = getattr(kernels, f"{name}_{'float32' if x.dtype == torch.float32 else 'bfloat16'}")

    def call(*arguments: object) -> None:
        if kernel(*arguments) != 0:
            raise MemoryError(f"no memory for {name} of images {tuple(x.shape)}")

    return call
