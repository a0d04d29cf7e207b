"""Group norm and what follows it everywhere: an affine map, SiLU, dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.native import gpu, gpu_norm
from sfumato.native.norm import norm_act, takes
from sfumato.networks.layers import is_compiled_on_gpu, is_half_on_cpu, layout_of


class GroupNorm(nn.Module):
    """Group norm with up to 32 groups of at least 4 channels, affine."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.groups = largest_divisor(channels, min(32, channels // 4))
        self.eps = eps

    def forward(
        self,
        x: Tensor,
        *,
        offset: Tensor | None = None,
        factor: Tensor | None = None,
        shift: Tensor | None = None,
        silu: bool = False,
        p: float = 0.0,
        dtype: torch.dtype | None = None,
        forked: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised [B, C, H, W] in the same layout, in x's dtype or the given, wider one.

        offset [B, C] is added before; factor and shift [B, C] act after the layer's own. Then comes
        SiLU where asked for, and dropout with probability p. Forked, it also returns x, for whoever
        uses it beside: a kernel then adds both gradients at once.
        """
        others = (self.weight, self.bias, *(t for t in (offset, factor, shift) if t is not None))
        quick = gpu.takes(x, *others) and gpu_norm.suits(x, self.groups)
        wide = x if quick or dtype is None else x.to(dtype)
        if quick:
            h, x = gpu_norm.norm_act(
                x,
                offset,
                *self._affine(factor, shift),
                groups=self.groups,
                eps=self.eps,
                silu=silu,
                dropout=p,
                seed=torch.randint(2**62, (1,), device=x.device) if p > 0 else None,
                dtype=dtype,
            )
        elif takes(wide, *others):
            h = norm_act(
                wide,
                None if offset is None else offset.float(),
                *self._affine(factor, shift),
                groups=self.groups,
                eps=self.eps,
                silu=silu,
                dropout=p,
                seed=int(torch.randint(2**63 - 1, (), device="cpu")) if p > 0 else 0,
            )
        else:
            h = self._by_layers(wide, offset, factor, shift, silu, p)
        return (h, x) if forked else h

    def _affine(self, factor: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """The layer's own scale and shift, and what comes after them, as one; float32."""
        scale, bias = self.weight.float(), self.bias.float()
        if factor is not None:
            scale, bias = scale * factor.float(), bias * factor.float()
        if shift is not None:
            bias = bias + shift.float()
        return scale, bias

    def _by_layers(
        self,
        x: Tensor,
        offset: Tensor | None,
        factor: Tensor | None,
        shift: Tensor | None,
        silu: bool,
        p: float,
    ) -> Tensor:
        if offset is not None:
            x = x + _over_pixels(offset, x)
        h = self._normalised(x)
        if factor is not None:
            h = h * _over_pixels(factor, x)
        if shift is not None:
            h = h + _over_pixels(shift, x)
        return dropout(F.silu(h) if silu else h, p)

    def _normalised(self, x: Tensor) -> Tensor:
        if is_compiled_on_gpu(x):
            return group_norm(x, self.groups, self.weight, self.bias, self.eps)
        if is_half_on_cpu(x) and layout_of(x) == torch.channels_last:
            # torch's kernels for this layout: the one for 16 bits is quick on large maps alone, and
            # its gradient nowhere; two conversions cost less.
            small = x.shape[2] * x.shape[3] < 1024
            if small or (torch.is_grad_enabled() and x.requires_grad):
                weight, bias = self.weight.float(), self.bias.float()
                return F.group_norm(x.float(), self.groups, weight, bias, self.eps).to(x.dtype)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.groups, weight, bias, self.eps)


def _over_pixels(values: Tensor, x: Tensor) -> Tensor:
    """[B, C] as [B, C, 1, 1] in x's dtype."""
    return values.to(x.dtype)[:, :, None, None]


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`F.group_norm` of [B, C, H, W], spelled out for torch.compile.

    On a GPU torch's own copies its input to channels first, and every convolution after it follows.
    Moments are taken channel by channel, along the memory of channels last, and then joined.
    """
    batch, channels = x.shape[:2]
    wide = x if x.dtype == torch.float64 else x.float()
    var, mean = torch.var_mean(wide, dim=(2, 3), correction=0)
    var, mean = var.reshape(batch, groups, -1), mean.reshape(batch, groups, -1)
    centre = mean.mean(2, keepdim=True)
    spread = (var + (mean - centre).square()).mean(2, keepdim=True)
    factor = (spread + eps).rsqrt() * weight.to(wide.dtype).reshape(1, groups, -1)
    shift = bias.to(wide.dtype).reshape(1, groups, -1) - centre * factor
    factor, shift = (t.reshape(batch, channels, 1, 1) for t in (factor, shift))
    return (wide * factor + shift).to(x.dtype)


def largest_divisor(n: int, at_most: int) -> int:
    """The largest divisor of n that is at most `at_most` (and at least 1)."""
    return next((d for d in range(min(n, at_most), 1, -1) if n % d == 0), 1)


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p (in steps of 2^-16) and divide the rest by 1 - p.

    On the CPU the mask is cut out of 64-bit draws of torch's default generator, four elements a
    draw: several times cheaper than one Bernoulli draw per element.
    """
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    kept = round((1 - p) * 65536)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    keep = bits.view(torch.int16)[: x.numel()] < kept - 32768
    # The order of independent draws is free: follow the memory of x, so that nothing is strided.
    mask = torch.empty_like(x)
    torch.mul(keep, 65536 / kept, out=_flat(mask))
    return x * mask


def _flat(x: Tensor) -> Tensor:
    """A one-dimensional view of a dense tensor in the order of its memory."""
    return x.as_strided((x.numel(),), (1,))
