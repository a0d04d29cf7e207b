"""Relative entropy coding: samples of q, at the cost it states, the same on both sides."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from codec_helpers import as_it_is
from flow_helpers import F64
from likelihood_helpers import Known
from oracles import GaussianOracle
from sfumato.codec import Asker, Lossy, Profile, measure_profile
from sfumato.codec.relative_entropy import Chunks, Codebook, choose, kl_bits, place_model
from sfumato.errors import CodecError
from sfumato.gaussian import Gaussian
from sfumato.likelihood import elbo
from sfumato.noise import geometric
from sfumato.randomness import noise_for

STD, SIZE = 0.3, 400
LOW, HIGH = 0.08, 20.0


def known(factor: float = 1.0) -> Known:
    """Exact for Gaussian values of this deviation, but for a factor on what it says of var."""
    exact = GaussianOracle.diagonal([STD**2] * SIZE)

    def oracle(x: torch.Tensor, sigma: torch.Tensor) -> Gaussian:
        answer = exact(x, sigma)
        return Gaussian(answer.mean, factor * answer.var)

    return Known(oracle, LOW, HIGH, STD**2 + HIGH**2, 1e-4)


def values(count: int, seed: int = 0) -> np.ndarray:
    return STD * np.random.default_rng(seed).standard_normal((count, SIZE))


def coder(levels: int = 12, batch: int = 4, search: int = 16) -> Lossy:
    sigmas = tuple(geometric(levels, LOW, HIGH)[:-1].tolist())
    ask = Asker(known(), as_it_is(sigmas), (SIZE,), batch)
    return Lossy(ask, sigmas, math.sqrt(STD**2 + HIGH**2), search)


@pytest.mark.parametrize("ratio", [1.0, 0.8])
def test_what_is_chosen_is_drawn_from_q(ratio: float) -> None:
    """Where there are candidates enough: moments, and the distribution along what q knows."""
    d, rounds = 30, 1500
    book = Codebook(candidates_log2=15)
    generator = np.random.default_rng(0)
    mean = 0.35 * generator.standard_normal(d)
    bits = float(kl_bits(mean, np.full(d, ratio)).sum())
    assert 1 < bits < 5
    drawn = np.empty((rounds, d))
    for i in range(rounds):
        begins = generator.choice(book.count, d, replace=False)
        signs = generator.choice([-1.0, 1.0], d)
        place = choose(book, mean * signs, np.full(d, ratio), begins, generator)
        drawn[i] = signs * book.candidate(place, begins)
    error = ratio / rounds**0.5
    assert (np.abs(drawn.mean(0) - mean) < 4.5 * error).all()
    assert np.abs((drawn - mean).var(0) / ratio**2 - 1).max() < 5.5 * (2 / rounds) ** 0.5
    along = (drawn - mean) @ mean / (ratio * np.linalg.norm(mean))
    assert stats.kstest(along, "norm").pvalue > 1e-3
    whole = ((drawn - mean) / ratio).ravel()
    assert stats.kstest(whole, "norm").pvalue > 1e-3
    # Under p instead the same tests fail: they can tell.
    assert stats.kstest(drawn @ mean / np.linalg.norm(mean), "norm").pvalue < 1e-6


@pytest.mark.parametrize("bits", [3.0, 8.0])
def test_a_place_costs_its_own_entropy(bits: float) -> None:
    """Within 0.1 bits, and little more than the divergence: about 3 bits."""
    d, rounds = 40, 1200
    book = Codebook(candidates_log2=16)
    generator = np.random.default_rng(1)
    mean = generator.standard_normal(d)
    mean *= math.sqrt(2 * bits * math.log(2)) / np.linalg.norm(mean)
    octaves = np.empty(rounds, int)
    for i in range(rounds):
        begins = generator.choice(book.count, d, replace=False)
        place = choose(book, mean, np.ones(d), begins, generator)
        octaves[i] = (place + 1).bit_length() - 1
    at, std = place_model(bits, 16)
    cells = Gaussian(torch.tensor(at).double(), torch.tensor(std**2).double())
    octave = torch.arange(17, dtype=F64)
    coded = -cells.log_mass(octave, 0.5, 0.0, 16.0) / math.log(2)
    cost = float(coded[octaves].mean())
    counts = np.bincount(octaves, minlength=17) / rounds
    some = counts[counts > 0]
    entropy = -float((some * np.log2(some)).sum())
    assert entropy <= cost < entropy + 0.1 + 17 / (2 * rounds * math.log(2))
    assert bits + 1 < cost + octaves.mean() < bits + 4


def test_chunks_share_out_all_values_by_what_they_cost() -> None:
    expected = np.random.default_rng(0).uniform(0, 0.2, 500)
    chunks = Chunks.of(expected, 7, 3, 1 << 18)
    assert sorted(chunks.order.tolist()) == list(range(500))
    sums = [expected[chunks.order[part]].sum() for part in chunks.slices()]
    assert max(sums) - min(sums) < 2 * expected.max()
    again = Chunks.of(expected, 7, 3, 1 << 18)
    assert (again.order == chunks.order).all()
    assert (again.signs == chunks.signs).all()
    assert (again.begins == chunks.begins).all()
    assert len(set(chunks.begins.tolist())) == 500
    assert set(chunks.signs.tolist()) == {-1.0, 1.0}
    assert (Chunks.of(expected, 7, 4, 1 << 18).order != chunks.order).any()
    # However the cost lies, no chunk is empty.
    lone = np.zeros(10) + 1e-9
    lone[4] = 1.0
    assert all(
        b > a
        for a, b in zip(*(Chunks.of(lone, 10, 0, 1 << 18).edges[i:] for i in (0, 1)), strict=False)
    )


def test_both_sides_walk_the_same_states_to_the_bit() -> None:
    original = values(5)
    one = coder()
    words, pictures = one.encode(original)
    shown = list(coder().decode(words, 5))
    assert [one.index for one in shown] == list(range(12))
    assert (shown[-1].picture == pictures).all()
    # Ever nearer, and in the end as near as the exact posterior says.
    misses = [float(np.square(s.picture - original).mean()) for s in shown]
    assert misses[0] == pytest.approx(STD**2, rel=0.2)
    last = one.sigmas[-1]
    assert misses[-1] == pytest.approx(STD**2 * last**2 / (STD**2 + last**2), rel=0.1)


def test_the_receivers_noise_is_that_of_the_level() -> None:
    """x - x0 at every level: N(0, sigma^2), not correlated with the image, nor between values."""
    original = values(6)
    one = coder()
    words, _ = one.encode(original)
    for shown in list(coder().decode(words, 6))[4:]:
        noise = ((shown.x - original) / shown.sigma).ravel()
        n = len(noise)
        assert abs(noise.mean()) < 4.5 / n**0.5
        assert noise.var() == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
        assert stats.kstest(noise, "norm").pvalue > 1e-4
        assert abs(np.corrcoef(noise, original.ravel())[0, 1]) < 5 / n**0.5
        rows = noise.reshape(6, -1)
        assert np.abs(np.corrcoef(rows) - np.eye(6)).max() < 5 / SIZE**0.5
        assert abs(np.corrcoef(rows[:, 1:].ravel(), rows[:, :-1].ravel())[0, 1]) < 5 / n**0.5


@pytest.mark.parametrize(("search", "most"), [(16, 1.40), (20, 1.25)])
def test_it_costs_little_more_than_the_bound(search: int, most: float) -> None:
    original = values(12)
    one = coder(search=search)
    words, _ = one.encode(original)
    x0 = torch.from_numpy(np.rint((original.clip(-1, 1) + 1) * 32767.5) / 32767.5 - 1)
    grid = torch.tensor(one.sigmas, dtype=F64)
    bound = elbo(known(), x0, grid, noise_for(0, 12), half_bin=1 / 65535)
    bits = float(bound.levels.sum()) / math.log(2)
    assert bits < 32 * len(words) < most * bits


def test_the_beginning_of_a_stream_decodes_as_far_as_it_surely_goes() -> None:
    original = values(3)
    words, _ = coder().encode(original)
    whole = list(coder().decode(words, 3))
    reached: list[int] = []
    for cut in (0, 1, 3, 8, len(words) // 2, len(words) - 1, len(words)):
        shown = list(coder().decode(words[:cut], 3, whole=False))
        reached.append(len(shown))
        for a, b in zip(shown, whole, strict=False):
            assert (a.picture == b.picture).all()
    assert reached[0] == 1
    assert reached == sorted(reached)
    assert 12 > reached[-2] >= 10
    assert reached[4] > 3


def test_a_stream_that_was_changed_does_not_decode_in_silence() -> None:
    words, _ = coder().encode(values(3))
    with pytest.raises(CodecError, match="did not decode"):
        list(coder().decode(words[: len(words) // 2], 3))
    failed = tried = 0
    for place in range(0, len(words), 3):
        tried += 1
        other = words.copy()
        other[place] ^= np.uint32(1 << 20)
        try:
            list(coder().decode(other, 3))
        except CodecError:
            failed += 1
    # Not all can be told from another stream; a file has checksums besides.
    assert failed > 0.8 * tried


def test_the_values_themselves_end_a_staged_stream() -> None:
    top = 255
    pixels = np.rint((values(3).clip(-1, 1) + 1) * top / 2).astype(np.int64)
    words, _ = coder().encode(pixels / (top / 2) - 1, values=pixels, top=top)
    assert (coder().decode_values(words, 3, top) == pixels).all()


def measured(factor: float, count: int = 48) -> tuple[Profile, torch.Tensor]:
    x0 = torch.from_numpy(values(count, seed=2).clip(-1, 1))
    grid = geometric(20, LOW, HIGH)[:-1]
    return measure_profile(known(factor), x0, grid, noise_for(0, count), half_bin=1 / 255), grid


@pytest.mark.parametrize("factor", [1.0, 0.02, 0.0])
def test_a_profile_puts_the_variance_right(factor: float) -> None:
    profile, grid = measured(factor)
    for sigma, rmse in zip(grid.tolist(), profile.rmse, strict=True):
        exact = STD**2 * sigma**2 / (STD**2 + sigma**2)
        told = profile.variance(torch.tensor(factor * exact, dtype=F64), sigma)
        assert float(told) == pytest.approx(exact, rel=0.05)
        assert rmse**2 == pytest.approx(exact, rel=0.05)
    low = STD**2 * LOW**2 / (STD**2 + LOW**2)
    assert profile.sigmas[-1] == pytest.approx(LOW)  # far above a pixel's step
    assert profile.decoder == pytest.approx(1 - 1 / (3 * 255**2) / low, rel=0.05)


@pytest.mark.parametrize("low", [1e-3, 1e-6])
def test_a_profile_ends_where_pixels_are_coarser_than_the_noise(low: float) -> None:
    x0 = torch.from_numpy(np.rint((values(32, seed=2).clip(-1, 1) + 1) * 127.5) / 127.5 - 1)
    grid = geometric(40, low, HIGH)[:-1]
    fine = Known(GaussianOracle.diagonal([STD**2] * SIZE), low, HIGH, STD**2 + HIGH**2)
    profile = measure_profile(fine, x0, grid, noise_for(0, 32), half_bin=1 / 255)
    assert 1e-3 < profile.sigmas[-1] < 0.1
    # So levels and pixels together cost what the pixels' entropy is.
    entropy = 0.5 * math.log2(2 * math.pi * math.e * STD**2 * 127.5**2)
    last = profile.sigmas[-1]
    v = STD**2 * last**2 / (STD**2 + last**2)
    rest = 0.5 * math.log2(2 * math.pi * math.e * v * 127.5**2)
    assert profile.bits[-1] / SIZE + rest < 1.06 * entropy


def test_a_profile_that_does_not_fit_together_is_refused() -> None:
    good = as_it_is((3.0, 1.0, 0.2))
    for change in (
        {"sigmas": (3.0, 1.0, 1.0)},
        {"scale": (1.0, 1.0)},
        {"extra": (0.0, -1.0, 0.0)},
        {"steps": (0, 1)},
        {"steps": (0, 2, 1)},
        {"bits": (0.0, 1.0)},
        {"decoder": 0.0},
        {"rmse": (0.1, math.nan, 0.1)},
    ):
        with pytest.raises(ValueError, match="does not fit together"):
            replace(good, **change)  # type: ignore[arg-type]


def test_a_diverged_network_has_no_profile() -> None:
    def diverged(x: torch.Tensor, sigma: torch.Tensor) -> Gaussian:
        return Gaussian(x * math.nan, torch.zeros(()))

    x0 = torch.from_numpy(values(4))
    with pytest.raises(CodecError, match="answer at sigma 20 is not finite"):
        measure_profile(
            diverged, x0, geometric(5, LOW, HIGH)[:-1], noise_for(0, 4), half_bin=1 / 255
        )


def test_a_profiles_steps_cost_what_it_says() -> None:
    profile, _ = measured(1.0)
    assert profile.steps[0] == 0
    assert profile.steps[-1] == len(profile.sigmas) - 1
    sigmas = [profile.sigmas[place] for place in profile.steps]
    nats = 0.0
    for sigma, s, bits in zip(sigmas, sigmas[1:], profile.bits[1:], strict=False):
        keep, v = (s / sigma) ** 2, STD**2 * sigma**2 / (STD**2 + sigma**2)
        nats += SIZE * 0.5 * math.log1p((1 - keep) * v / s**2)
        assert bits == pytest.approx(nats / math.log(2), rel=0.06, abs=0.5)
    assert profile.bits[0] == 0
    fewer = profile.every(5)
    assert len(fewer) == 5
    assert (fewer[0], fewer[-1]) == (profile.sigmas[0], profile.sigmas[-1])
    assert profile.every(1000) == profile.sigmas
