"""Group norm with all that precedes and follows it, in one pass over a GPU's memory.

torch's group norm copies images whose channels come last to channels first, and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from sfumato.native.gpu import power_of_two
from sfumato.native.plain import needs_torch, norm_gradients_by_torch


@dataclass(frozen=True)
class Tiles:
    """What a program works on: `channels` of an image, `pixels` at a time, by `warps`."""

    channels: int
    pixels: int
    warps: int


def tiles(pixels: int, depth: int) -> Tiles:
    """Return the tiles of images of so many pixels, in groups of `depth` channels.

    Measured on an H200 in bfloat16: 64 channels, a line of memory, where groups are no deeper; few
    pixels at a time where there are many: images then wait in the cache for their second reading.
    """
    channels = max(64 // depth, 1) * depth
    return Tiles(channels, min(power_of_two(pixels), 32 if pixels > 256 else 64), 4)


def suits(x: Tensor, groups: int) -> bool:
    """Whether the kernels are quick for images [B, C, H, W].

    Each program walks all pixels of its channels: of few large images there are too few of them.
    """
    large = x.shape[2] * x.shape[3] > 1024
    return x.shape[1] // groups <= 128 and not (large and x.shape[0] * x.shape[1] < 16384)


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
    that a replayed graph can draw it anew. Raises ValueError for dropout without one.
    """
    kept = round((1 - dropout) * 65536)
    if kept < 65536 and seed is None:
        raise ValueError("dropout needs a seed: an int64 tensor [1] on the images' device")
    size = x.shape[:2]
    offset = None if offset is None else offset.float().expand(size).contiguous()
    shape = scale.shape if scale.ndim == shift.ndim == 1 else size
    scale, shift = (t.float().expand(shape).contiguous() for t in (scale, shift))
    choices = _Choices(groups, eps, silu, kept, dtype or x.dtype)
    return cast(
        "tuple[Tensor, Tensor]",
        _NormAct.apply(x, offset, scale, shift, seed if kept < 65536 else None, choices),
    )


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
            found = norm_gradients_by_torch(
                (x, offset, scale, shift),
                dy,
                groups=choices.groups,
                eps=choices.eps,
                silu=choices.silu,
                drops=choices.kept < 65536,
                dtype=choices.dtype,
            )
            if skip is not None and found[0] is not None:
                found[0] = found[0] + skip
            return *found, None, None
        dx, sums, doffset = _norm_backward(
            x, offset, scale, shift, seed, moments, dy, skip, choices
        )
        dscale, dshift = (sums.sum(1) if scale.ndim == 1 else sums).unbind()
        return dx, doffset, dscale, dshift, None, None


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
    grid, options = _launch(x, offset, seed, choices)
    with torch.cuda.device(x.device):
        _kernels().norm_forward[grid](
            *(x, offset, scale, shift, seed, y, moments),
            *(height * width, channels),
            channels if scale.ndim == 2 else 0,
            *(choices.kept, choices.gain, choices.eps),
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
    grid, options = _launch(x, offset, seed, choices)
    with torch.cuda.device(x.device):
        _kernels().norm_backward[grid](
            *(x, offset, scale, shift, seed, moments, dy, skip, dx, *sums.unbind(), doffset),
            *(height * width, channels),
            channels if scale.ndim == 2 else 0,
            *(choices.kept, choices.gain),
            SKIP=skip is not None,
            **options,
        )
    return dx, sums, doffset


def _launch(
    x: Tensor, offset: Tensor | None, seed: Tensor | None, choices: _Choices
) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid of programs, and how each is compiled."""
    batch, channels, height, width = x.shape
    depth = channels // choices.groups
    chosen = tiles(height * width, depth)
    options = {
        "D": depth,
        "KB": chosen.channels,
        "CB": power_of_two(chosen.channels),
        "BP": chosen.pixels,
        "ONCE": height * width <= chosen.pixels,
        "SILU": choices.silu,
        "DROP": seed is not None,
        "OFFSET": offset is not None,
        "num_warps": chosen.warps,
    }
    return (-(-channels // chosen.channels), batch), options


def _kernels() -> ModuleType:
    from sfumato.native import gpu_norm_kernels

    return gpu_norm_kernels
