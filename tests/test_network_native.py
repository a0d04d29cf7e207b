"""Sfumato's own kernels: against torch in float64, whatever the threads, the batch and the type."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.networks import norm as norm_module
from sfumato.networks.build import build_network
from sfumato.networks.config import UNetConfig
from sfumato.networks.native.library import library, unavailable
from sfumato.networks.native.norm import norm_act, takes
from sfumato.networks.norm import GroupNorm

needed = pytest.mark.skipif(library() is None, reason=unavailable())
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
    y = norm_act(*ours, groups=groups, eps=1e-5, silu=silu, dropout=0)
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
        y = norm_act(*ours, groups=16, eps=1e-5, silu=True, dropout=0)
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
    y = norm_act(x, None, ones, zeros, groups=16, eps=1e-5, silu=False, dropout=0)
    assert error(y, F.group_norm(x.double(), 16, eps=1e-5)) < 2e-6 * (1 + offset / 10)


@needed
@pytest.mark.parametrize("dtype", CLOSE)
def test_silu_far_out_and_what_is_not_a_number(dtype: torch.dtype):
    x = images((1, 16, 1, 2), dtype)
    shift = torch.tensor(
        [-1e4, -100, -88, -87, -20, -1, -1e-3, 0, 1e-3, 1, 20, 87, 88, 100, 1e4, 7]
    )
    zeros = torch.zeros(16)
    y = norm_act(x, None, zeros, shift, groups=4, eps=1e-5, silu=True, dropout=0)[0, :, 0, 0]
    torch.testing.assert_close(y, F.silu(shift.double()).to(dtype), rtol=CLOSE[dtype], atol=1e-35)
    for bad in (float("nan"), float("inf")):
        worse = x.clone()
        worse[0, 0, 0, 0] = bad
        y = norm_act(worse, None, zeros + 1, zeros, groups=4, eps=1e-5, silu=True, dropout=0)
        assert y[:, :4].isnan().all()
        assert y[:, 4:].isfinite().all()


def dropped(x: Tensor, p: float, seed: int) -> tuple[Tensor, Tensor]:
    """The mask times its gain, and its sums over pixels by way of the gradient."""
    channels = x.shape[1]
    scale = torch.zeros(len(x), channels)
    shift = torch.ones(len(x), channels, requires_grad=True)
    torch.manual_seed(seed)
    y = norm_act(x, None, scale, shift, groups=4, eps=1e-5, silu=False, dropout=p)
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
    first, again, other = (dropped(x, 0.3, seed)[0] for seed in (5, 5, 6))
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
def test_a_bfloat16_network_is_nearer_to_float64_than_by_torch_s_layers(monkeypatch):
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
    monkeypatch.setattr(norm_module, "takes", lambda _: False)
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
            patch.setattr(norm_module, "takes", lambda _: False)
            torch.testing.assert_close(ours, layer(x, **options), rtol=1e-5, atol=1e-5)


CHECK = """
import warnings
warnings.simplefilter("error" if {strict} else "ignore")
import torch
from sfumato.networks.native.library import library, unavailable
from sfumato.networks.norm import GroupNorm
x = torch.randn(2, 32, 8, 8).contiguous(memory_format=torch.channels_last)
GroupNorm(32, 1e-5)(x, silu=True)
print(unavailable() or "built")
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


@needed
def test_they_are_built_once_and_leave_nothing_else(tmp_path: Path):
    assert built(tmp_path) == "built"
    (kept,) = (tmp_path / "cache" / "sfumato").iterdir()
    at = kept.stat().st_mtime_ns
    assert built(tmp_path) == "built"
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
