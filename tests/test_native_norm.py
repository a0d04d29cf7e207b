"""The kernels of group norm, SiLU and dropout, against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from native_helpers import CLOSE, error, images, lines, needed, second
from sfumato.native.norm import norm_act, takes
from sfumato.networks import norm as norm_module
from sfumato.networks.norm import GroupNorm

# Channels that fill one and two vectors of 16 and some, images of one piece and of several.
SHAPES = [(2, 16, 1, 1), (3, 48, 5, 7), (2, 64, 32, 32), (1, 128, 40, 30), (2, 32, 50, 60)]


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
