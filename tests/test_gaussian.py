"""Gaussians against torch.distributions and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sfumato.gaussian import Gaussian, per_example

F64 = torch.float64
HALF = 1 / 255
PIXELS = torch.arange(256, dtype=F64) / 127.5 - 1


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def test_log_prob_and_kl_agree_with_torch_distributions():
    mean, other_mean, x = numbers(3, 4, 5), numbers(3, 4, 5, seed=1), numbers(3, 4, 5, seed=2)
    var, other_var = numbers(3, 1, 1, seed=3).exp(), numbers(3, 1, 1, seed=4).exp()
    p, q = Gaussian(mean, var), Gaussian(other_mean, other_var)
    their_p = torch.distributions.Normal(mean, var.sqrt())
    their_q = torch.distributions.Normal(other_mean, other_var.sqrt())
    torch.testing.assert_close(p.log_prob(x), their_p.log_prob(x), rtol=1e-13, atol=1e-13)
    theirs = torch.distributions.kl_divergence(their_p, their_q)
    torch.testing.assert_close(p.kl(q), theirs, rtol=1e-13, atol=1e-13)


def test_kl_of_points():
    """Equal variances that shrink to 0: no divergence where the means agree, infinite elsewhere."""
    zero = torch.zeros((), dtype=F64)
    p = Gaussian(torch.tensor([1.0, 1.0], dtype=F64), zero)
    q = Gaussian(torch.tensor([1.0, 2.0], dtype=F64), zero)
    assert p.kl(q).tolist() == [0.0, float("inf")]
    assert Gaussian(p.mean, zero + 1).kl(p).isinf().all()


def test_sample_is_affine_in_the_noise():
    p = Gaussian(torch.tensor([[1.0, -2.0]]), torch.tensor(4.0))
    assert p.sample(torch.tensor([[0.5, -1.0]])).tolist() == [[2.0, -4.0]]


def test_per_example_sums_all_but_the_batch():
    values = numbers(2, 3, 4)
    torch.testing.assert_close(per_example(values), values.sum((1, 2)))
    assert per_example(values[:, 0, 0]).shape == (2,)


@pytest.mark.parametrize("std", [157.0, 1.0, 0.3, 0.02, 0.0074, 0.001])
@pytest.mark.parametrize("mean", [-1.3, -1.0, -0.2, 0.0, 0.61, 1.0, 2.0])
def test_log_mass_sums_to_one(mean: float, std: float):
    p = Gaussian(torch.full((256,), mean, dtype=F64), torch.tensor(std**2, dtype=F64))
    assert p.log_mass(PIXELS, HALF).exp().sum() == pytest.approx(1, abs=1e-12)


def reference_log_mass(x: float, mean: float, std: float) -> float:
    """Scipy, in whichever tail keeps the digits."""
    low = -np.inf if x < -0.999 else (x - HALF - mean) / std
    high = np.inf if x > 0.999 else (x + HALF - mean) / std
    if low > 0 or high == np.inf:  # right tail: mirror
        low, high = -high, -low
    log_low, log_high = stats.norm.logcdf([low, high])
    return float(log_high + np.log1p(-np.exp(log_low - log_high)))


@pytest.mark.parametrize("std", [1.0, 0.05, 0.0074, 0.0005])
@pytest.mark.parametrize("mean", [-1.0, -0.31, 0.0, 0.5, 1.0])
def test_log_mass_agrees_with_scipy_in_the_body_and_both_tails(mean: float, std: float):
    p = Gaussian(torch.full((256,), mean, dtype=F64), torch.tensor(std**2, dtype=F64))
    expected = torch.tensor([reference_log_mass(float(x), mean, std) for x in PIXELS], dtype=F64)
    assert expected.isfinite().all()
    torch.testing.assert_close(p.log_mass(PIXELS, HALF), expected, rtol=1e-10, atol=1e-12)


def test_log_mass_of_other_bit_depths():
    """Sixteen bits: 65536 bins that sum to one as well."""
    x = torch.arange(65536, dtype=F64) / 32767.5 - 1
    p = Gaussian(torch.full_like(x, 0.3), torch.tensor(0.01**2, dtype=F64))
    assert p.log_mass(x, 1 / 65535).exp().sum() == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", [1.0, 0.0074, 0.001])
def test_log_mass_has_finite_correct_gradients(std: float, dtype: torch.dtype):
    x = PIXELS.to(dtype)
    mean = torch.full((256,), 0.4, dtype=dtype, requires_grad=True)
    log_var = torch.full((256,), 2 * float(np.log(std)), dtype=dtype, requires_grad=True)
    Gaussian(mean, log_var.exp()).log_mass(x, HALF).sum().backward()
    assert mean.grad is not None
    assert log_var.grad is not None
    assert mean.grad.isfinite().all()
    assert log_var.grad.isfinite().all()
    if dtype == F64:
        h = 1e-7 * std

        def mass(shift: float) -> torch.Tensor:
            moved = Gaussian(mean.detach() + shift, log_var.detach().exp())
            return moved.log_mass(x, HALF)

        slope = (mass(h) - mass(-h)) / (2 * h)
        torch.testing.assert_close(mean.grad, slope, rtol=1e-5, atol=1e-5 / std)
