"""Guidance against its closed form on Gaussians, and its limits to the bit."""

from __future__ import annotations

import pytest
import torch

from oracles import GaussianOracle
from sfumato.guidance import guide
from sfumato.noise import F64, VE, NoiseRange, karras
from sfumato.parameterization import predicts_x0
from sfumato.protocols import is_denoiser
from sfumato.sampling import sample
from sfumato.solvers import Heun


class Told:
    """The exact denoiser of N(mean, var), with what a `Denoiser` must tell."""

    def __init__(self, mean: float, var: float) -> None:
        self.mean, self.var, self.bound = mean, var, 0
        self.oracle = GaussianOracle.diagonal([var], mean)
        self.range = NoiseRange(0.002, 80.0)
        self.prior = self.decoder_var = None

    def on(self, sigmas: torch.Tensor) -> Told:
        self.bound += 1
        return self

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor):
        return self.oracle(x, sigma)


GIVEN, FREE = Told(0.6, 0.04), Told(0.0, 0.25)
X = torch.linspace(-3, 3, 7, dtype=F64)[:, None]


@pytest.mark.parametrize("sigma", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_the_mean_is_the_stated_combination(sigma: float, scale: float) -> None:
    s = torch.tensor(sigma, dtype=F64)
    given = (0.04 * X + sigma**2 * 0.6) / (0.04 + sigma**2)
    free = 0.25 * X / (0.25 + sigma**2)
    out = guide(GIVEN, FREE, scale)(X, s)
    torch.testing.assert_close(out.mean, free + scale * (given - free), rtol=1e-12, atol=1e-12)


def test_scale_one_is_the_conditional_denoiser_to_the_bit() -> None:
    s = torch.tensor(0.7, dtype=F64)
    assert torch.equal(guide(GIVEN, FREE, 1.0)(X, s).mean, GIVEN(X, s).mean)


def test_the_interval_is_half_open_and_an_empty_one_is_no_guidance() -> None:
    inside, at_low = torch.tensor(1.0, dtype=F64), torch.tensor(0.5, dtype=F64)
    guided = guide(GIVEN, FREE, 3.0, low=0.5, high=1.0)
    assert not torch.equal(guided(X, inside).mean, GIVEN(X, inside).mean)
    assert torch.equal(guided(X, at_low).mean, GIVEN(X, at_low).mean)
    never = guide(GIVEN, FREE, 3.0, low=1.0, high=1.0)
    grid = karras(8)
    x = 80 * X
    *_, a = sample(never, Heun(), grid, x)
    *_, b = sample(GIVEN, Heun(), grid, x)
    assert torch.equal(a.x, b.x)


def test_every_image_is_guided_by_its_own_level() -> None:
    """A batch at mixed levels is what each image is by itself, inside the interval or not."""
    guided = guide(GIVEN, FREE, 3.0, low=0.5, high=1.0)
    sigma = torch.tensor([0.2, 0.5, 0.7, 1.0, 1.1, 30.0, 0.9], dtype=F64)
    together = guided(X, sigma).mean
    for i, s in enumerate(sigma):
        torch.testing.assert_close(together[i : i + 1], guided(X[i : i + 1], s).mean)
    moved = (together != GIVEN(X, sigma).mean).flatten()
    assert moved.tolist() == [False, False, True, True, False, False, True]
    # The same for images [B, C, H, W]: 1 + 3 (2 - 1) inside, 2 outside.
    two, one = (predicts_x0(lambda x, t, v=v: torch.full_like(x, v), VE()) for v in (2.0, 1.0))
    pictures = guide(two, one, 3.0, low=0.5, high=1.0)(torch.zeros(7, 3, 2, 2), sigma).mean
    expected = torch.tensor([2.0, 2.0, 4.0, 4.0, 2.0, 2.0, 4.0])[:, None, None, None]
    assert torch.equal(pictures, expected.expand(7, 3, 2, 2))


def test_guidance_moves_samples_towards_the_condition() -> None:
    grid, x = karras(24), 80 * X
    ends = []
    for scale in (0.0, 1.0, 2.0):
        *_, last = sample(guide(GIVEN, FREE, scale), Heun(), grid, x)
        ends.append(float(last.x.mean()))
    assert ends[0] == pytest.approx(0.0, abs=1e-3)
    # The exact flow of N(0.6, 0.04) from a mean of 0 at sigma = 80.
    assert ends[1] == pytest.approx(0.6 * (1 - 0.2 / (0.04 + 80**2) ** 0.5), abs=1e-3)
    assert ends[2] > 0.65


def test_it_is_a_denoiser_and_rebinds_both() -> None:
    guided = guide(GIVEN, FREE, 2.0)
    assert is_denoiser(guided)
    before = GIVEN.bound, FREE.bound
    guided.on(karras(3))
    assert (GIVEN.bound, FREE.bound) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(
    ("scale", "low", "high"), [(-1.0, 0.0, 1.0), (float("nan"), 0.0, 1.0), (2.0, 1.0, 0.5)]
)
def test_what_makes_no_sense_is_refused(scale: float, low: float, high: float) -> None:
    with pytest.raises(ValueError, match="guidance needs"):
        guide(GIVEN, FREE, scale, low=low, high=high)
