"""Noise as a pure function: moments, independence, dtypes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sfumato.randomness import Noise, Purpose, derive_seed, noise_for

F64 = torch.float64


def draw(
    seed: int, purpose: Purpose = Purpose.START, number: int = 0, size: int = 100_000
) -> torch.Tensor:
    return Noise((seed,), number).normal([size], purpose, F64)[0]


def test_noise_is_standard_normal():
    """Kolmogorov-Smirnov on one long draw and on the first number of many seeds."""
    assert stats.kstest(draw(0).numpy(), "norm").pvalue > 1e-3
    firsts = noise_for(0, 20_000).normal([1], Purpose.START, F64)[:, 0]
    assert stats.kstest(firsts.numpy(), "norm").pvalue > 1e-3
    firsts = torch.cat([draw(0, Purpose.TRANSITION, n, 1) for n in range(20_000)])
    assert stats.kstest(firsts.numpy(), "norm").pvalue > 1e-3


def test_draws_of_other_seeds_purposes_and_numbers_are_independent():
    n = 100_000
    draws = [draw(s, p, k) for s in (0, 1, 2**40) for p in Purpose for k in (0, 1, 2)]
    stacked = torch.stack(draws)
    correlation = (stacked @ stacked.T / n - torch.eye(len(draws), dtype=F64)).fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / n**0.5
    lagged = (stacked[:, 1:] @ stacked[:, :-1].T / n).abs()
    assert lagged.max() < 5.5 / n**0.5


def test_float32_noise_is_float64_noise_rounded():
    noise, x = noise_for(3, 4), torch.empty(4, 2, 5)
    double = noise.like(x.double(), Purpose.CHURN)
    assert noise.like(x, Purpose.CHURN).equal(double.float())
    assert double.dtype == F64


def test_noise_of_an_image_depends_on_nothing_but_its_seed():
    many = noise_for(10, 70).normal([3, 4], Purpose.START)
    assert noise_for(10, 1, first=42).normal([3, 4], Purpose.START)[0].equal(many[42])
    backwards = Noise(tuple(range(79, 9, -1))).normal([3, 4], Purpose.START)
    assert backwards.flip(0).equal(many)


@pytest.mark.parametrize("shape", [(5,), (3, 7), (3, 32, 32)])
def test_numbers_are_those_of_numpys_philox(shape: tuple[int, ...]):
    """To the bit, image by image, from a new generator: the definition that pictures rest on."""
    seeds = (3, 0, 2**64 - 1, -1, 2**63, 3)
    for number in (0, 9):
        drawn = Noise(seeds, number).normal(shape, Purpose.CHURN, F64)
        for seed, row in zip(seeds, drawn, strict=True):
            counter = np.array([0, 0, Purpose.CHURN, number], dtype=np.uint64)
            bits = np.random.Philox(key=np.uint64(seed % 2**64), counter=counter)
            assert np.array_equal(row, np.random.Generator(bits).standard_normal(shape))


@pytest.mark.parametrize("seed", [-1, -(2**62), 2**63 - 1, 2**64 - 2, 12345678901234567890])
def test_any_seed_works(seed: int):
    a = draw(seed, size=1000)
    assert a.isfinite().all()
    for other in (seed + 1, -seed):
        both = torch.stack([a, draw(other, size=1000)])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.2
    assert a.equal(draw(seed, size=1000))


def test_a_wrong_batch_is_an_error():
    with pytest.raises(ValueError, match="2 seeds, the batch 3 images"):
        noise_for(0, 2).like(torch.zeros(3, 1), Purpose.START)


def test_global_generators_are_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a = draw(7, size=10)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(1)
    assert draw(7, size=10).equal(a)


def test_derived_seeds_depend_on_every_part():
    seeds = {derive_seed(*p) for p in [(0,), (1,), (0, 0), (0, "a"), ("a", 0), ("0",), ("a0",)]}
    assert len(seeds) == 7
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive_seed(0, "a") == derive_seed(0, "a")
