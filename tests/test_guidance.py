"""Guidance against its closed form on Gaussians, and its limits to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from oracles import GaussianOracle
from sfumato.denoiser import Counted
from sfumato.gaussian import Gaussian
from sfumato.guidance import guide
from sfumato.noise import F64, VE, NoiseLevels, NoiseRange, karras, linear_betas
from sfumato.parameterization import (
    Adapted,
    Between,
    edm_preconditioned,
    predicts_noise,
    predicts_x0,
)
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


# --- both branches in one batch ----------------------------------------------------------------


class Labelled(nn.Module):
    """A small network that knows classes, and counts its calls and the images in them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.label = nn.Linear(3, 2, bias=False)
        self.calls: list[int] = []

    def forward(
        self, x: Tensor, level: Tensor, class_labels: Tensor | None = None, tint: float | Tensor = 0
    ) -> Tensor:
        self.calls.append(len(x))
        h = self.conv(x) + level.reshape(-1, 1, 1, 1) + tint
        if class_labels is not None:
            h = h + self.label(class_labels)[:, :, None, None]
        return torch.tanh(h)


def labelled() -> tuple[Labelled, Adapted, Tensor]:
    torch.manual_seed(0)
    network = Labelled()
    return network, edm_preconditioned(network, 0.5), torch.randn(4, 2, 5, 5)


@pytest.mark.parametrize("sigma", [0.7, [0.2, 0.7, 3.0, 50.0]])
def test_both_branches_are_one_call_of_twice_the_batch(sigma: float | list[float]) -> None:
    network, adapted, x = labelled()
    labels = nn.functional.one_hot(torch.tensor([0, 1, 2, 1]), 3).float()
    given = adapted.given(class_labels=labels)
    free = adapted.given(class_labels=torch.zeros_like(labels))
    level = torch.tensor(sigma, dtype=F64)
    guided = Counted(guide(given, free, 2.5, low=0.3, high=10.0))
    together = guided(x, level)
    assert network.calls == [8]
    assert guided.evaluations == 1
    a, b = given(x, level).mean, free(x, level).mean
    inside = ((level > 0.3) & (level <= 10)).reshape(-1, 1, 1, 1)
    expected = torch.where(inside, b + 2.5 * (a - b), a)
    torch.testing.assert_close(together.mean, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.var, given(x, level).var)
    # None in place of zeros is the same here, but only these two calls can tell.
    network.calls.clear()
    apart = guide(given, adapted, 2.5, low=0.3, high=10.0)(x, level)
    assert network.calls == [4, 4]
    torch.testing.assert_close(apart.mean, expected, rtol=0, atol=1e-6)


def test_nothing_is_asked_that_is_not_needed() -> None:
    network, adapted, x = labelled()
    labels = torch.eye(3)[[0, 1, 2, 0]]
    given, free = adapted.given(class_labels=labels), adapted.given(class_labels=0 * labels)
    level = torch.tensor(0.7, dtype=F64)
    alone = given(x, level).mean
    network.calls.clear()
    for never in (guide(given, free, 1.0), guide(given, free, 3.0, low=0.7, high=0.7)):
        assert torch.equal(never(x, level).mean, alone)
    assert network.calls == [4, 4]
    none = guide(given, free, 0.0)(x, level).mean
    torch.testing.assert_close(none, free(x, level).mean, rtol=0, atol=1e-6)


def test_what_differs_in_more_than_values_takes_two_calls() -> None:
    network, adapted, x = labelled()
    labels = torch.eye(3)[[0, 1, 2, 0]]
    given, level = adapted.given(class_labels=labels), torch.tensor(0.7, dtype=F64)
    others = {
        "another network": labelled()[1].given(class_labels=labels),
        "another parameterization": edm_preconditioned(network, 0.7).given(class_labels=labels),
        "another condition": adapted.given(tint=torch.ones(())),
        "a condition for all": adapted.given(class_labels=labels, tint=torch.ones(())),
    }
    for what, other in others.items():
        assert given.beside(other, x, level) is None, what
        out = guide(given, other, 2.0)(x, level).mean
        expected = other(x, level).mean * -1 + 2 * given(x, level).mean
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    assert given.beside(FREE, x, level) is None
    tinted = given.given(tint=torch.ones(()))
    assert tinted.beside(tinted, x, level) is None


def test_a_learned_variance_is_the_conditional_ones() -> None:
    network = nn.Conv2d(2, 4, 1)

    class Told(nn.Module):
        def forward(self, x: Tensor, level: Tensor, image: Tensor) -> Tensor:
            return network(x + image)

    ladder = NoiseLevels.from_betas(linear_betas(30))
    adapted = replace(predicts_noise(Told(), ladder), head=Between())
    x, image = torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4)
    given, free = adapted.given(image=image), adapted.given(image=-image)
    guided = guide(given, free, 2.0).on(ladder.sigma.flip(0))
    out = guided(x, ladder.sigma[7])
    expected = given(x, ladder.sigma[7])
    assert out.var.shape == x.shape
    torch.testing.assert_close(out.var, expected.var)
    assert not torch.equal(out.mean, expected.mean)


# --- autoguidance ------------------------------------------------------------------------------


def test_autoguidance_on_gaussians_is_a_gaussian_of_the_stated_mean() -> None:
    """Good and bad know one distribution, the bad one too broadly: D is linear in x, by hand."""
    good, bad = Told(0.6, 0.04), Told(0.6, 0.16)
    sigma, w = 0.5, 2.0
    s = torch.tensor(sigma, dtype=F64)
    shrink = [var / (var + sigma**2) for var in (0.04, 0.16)]
    slope = shrink[1] + w * (shrink[0] - shrink[1])
    expected = 0.6 + slope * (X - 0.6)
    out = guide(good, bad, w)(X, s)
    torch.testing.assert_close(out.mean, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(out.var, good(X, s).var)
    # The mean of the samples stays, unlike under classifier-free guidance; they draw together.
    grid, x = karras(24), 80 * X + 0.6
    *_, guided = sample(guide(good, bad, w), Heun(), grid, x)
    *_, alone = sample(good, Heun(), grid, x)
    assert float(guided.x.mean()) == pytest.approx(0.6, abs=1e-6)
    assert float(guided.x.std()) < float(alone.x.std())


def test_a_model_is_no_guide_for_itself() -> None:
    _, adapted, x = labelled()
    _, again, _ = labelled()
    for other in (adapted, again):
        *_, a = sample(guide(adapted, other, 3.0), Heun(), karras(6), 80 * x)
        *_, b = sample(adapted, Heun(), karras(6), 80 * x)
        torch.testing.assert_close(a.x, b.x, rtol=1e-5, atol=1e-6)


def test_both_must_know_the_levels_that_are_guided() -> None:
    wide, narrow = Told(0.0, 1.0), Told(0.0, 1.0)
    narrow.range = NoiseRange(0.01, 50.0)
    with pytest.raises(ValueError, match=r"on sigma 0.002 to 80, the other on sigma 0.01 to 50"):
        guide(wide, narrow, 2.0)
    guide(narrow, wide, 2.0)
    guide(wide, narrow, 2.0, low=0.02, high=40.0)
    guide(wide, narrow, 2.0, low=60.0, high=60.0)
    ladders = [NoiseLevels.from_betas(linear_betas(n)).range for n in (30, 40)]
    wide.range, narrow.range = ladders
    with pytest.raises(ValueError, match=r"30 levels, .* 40 levels, "):
        guide(wide, narrow, 2.0)
    narrow.range = NoiseRange(ladders[0].low, ladders[0].high)
    guide(wide, narrow, 2.0)
    with pytest.raises(ValueError, match="the same levels"):
        guide(narrow, wide, 2.0)


def test_both_must_speak_of_the_same_images() -> None:
    class Grey(Told):
        def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
            return Gaussian(x.mean(1, keepdim=True), torch.zeros(()))

    colour = predicts_x0(lambda x, t: x, VE())
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 4\] and \[2, 1, 4, 4\]"):
        guide(colour, Grey(0, 1), 2.0, high=80)(
            torch.zeros(2, 3, 4, 4), torch.tensor(1.0, dtype=F64)
        )
