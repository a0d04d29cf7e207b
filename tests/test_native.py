"""Sfumato's own kernels: against torch in float64, whatever the threads, the batch and the type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sfumato import randomness
from sfumato.native import conv as native_conv
from sfumato.native import noise
from sfumato.native.conv import conv3
from sfumato.native.library import library, unavailable
from sfumato.native.norm import norm_act, takes
from sfumato.networks import layers as layers_module
from sfumato.networks import norm as norm_module
from sfumato.networks.build import build_network
from sfumato.networks.config import UNetConfig
from sfumato.networks.layers import Conv, Resample, kaiming
from sfumato.networks.norm import GroupNorm
from sfumato.randomness import Noise, Purpose

needed = pytest.mark.skipif(library("norm") is None, reason=unavailable("norm"))
# Channels that fill one and two vectors of 16 and some, images of one piece and of several.
SHAPES = [(2, 16, 1, 1), (3, 48, 5, 7), (2, 64, 32, 32), (1, 128, 40, 30), (2, 32, 50, 60)]
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


def exact(x: Tensor, offset: Tensor, scale: Tensor, shift: Tensor, groups: int, silu: bool):
    h = F.group_norm(x + offset[..., None, None], groups, eps=1e-5)
    h = h * scale[..., None, None] + shift[..., None, None]
    return F.silu(h) if silu else h


@needed
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_values_and_gradients_are_the_formula_s(shape, dtype, silu: bool, shared: bool):
    batch, channels = shape[:2]
    groups = channels // 4
    x = images(shape, dtype)
    offset, scale, shift = lines(batch, channels)
    if shared:
        scale, shift = scale[0].clone(), shift[0].clone()
    ours = [t.requires_grad_() for t in (x, offset, scale, shift)]
    truth = [t.detach().double().requires_grad_() for t in ours]
    y = norm_act(*ours, groups=groups, eps=1e-5, silu=silu)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    true = exact(*truth, groups, silu)
    assert error(y, true) < CLOSE[dtype]
    dy = images(shape, dtype, seed=2)
    found = torch.autograd.grad(y, ours, dy)
    expected = torch.autograd.grad(true, truth, dy.double())
    assert error(found[0], expected[0]) < CLOSE[dtype]
    # Sums over pixels are not rounded to x's type, but those of bfloat16 images cancel alike.
    for ours_, true_ in zip(found[1:], expected[1:], strict=True):
        assert error(ours_, true_) < 1e-5


@needed
def test_results_depend_neither_on_threads_nor_on_the_batch():
    x = images((3, 64, 70, 50), torch.bfloat16)
    offset, scale, shift = lines(3, 64)
    before = torch.get_num_threads()

    def asked(at: slice) -> tuple[Tensor, ...]:
        ours = [t[at].detach().requires_grad_() for t in (x, offset, scale, shift)]
        ours[0] = ours[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        y = norm_act(*ours, groups=16, eps=1e-5, silu=True)
        return y, *torch.autograd.grad(y, ours, torch.ones_like(y))

    try:
        torch.set_num_threads(2)
        two, alone = asked(slice(None)), asked(slice(1, 2))
        torch.set_num_threads(1)
        one = asked(slice(None))
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(two, one, alone, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[1:2], c)


@needed
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_keeps_its_digits_far_from_zero(offset: float):
    x = images((2, 64, 33, 31), torch.float32)
    x = x + offset * torch.arange(64.0)[:, None, None] / 64
    zeros, ones = torch.zeros(64), torch.ones(64)
    y = norm_act(x, None, ones, zeros, groups=16, eps=1e-5, silu=False)
    assert error(y, F.group_norm(x.double(), 16, eps=1e-5)) < 2e-6 * (1 + offset / 10)


@needed
@pytest.mark.parametrize("dtype", CLOSE)
def test_silu_far_out_and_what_is_not_a_number(dtype: torch.dtype):
    x = images((1, 16, 1, 2), dtype)
    shift = torch.tensor(
        [-1e4, -100, -88, -87, -20, -1, -1e-3, 0, 1e-3, 1, 20, 87, 88, 100, 1e4, 7]
    )
    zeros = torch.zeros(16)
    y = norm_act(x, None, zeros, shift, groups=4, eps=1e-5, silu=True)[0, :, 0, 0]
    torch.testing.assert_close(y, F.silu(shift.double()).to(dtype), rtol=CLOSE[dtype], atol=1e-35)
    for bad in (float("nan"), float("inf")):
        worse = x.clone()
        worse[0, 0, 0, 0] = bad
        y = norm_act(worse, None, zeros + 1, zeros, groups=4, eps=1e-5, silu=True)
        assert y[:, :4].isnan().all()
        assert y[:, 4:].isfinite().all()


def dropped(x: Tensor, p: float, seed: int) -> tuple[Tensor, Tensor]:
    """The mask times its gain, and its sums over pixels by way of the gradient."""
    channels = x.shape[1]
    scale = torch.zeros(len(x), channels)
    shift = torch.ones(len(x), channels, requires_grad=True)
    y = norm_act(x, None, scale, shift, groups=4, eps=1e-5, silu=False, dropout=p, seed=seed)
    return y, torch.autograd.grad(y, shift, torch.ones_like(y))[0]


@needed
@pytest.mark.parametrize("p", [0.13, 0.5])
@pytest.mark.parametrize("channels", [16, 64, 80])
def test_dropout_s_mask_is_even_independent_and_the_gradient_s_own(p: float, channels: int):
    y, sums = (t.detach() for t in dropped(images((8, channels, 40, 44), torch.float32), p, 0))
    kept = y > 0
    assert y[kept].unique().numel() == 1
    assert y[kept][0] == pytest.approx(1 / (1 - p), rel=1e-4)
    torch.testing.assert_close(sums, y.sum((2, 3)), rtol=1e-5, atol=0)
    flat = (kept.permute(0, 2, 3, 1).reshape(-1).double() - (1 - p)) / (p * (1 - p)) ** 0.5
    noise = len(flat) ** -0.5
    assert abs(flat.mean()) < 4 * noise
    for lag in (1, 2, 15, 16, 17, 32, channels, 40 * channels, 40 * 44 * channels):
        assert abs((flat[lag:] * flat[:-lag]).mean()) < 5 * noise, lag


@needed
def test_dropout_repeats_with_the_seed():
    x = images((2, 32, 8, 8), torch.bfloat16)
    first, again, other = (dropped(x, 0.3, seed)[0] for seed in (5, 5, 5 + 2**40))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@needed
def test_only_plain_image_batches_on_the_cpu_are_taken():
    x = images((2, 32, 4, 4), torch.bfloat16)
    assert takes(x)
    others = [x.double(), x.half(), x.contiguous(), x[:, :24], x[:0], x[:, :, ::2], x[0]]
    assert [takes(t) for t in others] == [False] * len(others)
    assert not takes(x.to("meta"))
    seen = []

    def asked(t: Tensor) -> Tensor:
        seen.append(takes(t))
        return t.sum()

    torch.func.vmap(asked)(x[None])
    torch.func.jvp(asked, (x,), (x,))
    torch.func.grad(asked)(x.float().contiguous(memory_format=torch.channels_last))
    assert seen == [False] * 3


multiplied = pytest.mark.skipif(library("conv") is None, reason=unavailable("conv"))
# Odd sizes, one pixel, fewer and more outputs than a panel of 64, several blocks of tiles.
CONVOLUTIONS = [
    (2, 16, 48, 5, 7),
    (1, 32, 16, 1, 1),
    (3, 48, 96, 8, 6),
    (2, 64, 64, 31, 33),
    (1, 256, 144, 6, 2),
]


def convolved(shape: tuple[int, ...], gain: float = 1.0):
    """x, weight, bias, an image to add, and a gradient."""
    batch, inputs, outputs, height, width = shape
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator) / (9 * inputs) ** 0.5
    bias = torch.randn(outputs, generator=generator)
    x = images((batch, inputs, height, width), torch.bfloat16)
    plus, dy = (images((batch, outputs, height, width), torch.bfloat16, s) for s in (5, 6))
    return [t.requires_grad_() for t in (x, weight, bias, plus)], dy


@multiplied
@pytest.mark.parametrize("shape", CONVOLUTIONS)
@pytest.mark.parametrize("gain", [1.0, 0.6])
def test_convolutions_and_their_gradients_are_torch_s_in_float64(shape, gain: float):
    ours, dy = convolved(shape)
    truth = [t.detach().double().requires_grad_() for t in ours]
    y = conv3(*ours[:3], gain, ours[3])
    true = gain * (F.conv2d(*truth[:3], padding=1) + truth[3])
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    # The transforms multiply what rounding leaves by up to 2.
    assert error(y, true) < 2 * CLOSE[torch.bfloat16]
    found = torch.autograd.grad(y, ours, dy)
    expected = torch.autograd.grad(true, truth, dy.double())
    for mine, theirs in zip(found, expected, strict=True):
        assert error(mine, theirs) < 2.5 * CLOSE[torch.bfloat16]
    assert error(found[2], expected[2]) < 1e-6  # Sums of pixels are not multiplied.
    assert [t.dtype for t in found] == [t.dtype for t in ours]


@multiplied
@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_whole_numbers_are_convolved_exactly(shape):
    """Small integers survive every rounding: each product, each place, each border."""
    (x, weight, bias, plus), dy = convolved(shape)
    generator = torch.Generator().manual_seed(7)

    def whole(t: Tensor, at_most: int, every: int = 1) -> Tensor:
        values = every * torch.randint(-at_most, at_most + 1, t.shape, generator=generator)
        layout = torch.channels_last if t.dtype == torch.bfloat16 else torch.contiguous_format
        return values.to(t.dtype).contiguous(memory_format=layout).requires_grad_()

    # Weights are multiples of 4, for their transform divides by 4. Few are not 0, for sums of more
    # than 256 are not whole in bfloat16.
    x, plus, bias = whole(x, 1), whole(plus, 1), whole(bias, 3)
    weight = whole(weight, 1, every=4)
    with torch.no_grad():
        weight *= torch.rand(weight.shape, generator=generator) < 16 / weight[0].numel()
    dy = whole(dy, 1).detach()
    y = conv3(x, weight, bias, 1.0, plus)
    truth = [t.detach().double().requires_grad_() for t in (x, weight, bias, plus)]
    true = F.conv2d(*truth[:3], padding=1) + truth[3]
    assert true.abs().max() <= 256
    torch.testing.assert_close(y.detach().double(), true.detach(), rtol=0, atol=0)
    found = torch.autograd.grad(y, (x, weight, bias, plus), dy)
    expected = torch.autograd.grad(true, truth, dy.double())
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=0)


@multiplied
@pytest.mark.parametrize("shape", [(2, 16, 48, 3, 5), (1, 32, 16, 1, 1), (3, 96, 128, 16, 17)])
def test_a_convolution_of_doubled_images_is_torch_s_in_float64(shape):
    ours, _ = convolved(shape)
    dy = images((shape[0], shape[2], 2 * shape[3], 2 * shape[4]), torch.bfloat16, 6)
    ours = ours[:3]
    truth = [t.detach().double().requires_grad_() for t in ours]
    y = conv3(*ours, 0.6, doubled=True)
    true = 0.6 * F.conv2d(F.interpolate(truth[0], scale_factor=2.0), *truth[1:], padding=1)
    assert y.shape == true.shape
    assert error(y, true) < 2 * CLOSE[torch.bfloat16]
    found = torch.autograd.grad(y, ours, dy)
    expected = torch.autograd.grad(true, truth, dy.double())
    for mine, theirs in zip(found, expected, strict=True):
        assert error(mine, theirs) < 2.5 * CLOSE[torch.bfloat16]
    assert error(found[2], expected[2]) < 1e-6
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@multiplied
@pytest.mark.parametrize("shape", [(3, 64, 64, 31, 33), (3, 96, 160, 9, 5)])
def test_convolutions_depend_neither_on_threads_nor_on_the_batch(shape):
    ours, dy = convolved(shape)
    before = torch.get_num_threads()

    def asked(threads: int, at: slice) -> tuple[Tensor, ...]:
        x, weight, bias, plus = (t.detach() for t in ours)
        x, plus, gradient = (
            t[at].contiguous(memory_format=torch.channels_last) for t in (x, plus, dy)
        )
        inputs = [t.requires_grad_() for t in (x, weight, bias, plus)]
        torch.set_num_threads(threads)
        y = conv3(*inputs[:3], 0.5, inputs[3])
        return y, *torch.autograd.grad(y, inputs, gradient)

    try:
        one, two, alone = asked(1, slice(3)), asked(2, slice(3)), asked(2, slice(1, 2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    for a, b in zip(one, alone, strict=True):
        if a.ndim == 4 and len(a) == 3:  # Not what is summed over the batch.
            assert torch.equal(a[1:2], b)


@multiplied
def test_what_is_not_a_number_stays_where_it_is():
    (x, weight, bias, _), _ = convolved((2, 16, 16, 12, 12))
    with torch.no_grad():
        x[0, 3, 5, 5] = float("nan")
        y = conv3(x, weight, bias, 1.0, None)
    assert y[0, :, 4:7, 4:7].isnan().all()
    assert y[1].isfinite().all()
    assert y[0, :, :2].isfinite().all()


class Counted:
    """The kernels of a library, and how often each was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.kernels = library("conv")
        monkeypatch.setattr(native_conv, "_kernels", lambda: self)

    def __getattr__(self, name: str):
        self.asked.append(name)
        return getattr(self.kernels, name)


@multiplied
def test_frozen_weights_and_inputs_cost_no_gradient(monkeypatch):
    (x, weight, bias, _), dy = convolved((2, 16, 16, 8, 8))
    counted = Counted(monkeypatch)
    once = ["conv_weights", "conv_bfloat16"]
    conv3(x.detach(), weight, bias, 1.0, None).backward(dy)
    assert counted.asked == [*once, "conv_gradient"]
    counted.asked.clear()
    conv3(x, weight.detach(), bias.detach(), 1.0, None).backward(dy)
    assert counted.asked == [*once, *once]
    assert x.grad is not None


@multiplied
def test_the_layer_takes_the_kernel_where_it_can():
    layer = Conv(32, 48, 3, kaiming)
    x = images((2, 32, 8, 8), torch.bfloat16)
    for y in (layer(x), layer.doubled(x), Resample((1, 1), up=True).then(layer, x)):
        assert y.grad_fn.name() == "_Conv3Backward"
    last = torch.channels_last
    others = [x.float(), x.contiguous(), x[:, :16].contiguous(memory_format=last), x[:, :, :1, :1]]
    weight, bias = layer.weight, layer.bias
    assert [native_conv.takes(t, weight, bias) for t in others] == [False] * 4
    assert not native_conv.takes(x, weight.bfloat16(), bias)
    assert not native_conv.takes(x, weight.to("meta"), bias)
    assert not native_conv.takes(x, weight, bias[:16])
    for other in (Conv(32, 48, 1, kaiming), Conv(32, 40, 3, kaiming), Conv(64, 48, 3, kaiming)):
        assert not native_conv.takes(x, other.weight, other.bias)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 2 * 64 * 9 * 32 * 48
    with pytest.raises(RuntimeError, match="channels"):
        Conv(64, 48, 3, kaiming)(x)


@multiplied
def test_what_is_added_may_be_a_value_a_channel():
    (x, weight, bias, _), _ = convolved((2, 16, 32, 4, 6))
    plus = torch.randn(2, 32, 1, 1).bfloat16().requires_grad_()
    y = conv3(x, weight, bias, 1.0, plus)
    assert error(y, F.conv2d(x.double(), weight.double(), bias.double(), padding=1) + plus) < 5e-3
    (sums,) = torch.autograd.grad(y, plus, torch.ones_like(y))
    assert torch.equal(sums, torch.full_like(plus, 24))


def second(layer, x: Tensor, others: list[Tensor]) -> list[Tensor]:
    """Derivatives of a function of the gradient of a function of the layer."""
    inputs = [x, *others]
    y = layer(*inputs)
    first = torch.autograd.grad((y.float().sin()).sum(), inputs, create_graph=True)
    total = torch.stack([g.float().square().sum() for g in first]).sum()
    return list(torch.autograd.grad(total, inputs))


@needed
@pytest.mark.parametrize("silu", [False, True])
def test_second_derivatives_are_torch_s(silu: bool):
    x = images((2, 16, 4, 6), torch.float32).requires_grad_()
    offset, scale, shift = (t.requires_grad_() for t in lines(2, 16))
    options = {"groups": 4, "eps": 1e-5, "silu": silu}
    found = second(lambda *a: norm_act(*a, **options), x, [offset, scale, shift])
    truth = [t.detach().double().requires_grad_() for t in (x, offset, scale, shift)]

    def plain(*inputs: Tensor) -> Tensor:
        return exact(*inputs, 4, silu)

    y = plain(*truth)
    first = torch.autograd.grad(y.sin().sum(), truth, create_graph=True)
    total = torch.stack([g.square().sum() for g in first]).sum()
    for mine, theirs in zip(found, torch.autograd.grad(total, truth), strict=True):
        assert error(mine, theirs) < 1e-4
    y = norm_act(x, offset, scale, shift, **options, dropout=0.5, seed=1)
    with pytest.raises(NotImplementedError, match="eval"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@multiplied
@pytest.mark.parametrize("doubled", [False, True])
def test_second_derivatives_of_convolutions_are_torch_s(doubled: bool):
    (x, weight, bias, _), _ = convolved((2, 16, 32, 4, 6))
    found = second(lambda *a: conv3(*a, doubled=doubled), x, [weight, bias])

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        h = F.interpolate(x, scale_factor=2.0) if doubled else x
        return F.conv2d(h, weight.to(x.dtype), bias.to(x.dtype), padding=1)

    for mine, theirs in zip(found, second(plain, x, [weight, bias]), strict=True):
        assert theirs.norm() > 0
        assert error(mine, theirs.double()) < 0.05  # Of bfloat16, twice.


@multiplied
def test_gradients_in_batches_go_through_torch():
    """Group norm's own gradient, channels last, is not for batches in torch either."""
    (x, weight, bias, _), _ = convolved((2, 16, 32, 4, 6))
    y = conv3(x, weight, bias)
    dys = torch.stack([images((2, 32, 4, 6), torch.bfloat16, seed) for seed in (8, 9)])
    both = torch.autograd.grad(y, (x, weight), dys, is_grads_batched=True, retain_graph=True)
    for i, dy in enumerate(dys):
        alone = torch.autograd.grad(y, (x, weight), dy, retain_graph=True)
        for found, expected in zip(both, alone, strict=True):
            assert error(found[i], expected.double()) < 1e-2


@needed
def test_torch_s_defaults_of_type_and_device_change_nothing():
    x = images((2, 32, 6, 6), torch.bfloat16).requires_grad_()
    layer, conv = GroupNorm(32, 1e-5), Conv(32, 32, 3, kaiming)

    def asked() -> list[Tensor]:
        y = conv(layer(x, silu=True))
        inputs = (x, *layer.parameters(), *conv.parameters())
        drawn = Noise((1, 2)).normal((3, 4), Purpose.START)
        return [drawn, y, *torch.autograd.grad(y, inputs, torch.ones_like(y))]

    plain = asked()
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            assert all(torch.equal(a, b) for a, b in zip(plain, asked(), strict=True))
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert all(torch.equal(a, b) for a, b in zip(plain, asked(), strict=True))


@needed
def test_what_was_saved_may_come_back_in_another_layout():
    x = images((2, 32, 6, 6), torch.bfloat16).requires_grad_()
    layer, conv = GroupNorm(32, 1e-5), Conv(32, 32, 3, kaiming)

    def asked() -> tuple[Tensor, ...]:
        y = conv(layer(x, silu=True))
        return torch.autograd.grad(y, (x, *layer.parameters(), *conv.parameters()), y.detach())

    plain = asked()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.clone(memory_format=torch.contiguous_format), lambda t: t
    ):
        assert all(torch.equal(a, b) for a, b in zip(plain, asked(), strict=True))


@needed
def test_an_outlying_first_pixel_costs_no_digits():
    for value in (10.0, 100.0, 1000.0):
        x = images((1, 64, 64, 64), torch.float32) / 2
        x[:, :, 0, 0] = value
        x.requires_grad_()
        y = norm_act(x, None, torch.ones(64), torch.zeros(64), groups=16, eps=1e-5, silu=False)
        truth = x.detach().double().requires_grad_()
        true = F.group_norm(truth, 16, eps=1e-5)
        assert error(y, true) < 1e-5
        dy = images((1, 64, 64, 64), torch.float32, 3)
        found, expected = (
            torch.autograd.grad(y, x, dy),
            torch.autograd.grad(true, truth, dy.double()),
        )
        assert error(found[0], expected[0]) < 1e-5


@needed
def test_a_bfloat16_network_is_as_near_to_float64_as_by_torch_s_layers(monkeypatch):
    torch.manual_seed(0)
    config = UNetConfig(width=32, multipliers=(1, 2), blocks=1, attention=(8,), dropout=0.0)
    network = build_network(config, in_channels=3, out_channels=3, height=16, width=16)
    x, level = torch.randn(4, 3, 16, 16), torch.randn(4)
    truth = build_network(config, in_channels=3, out_channels=3, height=16, width=16).double()
    truth.load_state_dict(network.state_dict())
    true = truth(x.double(), level.double())
    true.square().mean().backward()
    expected = torch.cat([p.grad.flatten() for p in truth.parameters() if p.grad is not None])

    def asked() -> tuple[float, float]:
        network.zero_grad()
        out = network(x, level)
        out.square().mean().backward()
        grads = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        return error(out, true), error(torch.cat(grads), expected)

    network.set_compute(torch.float32, channels_last=True)
    value, gradient = asked()
    assert value < 1e-5
    assert gradient < 1e-5
    network.set_compute(torch.bfloat16, channels_last=True)
    ours = asked()
    monkeypatch.setattr(norm_module, "takes", lambda *_: False)
    monkeypatch.setattr(layers_module, "takes", lambda *_: False)
    plain = asked()
    assert ours[0] < 1.1 * plain[0] < 0.05
    assert ours[1] < 1.1 * plain[1] < 0.1


@needed
def test_the_layer_is_the_same_with_and_without_the_kernels(monkeypatch):
    layer = GroupNorm(64, 1e-5)
    x = images((2, 64, 8, 8), torch.float32)
    offset, factor, shift = lines(2, 64)
    for options in ({}, {"offset": offset, "silu": True}, {"factor": factor, "shift": shift}):
        with monkeypatch.context() as patch:
            ours = layer(x, **options)
            assert ours.grad_fn.name() == "_NormActBackward"
            patch.setattr(norm_module, "takes", lambda *_: False)
            torch.testing.assert_close(ours, layer(x, **options), rtol=1e-5, atol=1e-5)


counted = pytest.mark.skipif(library("noise") is None, reason=unavailable("noise"))


@counted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_numpy_s_own_to_the_last_bit(dtype: torch.dtype):
    seeds, signs = [0, 1, 2**63 - 1, -5], [1, -1, 1, -1]
    found = noise.normal((300_001,), dtype, seeds, signs, (3, 1, 2**64 - 1))  # Tails among them.
    for row, seed, sign in zip(found, seeds, signs, strict=True):
        counter = np.array([0, 3, 1, 2**64 - 1], dtype=np.uint64)
        bits = np.random.Philox(key=seed % 2**64, counter=counter)
        expected = sign * np.random.Generator(bits).standard_normal(300_001)
        assert torch.equal(row, torch.from_numpy(expected).to(dtype))


@counted
def test_noise_is_drawn_by_the_kernel_and_the_same_without(monkeypatch):
    for drawn in (Noise((4, 2**40, 7)), Noise((4, 5, 7), number=3, antithetic=True), Noise(())):
        ours = drawn.normal((3, 5), Purpose.CHURN)
        with monkeypatch.context() as patch:
            patch.setattr(randomness, "normal", None)  # Whoever takes it fails.
            if drawn.seeds:
                with pytest.raises(TypeError):
                    drawn.normal((3, 5), Purpose.CHURN)
            patch.setattr(randomness, "takes", lambda *_: False)
            theirs = drawn.normal((3, 5), Purpose.CHURN)
        assert torch.equal(ours, theirs)
        assert ours.shape == (len(drawn.seeds), 3, 5)
    assert noise.takes(torch.float32)
    assert not noise.takes(torch.bfloat16)
    half = Noise((1,)).normal((7,), Purpose.START, torch.bfloat16)
    assert torch.equal(half, Noise((1,)).normal((7,), Purpose.START, torch.float64).bfloat16())


@needed
def test_the_layer_s_dropout_repeats_with_torch_s_seed():
    layer, x = GroupNorm(32, 1e-5), images((2, 32, 8, 8), torch.bfloat16)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn += [layer(x, p=0.3), layer(x, p=0.3)]
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[4])


CHECK = """
import warnings
warnings.simplefilter("error" if {strict} else "ignore")
import torch
from sfumato.native.library import library, unavailable
from sfumato.networks.norm import GroupNorm
from sfumato.randomness import Noise, Purpose
x = torch.randn(2, 32, 8, 8).contiguous(memory_format=torch.channels_last)
GroupNorm(32, 1e-5)(x, silu=True)
print(unavailable("norm") or "built")
"""


def built(tmp_path: Path, strict: bool = True, **environment: str) -> str:
    code = CHECK.format(strict=strict)
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.strip()


def test_they_are_there_where_they_can_be():
    compiler = shutil.which("g++")
    if sys.platform != "linux" or compiler is None or os.environ.get("SFUMATO_NATIVE") == "0":
        pytest.skip("kernels are for Linux with g++")
    flags = Path("/proc/cpuinfo").read_text().split()
    assert library("norm") is not None, unavailable("norm")
    assert library("noise") is not None or "numpy" in unavailable("noise")
    if "avx512_bf16" in flags and "amx_bf16" not in flags:
        assert library("conv") is not None, unavailable("conv")


@needed
def test_a_damaged_file_is_built_anew_and_a_compiler_may_have_arguments(tmp_path: Path):
    assert built(tmp_path, CXX="g++ -DUNUSED") == "built"
    (kept,) = (tmp_path / "cache" / "sfumato").iterdir()
    kept.write_bytes(b"")
    assert built(tmp_path, CXX="g++ -DUNUSED") == "built"
    assert kept.stat().st_size > 1000


@counted
def test_a_forked_child_draws_too():
    Noise((1, 2)).normal((3000,), Purpose.START)
    child = os.fork()
    if child == 0:
        same = torch.equal(
            Noise((1, 2)).normal((3,), Purpose.START), Noise((1, 2)).normal((3,), Purpose.START)
        )
        os._exit(0 if same else 1)
    for _ in range(100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        pytest.fail("the child waits for ever")
    assert os.waitstatus_to_exitcode(status) == 0


@needed
def test_they_are_built_once_and_leave_nothing_else(tmp_path: Path):
    assert built(tmp_path) == "built"
    (kept,) = (tmp_path / "cache" / "sfumato").iterdir()
    at = kept.stat().st_mtime_ns
    assert built(tmp_path) == "built"
    assert list((tmp_path / "cache" / "sfumato").iterdir()) == [kept]
    assert kept.stat().st_mtime_ns == at


def test_without_a_compiler_layers_work_and_say_what_is_missing(tmp_path: Path):
    assert "install a C++ compiler" in built(tmp_path, CXX="no-such-compiler")
    assert "unset" in built(tmp_path, SFUMATO_NATIVE="0")


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are for Linux")
def test_a_compiler_that_fails_and_a_cache_that_cannot_be_written_are_told(tmp_path: Path):
    assert "could not build" in built(tmp_path, strict=False, CXX="false")
    (tmp_path / "other").write_text("a file, not a folder")
    told = built(tmp_path, strict=False, XDG_CACHE_HOME=str(tmp_path / "other"))
    assert "could not build" in told
