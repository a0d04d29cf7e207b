"""The kernels of 3x3 convolutions, against torch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from native_helpers import CLOSE, error, images, multiplied, second
from sfumato.native import conv as native_conv
from sfumato.native.conv import conv3
from sfumato.native.library import library
from sfumato.networks.layers import Conv, Resample, kaiming

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
