"""Brownian noise: one path whatever the grid, with the right law."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from oracles import F64
from sfumato.randomness import BrownianNoise, Noise, Purpose, brownian_for, noise_for

TIMES = [0.03, 0.11, 0.125, 0.3, 0.77, 1.0, 1.5, 8.0, 8.25, 1000.0]


def walked(noise: Noise, x: Tensor, times: list[float]) -> Tensor:
    """The path's steps between these times, [len - 1, *x.shape]."""
    return torch.stack([
        noise.between(x, Purpose.TRANSITION, a, b) * math.sqrt(abs(b - a))
        for a, b in pairwise(times)
    ])  # fmt: skip


def test_steps_add_up_whatever_lies_between():
    noise, x = brownian_for(0, 2), torch.zeros(2, 3, 4, dtype=F64)
    whole = walked(noise, x, [TIMES[0], TIMES[-1]])[0]
    for times in (TIMES, TIMES[::3], [0.03, 0.03 + 2**-50, 2.0, 999.0, 1000.0]):
        torch.testing.assert_close(walked(noise, x, times).sum(0), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(walked(noise, x, TIMES[::-1]).sum(0), -whole, rtol=0, atol=1e-12)


def test_a_path_depends_on_seed_and_purpose_alone():
    """Not on what was asked before, on companions in the batch, or on the draw number."""
    x = torch.zeros(3, 5, dtype=F64)
    first = brownian_for(4, 3).between(x, Purpose.TRANSITION, 0.3, 0.7)
    again = brownian_for(5, 3).at(17).between(x, Purpose.TRANSITION, 0.3, 0.7)
    assert first[1:].equal(again[:2])
    assert not first.isclose(
        brownian_for(4, 3).between(x, Purpose.CHURN, 0.3, 0.7), atol=1e-3
    ).all()
    single = brownian_for(4, 3).between(x.float(), Purpose.TRANSITION, 0.3, 0.7)
    assert single.equal(first.float())


def test_steps_are_standard_normal_and_independent():
    """Within an octave, over its borders, next to each other down to 1e-9 of the time."""
    times = sorted([*TIMES, 0.3 * (1 + 1e-9), 0.3 * (1 + 2e-9), 0.26, 0.27])
    x, count = torch.zeros(1, 100_000, dtype=F64), 100_000
    steps = walked(brownian_for(1, 1), x, times)[:, 0]
    steps = steps / torch.tensor(times, dtype=F64).diff().sqrt()[:, None]
    for step in steps:
        assert stats.kstest(step.numpy(), "norm").pvalue > 1e-4
    correlation = steps @ steps.T / count - torch.eye(len(steps), dtype=F64)
    assert correlation.abs().max() < 5.5 / count**0.5


def test_it_is_independent_of_other_noise():
    x, count = torch.zeros(1, 100_000, dtype=F64), 100_000
    noise = brownian_for(2, 1)
    path = [noise.between(x, p, 1.0, t)[0] for p in (Purpose.TRANSITION, Purpose.CHURN)
            for t in (1.5, 2.0)]  # fmt: skip
    plain = [noise_for(2, 1).at(n).like(x, p)[0] for p in Purpose for n in (0, 1)]
    for a in path:
        for b in plain:
            assert abs(float(a @ b)) / count < 5.5 / count**0.5


def test_everything_else_is_plain_noise():
    a, b, x = brownian_for(3, 2).at(5), noise_for(3, 2).at(5), torch.zeros(2, 7)
    assert isinstance(a, BrownianNoise)
    assert a.like(x, Purpose.CHURN).equal(b.like(x, Purpose.CHURN))
    assert b.between(x, Purpose.CHURN, 0.1, 0.2).equal(b.like(x, Purpose.CHURN))


def test_plain_noise_is_numpys_philox_at_these_counters():
    """Which numbers a draw is made of belongs to the recipe of every saved picture."""
    counter = np.array([0, 0, int(Purpose.CHURN), 5], dtype=np.uint64)
    theirs = np.random.Generator(np.random.Philox(key=np.uint64(3), counter=counter))
    draw = noise_for(3, 1).at(5).normal([7], Purpose.CHURN, F64)[0]
    assert draw.tolist() == theirs.standard_normal(7).tolist()


@pytest.mark.parametrize(
    ("start", "stop"), [(0.0, 1.0), (1.0, 1.0), (-1.0, 2.0), (1.0, math.inf), (math.nan, 1.0)]
)
def test_times_that_are_none(start: float, stop: float):
    with pytest.raises(ValueError, match="two positive times"):
        brownian_for(0, 1).between(torch.zeros(1, 2), Purpose.TRANSITION, start, stop)


def test_a_wrong_batch_is_an_error():
    with pytest.raises(ValueError, match="2 seeds, the batch 3 images"):
        brownian_for(0, 2).between(torch.zeros(3, 1), Purpose.TRANSITION, 1.0, 2.0)
