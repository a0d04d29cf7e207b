"""Group norm with all that follows it, and a residual block's end, in one pass each on a GPU.

By Triton, which PyTorch brings along for CUDA. On a GPU the layers between convolutions are bound
by memory: torch's group norm copies channels last to channels first and back.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.native.plain import gradients_by_torch, is_watched, needs_torch

_KINDS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tiles:
    """What a program works on: `channels` of an image, `pixels` at a time, by `warps`."""

    channels: int
    pixels: int
    warps: int


def tiles(pixels: int, depth: int) -> Tiles:
    """Return the tiles of images of so many pixels, in groups of `depth` channels.

    Measured on an H200: 128 bytes of a pixel, a whole line of memory; few pixels at a time where
    there are many, so that images wait in the cache for their second reading.
    """
    channels = max(64 // depth, 1) * depth
    return Tiles(channels, min(_power_of_two(pixels), 32 if pixels > 256 else 64), 4)


def takes(x: Tensor, *others: Tensor) -> bool:
    """Whether `norm_act` and `join` can be asked for x with the others, [C] or [B, C]."""
    return (
        x.is_cuda
        and x.dtype in _KINDS
        and all(type(t) in (Tensor, nn.Parameter) and t.is_cuda for t in (x, *others))
        and x.ndim == 4
        and x.numel() > 0
        and x.shape[2] * x.shape[3] > 1
        and x.shape[1:].numel() < 2**31
        and all(t.shape[-1] == x.shape[1] for t in others)
        and not is_watched()
        and x.is_contiguous(memory_format=torch.channels_last)
        and why_not() is None
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
    seed: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """dropout(act(norm(x + offset) scale + shift)) of [B, C, H, W], in dtype or x's, and x again.

    offset is [B, C]; scale and shift are [C] or [B, C]. Who uses x beside its norm takes it from
    here: both gradients are then added where the norm's is found. Dropout is in steps of 2^-16; its
    mask is a hash of the element's place and of the seed [1], int64, which stays on the device so
    that a replayed graph can draw it anew.
    """
    kept = round((1 - dropout) * 65536)
    size = x.shape[:2]
    offset = None if offset is None else offset.float().expand(size).contiguous()
    shape = scale.shape if scale.ndim == shift.ndim == 1 else size
    scale, shift = (t.float().expand(shape).contiguous() for t in (scale, shift))
    choices = _Choices(groups, eps, silu, kept, dtype or x.dtype)
    return cast(
        "tuple[Tensor, Tensor]",
        _NormAct.apply(x, offset, scale, shift, seed if kept < 65536 else None, choices),
    )


def join(h: Tensor, plus: Tensor, bias: Tensor, gain: float) -> Tensor:
    """h + gain (plus + bias) for h and plus [B, C, H, W] and bias [C], in h's dtype and layout."""
    plus = plus.to(h.dtype).contiguous(memory_format=torch.channels_last)
    return cast(Tensor, _Join.apply(h, plus, bias.float().contiguous(), gain))


def doubled(x: Tensor) -> Tensor:
    """Every pixel of [B, C, H, W] as 2 x 2, in x's dtype and layout."""
    return cast(Tensor, _Resampled.apply(x, True, 1.0))


def halved(x: Tensor) -> Tensor:
    """The means of every 2 x 2 pixels of [B, C, H, W], H and W even, in x's dtype and layout."""
    return cast(Tensor, _Resampled.apply(x, False, 0.25))


def in_words() -> str:
    """Which kernels there are, for a record of how something was computed."""
    return "none: " + why if (why := why_not()) else "norm, join, resample by Triton"


@cache
def why_not() -> str | None:
    """Why Triton's kernels are not used on this machine; None where they are."""
    if os.environ.get("SFUMATO_NATIVE") == "0":
        return "SFUMATO_NATIVE=0 leaves them out: unset it"
    try:
        x = torch.ones(1, 4, 2, 2, device="cuda").contiguous(memory_format=torch.channels_last)
        line = torch.ones(4, device="cuda")
        _norm_forward(x, None, line, line, None, _Choices(1, 1.0, False, 65536, x.dtype))
    except Exception as error:  # No Triton, no compiler, an old GPU: each in its own way.
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        warnings.warn(f"Sfumato's GPU kernels are left out: {why}", RuntimeWarning, stacklevel=2)
        return why
    return None


@dataclass(frozen=True)
class _Choices:
    groups: int
    eps: float
    silu: bool
    kept: int
    dtype: torch.dtype

    @property
    def gain(self) -> float:
        return 65536 / self.kept if self.kept else 0.0


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        offset: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        seed: Tensor | None,
        choices: _Choices,
    ) -> tuple[Tensor, Tensor]:
        y, moments = _norm_forward(x, offset, scale, shift, seed, choices)
        ctx.save_for_backward(x, offset, scale, shift, seed, moments)
        ctx.choices = choices
        ctx.set_materialize_grads(False)
        return y, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        dy, skip = grad_outputs
        if dy is None:
            return skip, None, None, None, None, None
        x, offset, scale, shift, seed, moments = ctx.saved_tensors
        choices: _Choices = ctx.choices
        if needs_torch(dy) or (skip is not None and needs_torch(skip)):
            if choices.kept < 65536:
                raise NotImplementedError(
                    "second derivatives of a network that drops out: call network.eval(), or build "
                    "it with dropout=0"
                )

            def again(x: Tensor, offset: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
                h = x.float() if offset is None else x.float() + offset[..., None, None]
                h = F.group_norm(h, choices.groups, eps=choices.eps) * scale[..., None, None]
                h = h + shift[..., None, None]
                return (F.silu(h) if choices.silu else h).to(choices.dtype)

            found = gradients_by_torch(again, (x, offset, scale, shift), dy)
            if skip is not None and found[0] is not None:
                found[0] = found[0] + skip
            return *found, None, None
        dx, sums, doffset = _norm_backward(
            x, offset, scale, shift, seed, moments, dy, skip, choices
        )
        dscale, dshift = (sums.sum(1) if scale.ndim == 1 else sums).unbind()
        return dx, doffset, dscale, dshift, None, None


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
        width, height = min(_power_of_two(channels), 128), 64
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
        pixels, lanes, rows = small.numel() // channels, min(_power_of_two(channels), 128), 16
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


def _norm_forward(
    x: Tensor,
    offset: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    seed: Tensor | None,
    choices: _Choices,
) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = x.shape
    y = torch.empty_like(x, dtype=choices.dtype)
    moments = torch.empty(3, batch, channels, dtype=torch.float32, device=x.device)
    depth = channels // choices.groups
    grid, options = _launch(tiles(height * width, depth), batch, channels, height * width)
    with torch.cuda.device(x.device):
        _kernels().norm_forward[grid](
            *(x, offset, scale, shift, seed, y, moments),
            *(height * width, channels),
            channels if scale.ndim == 2 else 0,
            *(choices.kept, choices.gain, choices.eps),
            D=depth,
            SILU=choices.silu,
            DROP=seed is not None,
            OFFSET=offset is not None,
            **options,
        )
    return y, moments


def _norm_backward(
    x: Tensor,
    offset: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    seed: Tensor | None,
    moments: Tensor,
    dy: Tensor,
    skip: Tensor | None,
    choices: _Choices,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, of scale and shift [2, B, C], and of the offset."""
    batch, channels, height, width = x.shape
    # Hooks may give back in another layout what was saved.
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    if skip is not None:
        skip = skip.contiguous(memory_format=torch.channels_last)
    dx = torch.empty_like(x)
    sums = torch.empty(2, batch, channels, dtype=torch.float32, device=x.device)
    doffset = None if offset is None else torch.empty_like(offset)
    depth = channels // choices.groups
    grid, options = _launch(tiles(height * width, depth), batch, channels, height * width)
    with torch.cuda.device(x.device):
        _kernels().norm_backward[grid](
            *(x, offset, scale, shift, seed, moments, dy, skip, dx, *sums.unbind(), doffset),
            *(height * width, channels),
            channels if scale.ndim == 2 else 0,
            *(choices.kept, choices.gain),
            D=depth,
            SILU=choices.silu,
            DROP=seed is not None,
            OFFSET=offset is not None,
            SKIP=skip is not None,
            **options,
        )
    return dx, sums, doffset


def _launch(
    chosen: Tiles, batch: int, channels: int, pixels: int
) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid of programs, and how each is compiled."""
    grid = (-(-channels // chosen.channels), batch)
    options = {
        "KB": chosen.channels,
        "CB": _power_of_two(chosen.channels),
        "BP": chosen.pixels,
        "ONCE": pixels <= chosen.pixels,
        "num_warps": chosen.warps,
    }
    return grid, options


def _power_of_two(n: int) -> int:
    """The least one that is not below n."""
    return 1 << (n - 1).bit_length()


def _kernels() -> ModuleType:
    from sfumato.native import gpu_kernels

    return gpu_kernels
