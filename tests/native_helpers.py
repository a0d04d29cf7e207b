"""Images and errors of the tests of the compiled kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.native.library import library, unavailable

needed = pytest.mark.skipif(library("norm") is None, reason=unavailable("norm"))


multiplied = pytest.mark.skipif(library("conv") is None, reason=unavailable("conv"))


# What rounding the result leaves: half a unit of the last place, about a third of it on average.
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 2.5e-3}


def images(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(shape, generator=generator) + 3
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def lines(*shape: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


def error(found: Tensor, true: Tensor) -> float:
    return float((found.detach().double() - true.detach()).norm() / true.detach().norm())


def second(layer, x: Tensor, others: list[Tensor]) -> list[Tensor]:
    """Derivatives of a function of the gradient of a function of the layer."""
    inputs = [x, *others]
    y = layer(*inputs)
    first = torch.autograd.grad((y.float().sin()).sum(), inputs, create_graph=True)
    total = torch.stack([g.float().square().sum() for g in first]).sum()
    return list(torch.autograd.grad(total, inputs))
