"""Floating-point operations of a network: a multiplication and an addition count as two."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(network: nn.Module, shape: Sequence[int], channels: int = 0) -> int:
    """Return the operations of one image's way through `network(x [B, C, H, W], noise [B])`.

    Counted from shapes, on no device: convolutions, matrix products and attention, as
    torch.utils.flop_counter does; the rest is memory traffic and counts nothing. `channels` are
    those of an image to start from, given as `image`.
    """
    return _count(network, shape, channels, backward=False)


def training_flops(network: nn.Module, shape: Sequence[int], channels: int = 0) -> int:
    """Return those of forward and backward together: three times the forward, less the gradient
    of the image itself, which nobody needs.
    """
    return _count(network, shape, channels, backward=True)


def _count(network: nn.Module, shape: Sequence[int], channels: int, *, backward: bool) -> int:
    body = copy.deepcopy(network).to("meta").float().train(backward)
    x = torch.empty(1, *shape, device="meta")
    told: dict[str, torch.Tensor] = {}
    if channels:
        told["image"] = torch.empty(1, channels, *shape[1:], device="meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        out = body(x, torch.empty(1, device="meta"), **told)
        if backward:
            out.sum().backward()
    return counter.get_total_flops()
