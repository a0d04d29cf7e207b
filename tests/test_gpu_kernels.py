"""Triton's kernels against torch's layers in float64: on a GPU, or interpreted where Triton is."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.native import gpu, gpu_norm
from sfumato.native.gpu import join
from sfumato.native.gpu_norm import Tiles, norm_act
from sfumato.networks.build import build_network
from sfumato.networks.config import ADMConfig, UNetConfig

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton, which comes with CUDA's torch"
)
# Triton's interpreter cuts digits of bfloat16 off where a GPU rounds.
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 2.5e-3 if CUDA else 4e-3, torch.float16: 3.5e-4}
LAST = torch.channels_last
# Groups that fill a program and that do not, images of one block of pixels and of several.
SHAPES = [
    ((2, 16, 1, 2), 4),
    ((3, 48, 5, 7), 12),
    ((2, 64, 32, 32), 16),
    ((1, 148, 9, 6), 4),
    ((2, 192, 24, 20), 32),
]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if not CUDA:
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def images(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    x = 2 * drawn(*shape, seed=seed) + 3 + torch.arange(shape[1], device=DEVICE)[:, None, None] / 9
    return x.to(dtype).contiguous(memory_format=LAST)


def error(found: Tensor, true: Tensor) -> float:
    return float((found.detach().double() - true.detach()).norm() / true.detach().norm())


def exact(x: Tensor, offset: Tensor | None, scale: Tensor, shift: Tensor, groups: int, silu: bool):
    h = x if offset is None else x + offset[..., None, None]
    h = F.group_norm(h, groups, eps=1e-5) * scale[..., None, None] + shift[..., None, None]
    return F.silu(h) if silu else h


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("silu", "shared", "forked"), [(0, 1, 1), (1, 0, 0), (1, 1, 1), (1, 0, 1)])
def test_values_and_gradients_are_the_formula_s(shape, groups, dtype, silu, shared, forked):
    x, offset = images(shape, dtype), drawn(*shape[:2], seed=1) if forked else None
    size = shape[1:2] if shared else shape[:2]
    scale, shift = drawn(*size, seed=2), drawn(*size, seed=3)
    ours = [t.requires_grad_() for t in (x, offset, scale, shift) if t is not None]
    truth = [t.detach().double().requires_grad_() for t in ours]
    y, same = norm_act(x, offset, scale, shift, groups=groups, eps=1e-5, silu=bool(silu))
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=LAST)
    true = exact(truth[0], truth[1] if forked else None, *truth[-2:], groups, bool(silu))
    assert error(y, true) < CLOSE[dtype]
    dy, other = images(shape, dtype, seed=4), images(shape, dtype, seed=5)
    if forked:
        found = torch.autograd.grad([y, same], ours, [dy, other])
        expected = torch.autograd.grad([true, truth[0]], truth, [dy.double(), other.double()])
    else:
        found = torch.autograd.grad(y, ours, dy)
        expected = torch.autograd.grad(true, truth, dy.double())
    assert error(found[0], expected[0]) < CLOSE[dtype]
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert error(a, b) < 1e-5


@pytest.mark.parametrize("pixels", [16, 64, 1024])
def test_tiles_change_no_more_than_rounding(monkeypatch: pytest.MonkeyPatch, pixels: int):
    x = images((2, 64, 20, 20), torch.float32).requires_grad_()
    scale, shift = drawn(64, seed=2), drawn(64, seed=3)
    monkeypatch.setattr(gpu_norm, "tiles", lambda *_, **__: Tiles(32, pixels, 4))
    y, _ = norm_act(x, None, scale, shift, groups=16, eps=1e-5, silu=True)
    truth = x.detach().double().requires_grad_()
    true = exact(truth, None, scale.double(), shift.double(), 16, True)
    assert error(y, true) < 1e-6
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert error(dx, torch.autograd.grad(true, truth, torch.ones_like(true))[0]) < 2e-6


@pytest.mark.parametrize("place", [(0, 0), (5, 9)])
def test_one_pixel_far_out_costs_few_digits(place: tuple[int, int]):
    x = images((1, 32, 32, 32), torch.float32)
    x[:, :, *place] = 100
    ones, zeros = torch.ones(32, device=DEVICE), torch.zeros(32, device=DEVICE)
    y, _ = norm_act(x, None, ones, zeros, groups=8, eps=1e-5, silu=False)
    assert error(y, F.group_norm(x.double(), 8, eps=1e-5)) < 1e-6


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_keeps_its_digits_far_from_zero(offset: float):
    x = images((2, 64, 33, 31), torch.float32)
    x = x + offset * torch.arange(64.0, device=DEVICE)[:, None, None] / 64
    ones, zeros = torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE)
    y, _ = norm_act(x, None, ones, zeros, groups=16, eps=1e-5, silu=False)
    assert error(y, F.group_norm(x.double(), 16, eps=1e-5)) < 2e-6 * (1 + offset / 10)


def test_a_wider_result_is_not_rounded():
    x = images((2, 32, 8, 8), torch.bfloat16).requires_grad_()
    scale, shift = drawn(32, seed=2), drawn(32, seed=3)
    y, _ = norm_act(x, None, scale, shift, groups=8, eps=1e-5, silu=True, dtype=torch.float32)
    assert y.dtype == torch.float32
    truth = x.detach().double().requires_grad_()
    true = exact(truth, None, scale.double(), shift.double(), 8, True)
    assert error(y, true) < 1e-6
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert dx.dtype == torch.bfloat16
    assert error(dx, torch.autograd.grad(true.square().sum(), truth)[0]) < CLOSE[torch.bfloat16]


@pytest.mark.parametrize("p", [0.13, 0.5])
def test_dropout_s_mask_is_even_independent_and_the_gradient_s_own(p: float):
    channels, size = 64, (4, 64, 40, 44)
    x = images(size, torch.float32)
    zeros, ones = torch.zeros(4, channels, device=DEVICE), torch.ones(4, channels, device=DEVICE)
    ones.requires_grad_()
    y, _ = norm_act(x, None, zeros, ones, groups=16, eps=1e-5, silu=False, dropout=p, seed=seed(5))
    (sums,) = torch.autograd.grad(y, ones, torch.ones_like(y))
    y = y.detach()
    torch.testing.assert_close(sums, y.sum((2, 3)), rtol=1e-5, atol=0)
    kept = y > 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)), rtol=1e-4, atol=0)
    flat = (kept.permute(0, 2, 3, 1).reshape(-1).double() - (1 - p)) / (p * (1 - p)) ** 0.5
    noise = len(flat) ** -0.5
    assert abs(flat.mean()) < 4 * noise
    for lag in (1, 2, 15, 16, 32, channels, 40 * channels, 40 * 44 * channels):
        assert abs((flat[lag:] * flat[:-lag]).mean()) < 5 * noise, lag


def seed(value: int) -> Tensor:
    return torch.tensor([value], device=DEVICE)


def test_dropout_without_a_seed_is_refused():
    x, line = images((1, 16, 2, 2), torch.float32), torch.ones(16, device=DEVICE)
    with pytest.raises(ValueError, match="needs a seed"):
        norm_act(x, None, line, line, groups=4, eps=1e-5, silu=False, dropout=0.1)


def test_a_join_puts_both_into_one_layout():
    h, plus = drawn(2, 16, 3, 5, seed=0), images((2, 16, 3, 5), torch.float32)
    bias = drawn(16, seed=1)
    torch.testing.assert_close(join(h, plus, bias, 0.5), h + 0.5 * (plus + bias[:, None, None]))


def test_what_kernels_are_asked_for():
    x = images((2, 32, 4, 4), torch.bfloat16)
    assert gpu.takes(x) == gpu.takes(x, drawn(32, seed=0)) == CUDA
    others = [x.double(), x.contiguous(), x[:0], x[:, :, ::2], x[0], x[..., :1, :1], x.cpu()]
    assert not any(gpu.takes(t) for t in others)
    assert not gpu.takes(x, torch.ones(32))  # on another device
    assert not gpu.takes(x, drawn(16, seed=0))
    suited = [((512, 256, 32, 32), 32), ((1, 64, 32, 32), 16), ((64, 256, 64, 64), 32)]
    few = [((1, 128, 256, 256), 32), ((2, 1018, 8, 8), 2)]
    for shape, groups in suited + few:
        assert gpu_norm.suits(torch.empty(shape, device="meta"), groups) == (
            (shape, groups) in suited
        )


def test_why_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch):
    why = gpu.why_not.__wrapped__
    monkeypatch.setenv("SFUMATO_NATIVE", "0")
    assert "unset it" in why("cuda")
    monkeypatch.delenv("SFUMATO_NATIVE")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "NVIDIA" in why("cuda")
    monkeypatch.setattr(torch.version, "hip", None)

    def failing(error: Exception) -> None:
        def double(_: Tensor) -> Tensor:
            raise error

        monkeypatch.setattr(gpu, "doubled", double)

    failing(ModuleNotFoundError("No module named 'triton'"))
    assert "no triton" in why(DEVICE)
    failing(RuntimeError("no C compiler\nand more"))
    with pytest.warns(RuntimeWarning, match="left out: no C compiler$"):
        assert why(DEVICE) == "no C compiler"


def test_dropout_repeats_with_the_seed():
    x = images((2, 32, 8, 8), torch.float32)
    lines = drawn(32, seed=2), drawn(32, seed=3)

    def mask(value: int) -> Tensor:
        how = {"groups": 8, "eps": 1e-5, "silu": False, "dropout": 0.3, "seed": seed(value)}
        return norm_act(x, None, *lines, **how)[0] == 0

    assert torch.equal(mask(5), mask(5))
    assert not torch.equal(mask(5), mask(6))
    assert not torch.equal(mask(5), mask(5 + 2**40))


def test_second_derivatives_are_torch_s():
    x = images((2, 32, 4, 4), torch.float32).requires_grad_()
    scale, shift = drawn(32, seed=2), drawn(32, seed=3)
    y, same = norm_act(x, None, scale, shift, groups=8, eps=1e-5, silu=True)
    truth = x.detach().double().requires_grad_()
    true = exact(truth, None, scale.double(), shift.double(), 8, True)
    (dx,) = torch.autograd.grad((y * same).sum(), x, create_graph=True)
    (dt,) = torch.autograd.grad((true * truth).sum(), truth, create_graph=True)
    assert error(dx, dt) < 1e-5
    found, expected = (
        torch.autograd.grad(g.square().sum(), t)[0] for g, t in ((dx, x), (dt, truth))
    )
    assert error(found, expected) < 1e-5


@pytest.mark.parametrize("shape", [(2, 48, 9, 7), (3, 256, 16, 16), (1, 20, 3, 1)])
def test_a_join_and_its_gradients(shape: tuple[int, ...]):
    h, plus = (images(shape, torch.float32, seed).requires_grad_() for seed in (0, 1))
    bias = drawn(shape[1], seed=2).requires_grad_()
    found = join(h, plus, bias, 0.7)
    expected = h + 0.7 * (plus + bias[:, None, None])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    dout = images(shape, torch.float32, seed=3)
    for a, b in zip(
        torch.autograd.grad(found, (h, plus, bias), dout),
        torch.autograd.grad(expected, (h, plus, bias), dout),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_of_them_is_the_network(
    monkeypatch: pytest.MonkeyPatch, adaptive: bool, dtype: torch.dtype
):
    """As near to float64 as torch's layers are."""
    if dtype == torch.bfloat16 and not CUDA:
        pytest.skip("Triton's interpreter cuts digits off where a GPU rounds")
    shape, level = (2, 3, 8, 8), drawn(2, seed=3)
    kind = ADMConfig if adaptive else UNetConfig
    config = kind(width=16, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.0)
    torch.manual_seed(0)
    net = build_network(config, in_channels=3, out_channels=3, height=8, width=8).to(DEVICE)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape).to(p))
    x, dy = drawn(*shape, seed=1), drawn(*shape, seed=2)

    def results(net: torch.nn.Module, kind: torch.dtype) -> list[Tensor]:
        out = net(x.to(kind), level.to(kind))
        return [out.detach(), *torch.autograd.grad(out, list(net.parameters()), dy.to(out))]

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plain = results(copy.deepcopy(net).double(), torch.float64)
    net.set_compute(dtype, channels_last=True)
    monkeypatch.setattr(gpu, "takes", lambda *_: False)
    layers = results(net, torch.float32)
    asked: list[tuple[int, ...]] = []

    def takes(x: Tensor, *_: Tensor) -> bool:
        asked.append(tuple(x.shape))
        return x.dtype != torch.float64

    monkeypatch.setattr(gpu, "takes", takes)
    ours = results(net, torch.float32)
    assert asked
    mine, theirs, true = (torch.cat([t.flatten() for t in r]) for r in (ours, layers, plain))
    assert error(mine, true) < 1.2 * error(theirs, true) + 1e-6


@pytest.mark.parametrize("dtype", CLOSE)
def test_halves_and_doubles_are_rounded_once(dtype: torch.dtype):
    x = images((3, 40, 6, 4), dtype)
    assert error(gpu.halved(x), F.avg_pool2d(x.double(), 2)) < CLOSE[dtype]
    assert torch.equal(gpu.doubled(x), F.interpolate(x, scale_factor=2.0, mode="nearest"))


@pytest.mark.parametrize("shape", [(2, 48, 6, 10), (3, 256, 16, 16), (1, 20, 2, 4)])
def test_halves_and_doubles_and_their_gradients(shape: tuple[int, ...]):
    for ours, theirs in (
        (gpu.halved, lambda t: F.avg_pool2d(t, 2)),
        (gpu.doubled, lambda t: F.interpolate(t, scale_factor=2.0, mode="nearest")),
    ):
        x = images(shape, torch.float32).requires_grad_()
        found, expected = ours(x), theirs(x)
        assert found.is_contiguous(memory_format=LAST)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        dy = drawn(*found.shape, seed=3).requires_grad_()
        (dx,) = torch.autograd.grad(found, x, dy, retain_graph=True)
        (dt,) = torch.autograd.grad(expected, x, dy, retain_graph=True)
        torch.testing.assert_close(dx, dt, rtol=1e-6, atol=1e-6)
        graph = torch.autograd.grad(found, x, dy, create_graph=True)[0].square().sum()
        other = torch.autograd.grad(expected, x, dy, create_graph=True)[0].square().sum()
        twice, expected = (torch.autograd.grad(g, dy)[0] for g in (graph, other))
        torch.testing.assert_close(twice, expected, rtol=1e-5, atol=1e-5)


COMPILED = """
import itertools, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sfumato.native import gpu_kernels, gpu_norm, gpu_norm_kernels

IMAGES = "x y dy dx skip h plus out dout dplus".split()
KINDS = {f"{name}_at": "bf16" for name in IMAGES} | {"seed_at": "i64"}

def compiled(name, **choices):
    kernel = getattr(gpu_norm_kernels if name.startswith('norm') else gpu_kernels, name)
    names = kernel.arg_names
    fixed = {(names.index(n),): value for n, value in choices.items()}
    kinds = {
        n: "constexpr" if n in choices
        else "*" + KINDS.get(n, "fp32") if n.endswith("_at")
        else "fp32" if n in ("gain", "eps") else "i32"
        for n in names
    }
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names)
               if n.endswith("_at") or n in ("C", "count", "scale_row")}
    for at in fixed:
        aligned.pop(at, None)
    source = ASTSource(kernel, kinds, fixed, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    words = made.asm["ptx"]
    assert "ld.global.v4" in words, name
    assert "st.global.v4" in words, name
    print(name, "compiled")

for pixels, on in itertools.product((1024, 64), (True, False)):
    t = gpu_norm.tiles(pixels, 8)
    how = dict(D=8, KB=t.channels, CB=64, BP=t.pixels, SILU=on, DROP=on, OFFSET=on,
               ONCE=pixels <= t.pixels)
    none = {} if on else {"offset_at": None, "seed_at": None}
    compiled("norm_forward", **how, **none)
    none = {} if on else {**none, "skip_at": None, "doffset_at": None}
    compiled("norm_backward", **how, **none, SKIP=on)
compiled("join_forward", BLOCK=4096)
compiled("join_backward", CB=128, BP=64)
compiled("doubled", CB=128, BP=16)
compiled("halved", CB=128, BP=16)
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """The interpreter takes more than the compiler does; and memory is to be read in long words."""
    script = tmp_path / "compiled.py"
    script.write_text(COMPILED)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("compiled") == 12
