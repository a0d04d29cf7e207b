"""What layers are compiled to on a GPU: the same numbers, with channels last throughout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.networks import layers
from sfumato.networks import norm as norm_module
from sfumato.networks.layers import Resample, spread_out
from sfumato.networks.norm import GroupNorm, group_norm

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def gradients(out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    return torch.autograd.grad(out, inputs, torch.randn(out.shape, generator=generator).to(out))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_spelt_out_group_norm_is_torch_s(layout: torch.memory_format):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 24, 5, 6, dtype=torch.float64, generator=generator)
    x = (4 * x + torch.arange(24.0)[:, None, None]).to(memory_format=layout).requires_grad_()
    weight, bias = (torch.randn(24, generator=generator).double().requires_grad_() for _ in "ab")
    ours = group_norm(x, 6, weight, bias, 1e-3)
    theirs = F.group_norm(x, 6, weight, bias, 1e-3)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert ours.is_contiguous(memory_format=layout)
    for a, b in zip(
        gradients(ours, x, weight, bias), gradients(theirs, x, weight, bias), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("offset", [0, 5, 100])
def test_the_spelt_out_group_norm_keeps_float32_s_digits(offset: float):
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(4, 64, 16, 16, generator=generator)
    x = x + offset * torch.randn(4, 64, 1, 1, generator=generator)
    weight, bias = (torch.randn(64, generator=generator) for _ in "ab")
    exact = F.group_norm(x.double(), 16, weight.double(), bias.double(), 1e-6)
    found = group_norm(x, 16, weight, bias, 1e-6)
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 5e-7 * exact.norm()
    half = group_norm(x.bfloat16(), 16, weight, bias, 1e-6)
    rounded = F.group_norm(x.bfloat16().double(), 16, weight.double(), bias.double(), 1e-6)
    assert half.dtype == torch.bfloat16
    assert (half - rounded).norm() < 2**-8 * rounded.norm()


def test_doubling_by_copies_is_nearest_interpolation_and_so_is_its_gradient():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64, generator=generator)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    ours, theirs = spread_out(x), F.interpolate(x, scale_factor=2.0, mode="nearest")
    assert torch.equal(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gradients(ours, x)[0], gradients(theirs, x)[0])


def test_they_are_taken_when_a_network_on_a_gpu_is_compiled(monkeypatch: pytest.MonkeyPatch):
    taken: list[str] = []

    def seen(name: str) -> None:
        function = getattr(torch.nn.functional, name)

        def told(*arguments: object, **options: object) -> object:
            taken.append(name)
            return function(*arguments, **options)

        monkeypatch.setattr(torch.nn.functional, name, told)

    seen("group_norm")
    seen("interpolate")
    norm, double = GroupNorm(16, 1e-6), Resample((1, 1), up=True)
    x = torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last)
    monkeypatch.setattr(norm_module, "takes", lambda *_: False)
    plain = double(norm(x))
    assert taken == ["group_norm", "interpolate"]
    for module in (layers, norm_module):
        monkeypatch.setattr(module, "is_compiled_on_gpu", lambda _: True)
    torch.testing.assert_close(double(norm(x)), plain)
    assert len(taken) == 2
