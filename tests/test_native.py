"""The compiled kernels: in whole layers and networks, of noise, built and left out."""

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

from native_helpers import error, images, needed
from sfumato import randomness
from sfumato.native import noise
from sfumato.native.library import library, unavailable
from sfumato.networks import layers as layers_module
from sfumato.networks import norm as norm_module
from sfumato.networks.build import build_network
from sfumato.networks.config import UNetConfig
from sfumato.networks.layers import Conv, kaiming
from sfumato.networks.norm import GroupNorm
from sfumato.randomness import Noise, Purpose

counted = pytest.mark.skipif(library("noise") is None, reason=unavailable("noise"))


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
