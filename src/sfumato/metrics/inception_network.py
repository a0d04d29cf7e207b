"""The architecture of the Inception-v3 that the Fréchet Inception Distance is defined by.

Szegedy et al. 2015 (arXiv:1512.00567), in the variant of the file `inception-2015-12-05` (Heusel et
al. 2017): averages that leave the padding out, a maximum instead of an average in the last block,
1008 outputs. Layers are named as in the usual torch port, so its state dicts fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Layer(NamedTuple):
    """A convolution of a block: 'same' padding at stride 1, none at stride 2."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Steps = tuple[Layer | tuple[Layer, Layer], ...]
"""Layers in order; a pair forks, and its outputs are concatenated."""


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H', W']."""
        return F.relu(self.bn(self.conv(x)))

    def fuse(self) -> None:
        """Fold the batch norm into the convolution, for inference only."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv.eval(), self.bn.eval())
            self.bn = nn.Identity()


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


class Mixed(nn.Module):
    """Parallel paths over one input, then a pooled one, concatenated by channel in this order."""

    def __init__(
        self,
        inputs: int,
        paths: Sequence[Steps],
        pool: Callable[[Tensor], Tensor],
        pool_width: int | None = None,
    ) -> None:
        super().__init__()
        self._paths = tuple(paths)
        self._pool = pool
        self.width = inputs if pool_width is None else pool_width
        for path in self._paths:
            width = inputs
            for step in path:
                fork = (step,) if isinstance(step, Layer) else step
                for layer in fork:
                    self._add(width, layer)
                width = sum(layer.width for layer in fork)
            self.width += width
        self._has_pool_layer = pool_width is not None
        if pool_width is not None:
            self._add(inputs, Layer("branch_pool", pool_width))

    def _add(self, inputs: int, layer: Layer) -> None:
        rows, columns = layer.kernel
        padding = (rows // 2, columns // 2) if layer.stride == 1 else (0, 0)
        made = ConvNorm(inputs, layer.width, layer.kernel, layer.stride, padding)
        self.add_module(layer.name, made)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, width, H', W']."""
        outputs: list[Tensor] = []
        for path in self._paths:
            y = x
            for step in path:
                fork = (step,) if isinstance(step, Layer) else step
                parts = [self.get_submodule(layer.name)(y) for layer in fork]
                y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            outputs.append(y)
        pooled = self._pool(x)
        if self._has_pool_layer:
            pooled = self.get_submodule("branch_pool")(pooled)
        return torch.cat([*outputs, pooled], 1)


def _block_a(inputs: int, pool_width: int) -> Mixed:
    one = (Layer("branch1x1", 64),)
    five = (Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5)))
    three = (
        Layer("branch3x3dbl_1", 64),
        Layer("branch3x3dbl_2", 96, (3, 3)),
        Layer("branch3x3dbl_3", 96, (3, 3)),
    )
    return Mixed(inputs, (one, five, three), _average, pool_width)


def _block_b(inputs: int) -> Mixed:
    one = (Layer("branch3x3", 384, (3, 3), 2),)
    two = (
        Layer("branch3x3dbl_1", 64),
        Layer("branch3x3dbl_2", 96, (3, 3)),
        Layer("branch3x3dbl_3", 96, (3, 3), 2),
    )
    return Mixed(inputs, (one, two), _halve)


def _block_c(inputs: int, width: int) -> Mixed:
    one = (Layer("branch1x1", 192),)
    seven = (
        Layer("branch7x7_1", width),
        Layer("branch7x7_2", width, (1, 7)),
        Layer("branch7x7_3", 192, (7, 1)),
    )
    twice = (
        Layer("branch7x7dbl_1", width),
        Layer("branch7x7dbl_2", width, (7, 1)),
        Layer("branch7x7dbl_3", width, (1, 7)),
        Layer("branch7x7dbl_4", width, (7, 1)),
        Layer("branch7x7dbl_5", 192, (1, 7)),
    )
    return Mixed(inputs, (one, seven, twice), _average, 192)


def _block_d(inputs: int) -> Mixed:
    one = (Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), 2))
    two = (
        Layer("branch7x7x3_1", 192),
        Layer("branch7x7x3_2", 192, (1, 7)),
        Layer("branch7x7x3_3", 192, (7, 1)),
        Layer("branch7x7x3_4", 192, (3, 3), 2),
    )
    return Mixed(inputs, (one, two), _halve)


def _block_e(inputs: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    def fork(name: str) -> tuple[Layer, Layer]:
        return Layer(f"{name}a", 384, (1, 3)), Layer(f"{name}b", 384, (3, 1))

    one = (Layer("branch1x1", 320),)
    three = (Layer("branch3x3_1", 384), fork("branch3x3_2"))
    twice = (
        Layer("branch3x3dbl_1", 448),
        Layer("branch3x3dbl_2", 384, (3, 3)),
        fork("branch3x3dbl_3"),
    )
    return Mixed(inputs, (one, three, twice), pool, 192)


class InceptionV3(nn.Module):
    """The network: RGB [B, 3, 299, 299] in about [-1, 1] to 2048 features and 1008 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3))
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(self.Mixed_5b.width, 64)
        self.Mixed_5d = _block_a(self.Mixed_5c.width, 64)
        self.Mixed_6a = _block_b(self.Mixed_5d.width)
        self.Mixed_6b = _block_c(self.Mixed_6a.width, 128)
        self.Mixed_6c = _block_c(self.Mixed_6b.width, 160)
        self.Mixed_6d = _block_c(self.Mixed_6c.width, 160)
        self.Mixed_6e = _block_c(self.Mixed_6d.width, 192)
        self.Mixed_7a = _block_d(self.Mixed_6e.width)
        self.Mixed_7b = _block_e(self.Mixed_7a.width, _average)
        # Elsewhere an average; the file that defines FID has a maximum here.
        self.Mixed_7c = _block_e(self.Mixed_7b.width, _maximum)
        self.fc = nn.Linear(self.Mixed_7c.width, 1008)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 2048] after average pooling, and logits [B, 1008] without the bias."""
        x = _halve(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = _halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        pooled = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        return pooled, F.linear(pooled, self.fc.weight)
