"""Bits-back coding: what comes back is what went in, and it costs what the bound says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from codec_helpers import as_it_is
from flow_helpers import F64
from likelihood_helpers import Known
from oracles import GaussianOracle
from sfumato.codec import Asker, Lattice, Lossless
from sfumato.codec.stack import OutOfReachError, Stack
from sfumato.errors import CodecError
from sfumato.gaussian import Gaussian
from sfumato.likelihood import elbo
from sfumato.noise import geometric
from sfumato.randomness import noise_for

STD, SIZE, TOP = 0.2, 256, 255
LOW, HIGH = 0.01, 20.0


def images(count: int, seed: int = 0, std: float = STD) -> np.ndarray:
    """Gaussian pixels of 8 bits, [n, d]."""
    x = std * np.random.default_rng(seed).standard_normal((count, SIZE))
    return np.rint((x.clip(-1, 1) + 1) * TOP / 2).astype(np.int64)


def known(low: float = LOW) -> Known:
    """The exact denoiser of those images, the pixels' rounding left out."""
    v = STD**2 * low**2 / (STD**2 + low**2)
    oracle = GaussianOracle.diagonal([STD**2] * SIZE)
    return Known(oracle, low, HIGH, STD**2 + HIGH**2, v)


def coder(streams: int = 2, levels: int = 12, fineness: float = 1.5) -> Lossless:
    return coder_of(known(), streams, levels, fineness)


def coder_of(denoise: Known, streams: int, levels: int, fineness: float = 1.5) -> Lossless:
    """That of a denoiser whose variances are right as they are."""
    sigmas = tuple(geometric(levels, denoise.low, HIGH)[:-1].tolist())
    ask = Asker(denoise, as_it_is(sigmas), (SIZE,), streams)
    return Lossless(ask, Lattice(sigmas, fineness), TOP, math.sqrt(denoise.prior_var))


@pytest.mark.parametrize(("count", "streams"), [(1, 1), (5, 2), (7, 3), (2, 4)])
def test_what_comes_back_is_what_went_in(count: int, streams: int) -> None:
    one = coder(streams)
    original = images(count)
    words, left_out = one.encode(original)
    assert not left_out
    assert len(words) == min(streams, count)
    assert (one.decode(words, count) == original).all()


@pytest.mark.parametrize("fineness", [1.0, 1.5, 4.0])
def test_an_image_costs_what_the_bound_says(fineness: float) -> None:
    """Over and above the first images', which pay the stack's first bits."""
    one = coder(1, fineness=fineness)
    original = images(60)
    short, long = (32 * len(one.encode(original[:n])[0][0]) for n in (20, 60))
    x0 = torch.from_numpy(original[20:]).to(F64) / 127.5 - 1
    grid = torch.tensor(one.lattice.sigmas, dtype=F64)
    bound = elbo(known(), x0, grid, noise_for(0, 40))
    nats = float((bound.total).sum())
    spread = float(bound.total.std()) * math.sqrt(2 * 40)
    assert long - short == pytest.approx(nats / math.log(2), abs=4 * spread / math.log(2) + 64)
    # And the bound of this many levels is the data's own entropy, for the model is exact.
    entropy = 0.5 * math.log2(2 * math.pi * math.e * STD**2 * (TOP / 2) ** 2)
    assert (long - short) / (40 * SIZE) == pytest.approx(entropy, rel=0.015)


def test_a_stacks_first_bits_are_those_of_a_level_or_two() -> None:
    original = images(1)
    x0 = torch.from_numpy(original).to(F64) / 127.5 - 1
    for fineness, most in ((1.0, 6.0), (4.0, 10.0)):
        one = coder(1, fineness=fineness)
        grid = torch.tensor(one.lattice.sigmas, dtype=F64)
        bits = float(elbo(known(), x0, grid, noise_for(0, 1)).total) / math.log(2)
        first = 32 * len(one.encode(original)[0][0]) - bits
        level = SIZE * math.log2(math.sqrt(2 * math.pi * math.e) * fineness)
        assert 0.7 * level < first < most * SIZE * 0.75


def test_streams_do_not_depend_on_each_other() -> None:
    original = images(6)
    three = coder(3).encode(original)[0]
    for stream in range(3):
        (alone,) = coder(1).encode(original[stream::3])[0]
        assert (alone == three[stream]).all()


def test_an_image_far_from_what_the_model_knows_is_left_out() -> None:
    original = images(5)
    original[2, ::7] = TOP

    class Sure(Known):
        """Certain that nothing is far from 0: a pixel of 1 is thousands of deviations off."""

        def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> Gaussian:
            mean = torch.zeros_like(x)
            return Gaussian(mean, torch.full((), 1e-12, dtype=F64))

    sure = Sure(known().oracle, 1e-3, HIGH, 1.0 + HIGH**2, 1e-4)
    original[[0, 1, 3, 4]] = 127
    one = coder_of(sure, 2, 8)
    words, left_out = one.encode(original)
    assert left_out == [2]
    back = one.decode(words, 5, left_out)
    assert (back[2] == 0).all()
    kept = [0, 1, 3, 4]
    assert (back[kept] == original[kept]).all()


def test_streams_that_were_changed_do_not_decode_in_silence() -> None:
    one = coder(1)
    original = images(2)
    (words,), _ = one.encode(original)
    for place in (0, 1, len(words) // 2, len(words) - 2):
        other = words.copy()
        other[place] ^= np.uint32(1 << 9)
        with pytest.raises(CodecError, match=r"did not decode to what was coded|ends before"):
            one.decode([other], 2)
    with pytest.raises(CodecError):
        one.decode([words[: len(words) // 2]], 2)
    with pytest.raises(CodecError):
        one.decode([words], 3)


def test_an_answer_that_is_not_finite_reaches_no_coder() -> None:
    class Broken(Known):
        def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> Gaussian:
            answer = super().__call__(x, sigma)
            return Gaussian(answer.mean * math.nan, answer.var)

    one = coder_of(Broken(known().oracle, LOW, HIGH, 1.0), 1, 8)
    with pytest.raises(CodecError, match=r"answer at sigma 0\.01 is not finite"):
        one.encode(images(1))
    stack = Stack(np.arange(64, dtype=np.uint32), fresh=True)
    bad = np.array([0.0, math.nan])
    for mean, std in ((bad, np.ones(2)), (np.zeros(2), bad), (np.zeros(2), np.array([1.0, 0.0]))):
        with pytest.raises(CodecError, match="not finite"):
            stack.push(np.zeros(2, np.int64), mean, std)
        with pytest.raises(CodecError, match="not finite"):
            stack.pop(mean, std)
    with pytest.raises(ValueError, match="at most 1 images"):
        one.ask(np.zeros((2, SIZE)), LOW)


def test_a_stack_gives_back_what_was_pushed_and_its_length_is_their_surprise() -> None:
    generator = np.random.default_rng(0)
    mean, std = 1000 * generator.standard_normal(5000), generator.uniform(0.3, 30, 5000)
    numbers = np.rint(mean + std * generator.standard_normal(5000)).astype(np.int64)
    stack = Stack(np.zeros(8, np.uint32), fresh=True)
    before = stack.words(all_of_it=True)
    stack.push(numbers, mean, std)
    bits = 32 * (len(stack.words(all_of_it=True)) - len(before))
    surprise = -Gaussian(torch.from_numpy(mean), torch.from_numpy(std**2)).log_mass(
        torch.from_numpy(numbers).to(F64), 0.5, -1e9, 1e9
    )
    assert bits == pytest.approx(float(surprise.sum()) / math.log(2), abs=64)
    assert (stack.pop(mean, std) == numbers).all()
    assert (stack.words(all_of_it=True) == before).all()
    far = numbers.copy()
    far[3] += 10_000
    with pytest.raises(OutOfReachError):
        stack.push(far, mean, std)
    assert (stack.words(all_of_it=True) == before).all()


def test_popped_numbers_have_the_distribution_asked_for() -> None:
    words = np.random.default_rng(1).integers(0, 2**32, 40_000, dtype=np.uint32)
    stack = Stack(words, fresh=True)
    n, std = 100_000, 2.0
    values = stack.pop_near(np.full(n, 0.3), std) - 0.3
    assert float(values.mean()) == pytest.approx(0, abs=4 * std / n**0.5)
    assert float(values.std()) == pytest.approx(math.sqrt(std**2 + 1 / 12), rel=0.01)
    kurtosis = float((values**4).mean() / (values**2).mean() ** 2)
    assert kurtosis == pytest.approx(3, abs=0.1)
    assert np.abs(values).max() <= 9 * std + 2
    wide = np.full(100, 4000.0)  # farther than 512 cells off: the reach grows with it
    far = np.rint(wide * np.random.default_rng(0).standard_normal(100)).astype(np.int64)
    stack.push(far, np.zeros(100), wide)
    assert (stack.pop(np.zeros(100), wide) == far).all()
    with pytest.raises(CodecError, match="does not end like one"):
        Stack(np.array([1, 2, 0], np.uint32))
