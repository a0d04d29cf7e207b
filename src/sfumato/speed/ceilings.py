"""What a machine can do at best: matrix products, convolutions, copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Work:
    """A call to be timed, and how much it does: FLOP, or bytes read and written."""

    call: Callable[[], object]
    amount: float
    unit: Literal["FLOP", "B"]


def matrix_product(size: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Work:
    """A [size, size] matrix times another: 2 size^3 FLOP."""
    a, b = (_filled((size, size), dtype, device, seed) for seed in (0, 1))
    out = torch.empty_like(a)
    return Work(lambda: torch.mm(a, b, out=out), 2.0 * size**3, "FLOP")


def convolution(
    batch: int,
    channels: int,
    size: int,
    dtype: torch.dtype,
    *,
    channels_last: bool,
    device: torch.device | str = "cpu",
) -> Work:
    """A 3x3 convolution of [batch, channels, size, size] to the same shape, without gradient.

    2 * 9 * batch * size^2 * channels^2 FLOP.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = _filled((batch, channels, size, size), dtype, device, 0).to(memory_format=layout)
    w = _filled((channels, channels, 3, 3), dtype, device, 1).to(memory_format=layout)
    amount = 18.0 * batch * size**2 * channels**2
    return Work(lambda: F.conv2d(x, w, padding=1), amount, "FLOP")


def copying(count: int, device: torch.device | str = "cpu") -> Work:
    """One float32 array of `count` bytes copied to another: so many bytes read and written."""
    source = torch.ones(count // 4, device=device)
    target = torch.empty_like(source)
    return Work(lambda: target.copy_(source), 2.0 * 4 * (count // 4), "B")


def ceilings(
    device: torch.device | str = "cpu",
    *,
    batch: int = 32,
    channels: int = 128,
    size: int = 32,
    side: int = 0,
    copied: int = 0,
) -> dict[str, Work]:
    """What is to be timed for a machine's ceilings, by names such as "conv bfloat16 NHWC".

    batch, channels and size are those of the convolutions, NHWC is torch's channels_last; side is
    that of the matrices and copied the bytes of an array, 0 for what fills such a device.
    """
    cuda = torch.device(device).type == "cuda"
    side = side or (8192 if cuda else 1536)
    copied = copied or (2**30 if cuda else 2**26)
    works: dict[str, Work] = {}
    for dtype in (torch.float32, torch.bfloat16):
        word = str(dtype).removeprefix("torch.")
        works[f"gemm {word}"] = matrix_product(side, dtype, device)
        for layout, last in (("NCHW", False), ("NHWC", True)):
            works[f"conv {word} {layout}"] = convolution(
                batch, channels, size, dtype, channels_last=last, device=device
            )
    works["copy"] = copying(copied, device)
    return works


def _filled(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str, seed: int
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)
