"""The bound against closed forms on Gaussian data, and its estimate against the whole sum.

With the exact posterior variance v, a step from sigma to s costs log(1 + (1 - k) v / s^2) / 2 nats
a dimension in the mean, k = (s / sigma)^2; with var = 0 it costs (1/s^2 - 1/sigma^2) v / 2.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flow_helpers import F64
from likelihood_helpers import Known
from oracles import GaussianOracle, Mixture
from sfumato.denoiser import Clipped
from sfumato.diffusion import decoder_term, level_term, prior_term
from sfumato.gaussian import Gaussian, tanh_log_mass
from sfumato.likelihood import bound_grid, elbo, estimate_elbo, rate_distortion
from sfumato.noise import NoiseLevels, geometric, linear_betas
from sfumato.randomness import noise_for

STD = 0.2
HALF = 1 / 65535
LOW, HIGH = 0.0100005, 157.407


def data(count: int = 64, size: int = 256) -> Tensor:
    """Gaussian pixels of 16 bits."""
    x = STD * torch.randn(count, size, dtype=F64, generator=torch.Generator().manual_seed(0))
    return ((x.clamp(-1, 1) + 1) / (2 * HALF)).round() * 2 * HALF - 1


def posterior_var(sigma: float) -> float:
    return STD**2 * sigma**2 / (STD**2 + sigma**2)


def known(*, no_var: bool = False) -> Known:
    oracle = GaussianOracle.diagonal([STD**2] * 256)
    return Known(oracle, LOW, HIGH, STD**2 + HIGH**2, posterior_var(LOW), no_var)


def ladder(count: int) -> Tensor:
    """So many levels of DDPM's, both ends among them, highest first."""
    levels = NoiseLevels.from_betas(linear_betas(1000)).sigma
    grid = levels[torch.linspace(0, 999, count).round().long()].flip(0)
    return grid.clamp(LOW, HIGH)


def cost(sigma: float, s: float, *, no_var: bool) -> float:
    keep, v = (s / sigma) ** 2, posterior_var(sigma)
    return (1 - keep) * v / (2 * s**2) if no_var else 0.5 * math.log1p((1 - keep) * v / s**2)


@pytest.mark.parametrize("no_var", [False, True])
def test_every_term_is_its_closed_form(no_var: bool) -> None:
    x0, grid = data(), ladder(12)
    bound = elbo(known(no_var=no_var), x0, grid, noise_for(3, len(x0)), half_bin=HALF)
    spread = bound.levels.std(0) / len(x0) ** 0.5
    for i, (sigma, s) in enumerate(zip(grid.tolist(), grid[1:].tolist(), strict=False)):
        expected = 256 * cost(sigma, s, no_var=no_var)
        assert abs(float(bound.levels[:, i].mean()) - expected) < 5 * float(spread[i]) + 1e-6
    v = posterior_var(LOW)
    entropy_of_rest = 0.5 * math.log(2 * math.pi * math.e * v) - math.log(2 * HALF)
    assert float(bound.decoder.mean()) / 256 == pytest.approx(entropy_of_rest, abs=0.02)
    # KL(N(x0, high^2) || N(0, std^2 + high^2)) in the mean over x0
    mutual = 0.5 * math.log1p((STD / HIGH) ** 2)
    assert float(bound.prior.mean()) / 256 == pytest.approx(mutual, rel=0.02)
    assert bound.prior.dtype == bound.total.dtype == F64
    torch.testing.assert_close(bound.total, bound.prior + bound.levels.sum(1) + bound.decoder)
    torch.testing.assert_close(bound.bits_per_dim, bound.total / (256 * math.log(2)))


@pytest.mark.parametrize("count", [3, 30, 300])
def test_on_gaussian_data_the_exact_variance_makes_the_bound_tight(count: int) -> None:
    """Each step back is then Gaussian, exactly; without a variance the bound stays above."""
    x0 = data()
    truth = 0.5 * math.log(2 * math.pi * math.e * STD**2) - math.log(2 * HALF)
    # These images' own, for their entropy is known to half a hundredth only.
    theirs = truth + 0.5 * (float(x0.square().mean()) / STD**2 - 1)
    for no_var in (False, True):
        bound = elbo(known(no_var=no_var), x0, ladder(count), noise_for(0, 64), half_bin=HALF)
        gap = float(bound.total.mean()) / 256 - theirs
        steps = zip(ladder(count).tolist(), ladder(count)[1:].tolist(), strict=False)
        rest = 0.5 * math.log(2 * math.pi * math.e * posterior_var(LOW)) - math.log(2 * HALF)
        expected = sum(cost(a, b, no_var=no_var) for a, b in steps) + rest - truth
        assert gap == pytest.approx(expected, rel=0.03, abs=0.02)
        assert expected > 0.4 if no_var else abs(expected) < 1e-5


def test_on_a_mixture_the_bound_falls_to_the_entropy() -> None:
    mixture = Mixture(centres=(-0.5, 0.1, 0.6), width=0.05)
    generator = torch.Generator().manual_seed(0)
    pick = torch.multinomial(
        torch.tensor(mixture.weights, dtype=F64), 64 * 256, replacement=True, generator=generator
    )
    x0 = torch.tensor(mixture.centres, dtype=F64)[pick] + mixture.width * torch.randn(
        64 * 256, dtype=F64, generator=generator
    )
    theirs = -float(mixture.pdf(x0, 0.0).log().mean()) - math.log(2 * HALF)
    x0 = ((x0.reshape(64, 256) + 1) / (2 * HALF)).round() * 2 * HALF - 1
    low, high = 0.002, 20.0
    v = mixture.width**2 * low**2 / (mixture.width**2 + low**2)
    gaps: list[float] = []
    for count in (4, 16, 64, 256):
        known_mixture = Known(mixture, low, high, mixture.var() + high**2, v)
        grid = geometric(count, low, high)
        bound = elbo(known_mixture, x0, grid, noise_for(0, 64), half_bin=HALF)
        gaps.append(float(bound.total.mean()) / 256 - theirs)
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0
    assert abs(gaps[3]) < 0.02


def test_the_estimate_is_the_whole_sums_terms_times_their_strata() -> None:
    x0, grid, noise = data(8), ladder(20), noise_for(5, 8)
    whole = elbo(known(), x0, grid, noise, half_bin=HALF)
    part = estimate_elbo(known(), x0, grid, noise, draws=4, half_bin=HALF)
    sizes = (torch.arange(5) * 19 // 4).diff()
    torch.testing.assert_close(part.prior, whole.prior)
    torch.testing.assert_close(part.decoder, whole.decoder)
    for image in range(8):
        chosen = part.levels[image].nonzero()[:, 0]
        assert len(chosen) == 4
        edges = torch.arange(5) * 19 // 4
        for stratum, index in enumerate(chosen.tolist()):
            assert edges[stratum] <= index < edges[stratum + 1]
            torch.testing.assert_close(
                part.levels[image, index], sizes[stratum] * whole.levels[image, index]
            )
            torch.testing.assert_close(part.error[image, index], whole.error[image, index])
    assert int(part.error.isnan().sum()) == 8 * (20 - 5)


def test_every_step_of_a_stratum_is_as_likely() -> None:
    x0 = data(1).expand(2000, -1)
    part = estimate_elbo(known(), x0, ladder(9), noise_for(0, 2000), draws=2, half_bin=HALF)
    counts = (part.levels != 0).sum(0)
    assert int(counts.sum()) == 4000
    assert (counts - 500).abs().max() < 4.5 * (2000 * 0.25 * 0.75) ** 0.5


def test_all_levels_drawn_is_the_whole_sum() -> None:
    x0, noise = data(3), noise_for(1, 3)
    whole = elbo(known(), x0, ladder(6), noise, half_bin=HALF)
    part = estimate_elbo(known(), x0, ladder(6), noise, draws=50, half_bin=HALF)
    torch.testing.assert_close(part.total, whole.total)


def test_an_image_has_its_bound_whatever_its_batch() -> None:
    x0 = data(4)
    whole = elbo(known(), x0, ladder(5), noise_for(0, 4), half_bin=HALF)
    alone = elbo(known(), x0[2:3], ladder(5), noise_for(2, 1), half_bin=HALF)
    torch.testing.assert_close(alone.total, whole.total[2:3], rtol=1e-12, atol=0)


def test_a_samplers_grid_is_taken_without_its_zero() -> None:
    x0, noise = data(2), noise_for(0, 2)
    grid = ladder(5)
    with_zero = elbo(
        known(), x0, torch.cat([grid, torch.zeros(1, dtype=F64)]), noise, half_bin=HALF
    )
    assert torch.equal(with_zero.total, elbo(known(), x0, grid, noise, half_bin=HALF).total)


def test_one_level_is_prior_and_decoder() -> None:
    x0 = data(2)
    bound = elbo(known(), x0, [HIGH], noise_for(0, 2), half_bin=HALF)
    assert bound.levels.shape == (2, 0)
    torch.testing.assert_close(bound.total, bound.prior + bound.decoder)


def test_few_levels_lie_evenly_in_log_sigma() -> None:
    limits = NoiseLevels.from_betas(linear_betas(1000)).range
    assert limits.levels is not None
    grid = bound_grid(limits, 12)
    assert float(grid[0]) == limits.high
    assert float(grid[-1]) == limits.low
    assert all(bool((limits.levels == level).any()) for level in grid)
    ratios = grid[:-1] / grid[1:]
    even = (limits.high / limits.low) ** (1 / 11)
    # Low on DDPM's ladder the next level is 1.5 times as high.
    assert ratios.log().mean() == pytest.approx(math.log(even), rel=0.1)
    assert ((ratios / even).log().abs() < 0.35).all()
    with pytest.raises(ValueError, match="two levels at least, not 1"):
        bound_grid(limits, 1)


def test_rate_and_distortion_of_gaussian_data() -> None:
    """Known at every level: what was sent so far, and the posterior's deviation."""
    x0, grid = data(), ladder(30)
    curve = rate_distortion(elbo(known(), x0, grid, noise_for(0, 64), half_bin=HALF))
    nats = 0.0
    for i, sigma in enumerate(grid.tolist()):
        if i:
            nats += cost(float(grid[i - 1]), sigma, no_var=False)
        assert float(curve.rate[i]) == pytest.approx(nats / math.log(2), rel=0.02, abs=1e-3)
        expected = 127.5 * posterior_var(sigma) ** 0.5
        assert float(curve.distortion[i]) == pytest.approx(expected, rel=0.02)
    assert (curve.rate.diff() > 0).all()
    assert curve.lossless == pytest.approx(float(curve.rate[-1]) + curve.last)


@pytest.mark.parametrize("gain", [1.0, 0.9])
@pytest.mark.parametrize("extra", [0.0, 0.5, 1.0])
def test_the_bound_is_ddpms_equation_16(gain: float, extra: float) -> None:
    """KL(q(x_T) || p(x_T)) + sum of E KL(q(x_{t-1} | x_t) || p) + H(x0), for any Gaussian model.

    There q knows nothing of x0: on Gaussian data it is the joint distribution's regression.
    """
    grid = ladder(6)
    bin_, last_var, prior_var = 2e-6, 3e-4, 20_000.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)  # exact: all is quadratic
    weights = torch.from_numpy(np.outer(weights, weights).ravel() / weights.sum() ** 2)
    x0, noise = (torch.from_numpy(part.ravel()) for part in np.meshgrid(STD * nodes, nodes))

    def model(x: Tensor, sigma: Tensor) -> Gaussian:
        v = torch.tensor(posterior_var(float(sigma)), dtype=F64)
        return Gaussian(gain * STD**2 / (STD**2 + sigma**2) * x, extra * v)

    def mean(terms: Tensor) -> float:
        return float((weights * terms).sum())

    prior = Gaussian(torch.zeros((), dtype=F64), torch.tensor(prior_var, dtype=F64))
    ours = mean(prior_term(x0[:, None], grid[0], prior))
    theirs = 0.5 * math.log(2 * math.pi * math.e * STD**2)
    ratio = (STD**2 + HIGH**2) / prior_var
    theirs += 0.5 * (ratio - 1 - math.log(ratio))
    for sigma, s in zip(grid, [*grid[1:], torch.zeros((), dtype=F64)], strict=True):
        x = x0 + sigma * noise
        answer = model(x, sigma)
        share = (STD**2 + s**2) / (STD**2 + sigma**2)
        q_var = share * (sigma**2 - s**2)
        if float(s):
            part = Gaussian(answer.mean[:, None], answer.var)
            ours += mean(level_term(x0[:, None], x[:, None], part, sigma, s))
            keep = (s / sigma) ** 2
            p_mean = keep * x + (1 - keep) * answer.mean
            p_var = s**2 * (1 - keep) + (1 - keep) ** 2 * answer.var
        else:
            part, var = Gaussian(answer.mean[:, None], answer.var), torch.tensor(last_var).double()
            ours += mean(decoder_term(x0[:, None], part, var, bin_)) + math.log(2 * bin_)
            p_mean, p_var = answer.mean, torch.tensor(last_var, dtype=F64)
        kl = 0.5 * (q_var / p_var + (share * x - p_mean) ** 2 / p_var - 1 - (q_var / p_var).log())
        theirs += mean(kl)
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_approximate_decoder_is_that_of_gelu() -> None:
    """torch's tanh GELU is z times the same approximation of the normal distribution function."""
    x0 = torch.arange(256, dtype=F64) / 127.5 - 1
    decoder = Gaussian(torch.full((256,), 0.1, dtype=F64), torch.tensor(0.3**2, dtype=F64))

    def cdf(z: Tensor) -> Tensor:
        return torch.nn.functional.gelu(z, approximate="tanh") / z

    expected = cdf((x0 + 1 / 255 - 0.1) / 0.3) - cdf((x0 - 1 / 255 - 0.1) / 0.3)
    expected[0], expected[-1] = (
        cdf((x0[0] + 1 / 255 - 0.1) / 0.3),
        1 - cdf((x0[-1] - 1 / 255 - 0.1) / 0.3),
    )
    found = tanh_log_mass(decoder, x0, 1 / 255)
    torch.testing.assert_close(found.exp(), expected, rtol=1e-9, atol=1e-14)
    exact = decoder.log_mass(x0, 1 / 255)
    assert (found - exact).abs()[64:192].max() < 0.01
    assert not torch.equal(found, exact)
    far = tanh_log_mass(Gaussian(decoder.mean, torch.tensor(1e-4, dtype=F64)), x0, 1 / 255)
    assert float(far[255]) == pytest.approx(math.log(1e-12))
    x0, noise = data(2), noise_for(0, 2)
    exact_bound = elbo(known(), x0, ladder(4), noise, half_bin=HALF)
    for found_bound in (
        elbo(known(), x0, ladder(4), noise, half_bin=HALF, mass=tanh_log_mass),
        estimate_elbo(known(), x0, ladder(4), noise, half_bin=HALF, mass=tanh_log_mass),
    ):
        assert torch.equal(found_bound.levels, exact_bound.levels)
        assert (found_bound.decoder != exact_bound.decoder).all()


def test_what_is_refused() -> None:
    x0, noise = data(2), noise_for(0, 2)
    with pytest.raises(ValueError, match="likelihood of a clipped denoiser"):
        elbo(Clipped(known()), x0, ladder(4), noise, half_bin=HALF)
    with pytest.raises(ValueError, match=r"gives probabilities to pixels.*hold"):
        elbo(known(), x0, ladder(4), noise)  # 16-bit pixels are none of 8 bits
    with pytest.raises(ValueError, match="gives probabilities to pixels"):
        elbo(known(), 2 * torch.ones(2, 256), ladder(4), noise)
    with pytest.raises(ValueError, match="cannot walk up"):
        elbo(known(), x0, ladder(4).flip(0), noise, half_bin=HALF)
    with pytest.raises(ValueError, match="outside the trained range"):
        elbo(known(), x0, [200.0, 1.0], noise, half_bin=HALF)
    with pytest.raises(ValueError, match="at least one level"):
        estimate_elbo(known(), x0, ladder(4), noise, draws=0, half_bin=HALF)
    part = estimate_elbo(known(), x0, ladder(9), noise, draws=2, half_bin=HALF)
    with pytest.raises(ValueError, match="needs every level"):
        rate_distortion(part)
