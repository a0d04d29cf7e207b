"""Learned variances: the published bounds at both ends, respacing, and the objectives over them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from flow_helpers import F64
from sfumato.diffusion import level_term, transition
from sfumato.gaussian import Gaussian
from sfumato.likelihood import elbo
from sfumato.noise import NoiseLevels, linear_betas, uniform
from sfumato.parameterization import Between, Free, learned_variance, predicts_noise, unit_gaussian
from sfumato.randomness import noise_for
from sfumato.sampling import generate
from sfumato.solvers import Ancestral
from sfumato.training.noise_sampling import UniformLevels
from sfumato.training.objectives import Bound, DDIMBound, Hybrid, Simple

LEVELS = NoiseLevels.from_betas(linear_betas(1000))


def two_outputs(fraction: float) -> nn.Module:
    """Says that the noise is half of what it sees, and the fraction everywhere."""

    class Net(nn.Module):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            return torch.cat([0.5 * x, torch.full_like(x, 2 * fraction - 1)], 1)

    return Net()


def noise_only(x: Tensor, level: Tensor) -> Tensor:
    return 0.5 * x


@pytest.mark.parametrize("index", [1, 10, 500, 999])
@pytest.mark.parametrize(("fraction", "fixed"), [(0.0, None), (1.0, unit_gaussian)])
def test_both_ends_are_fixed_small_and_fixed_large(index: int, fraction: float, fixed) -> None:
    x = torch.randn(2, 3, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    sigma, s = LEVELS.sigma[index], LEVELS.sigma[index - 1]
    learned = learned_variance(two_outputs(fraction), LEVELS)(x, sigma)
    known = predicts_noise(noise_only, LEVELS, *([fixed] if fixed else []))(x, sigma)
    ours, theirs = transition(learned, x, sigma, s), transition(known, x, sigma, s)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        ours.var, theirs.var.expand_as(ours.var), rtol=1e-9, atol=0, check_dtype=False
    )


@pytest.mark.parametrize("steps", [1000, 50])
@pytest.mark.parametrize("fraction", [-0.2, 0.3, 0.5, 1.1])
def test_between_is_a_mean_of_logarithms_on_any_sub_sequence(steps: int, fraction: float) -> None:
    """Improved DDPM eq. 15 with the betas of the sub-sequence (respacing), in x_t's units."""
    grid = LEVELS.descending(uniform(1000, steps))
    denoise = learned_variance(two_outputs(fraction), LEVELS).on(grid)
    abar = 1 / (1 + grid[:-1] ** 2)
    x = torch.zeros(1, 1, 2, 2, dtype=F64)
    for i in range(0, steps - 1, max(1, steps // 7)):
        beta = 1 - abar[i] / abar[i + 1]
        small = beta * (1 - abar[i + 1]) / (1 - abar[i])
        expected = torch.exp(fraction * beta.log() + (1 - fraction) * small.log())
        step = transition(denoise(x, grid[i]), x, grid[i], grid[i + 1])
        ours = step.var / (1 + grid[i + 1] ** 2)
        torch.testing.assert_close(ours, expected.expand_as(ours), rtol=1e-7, atol=0)
    last = denoise(x, grid[-2])
    beta = 1 - abar[-1]
    small = (1 - abar[-2] / abar[-1]) * (1 - abar[-1]) / (1 - abar[-2])  # of the second level
    expected = torch.exp(fraction * beta.log() + (1 - fraction) * small.log())
    torch.testing.assert_close(last.var, expected.expand_as(last.var), rtol=1e-7, atol=0)
    assert denoise.decoder_var is None


def test_a_free_variance_is_the_steps_own() -> None:
    denoise = learned_variance(two_outputs(0.25), LEVELS, Free())  # the output is -0.5
    x = torch.ones(1, 1, 2, 2, dtype=F64)
    for index in (1, 400, 999):
        sigma, s = LEVELS.sigma[index], LEVELS.sigma[index - 1]
        step = transition(denoise(x, sigma), x, sigma, s)
        torch.testing.assert_close(
            step.var / (1 + s**2), torch.full_like(x, math.exp(-0.5)), rtol=1e-8, atol=0
        )
    first = denoise(x, LEVELS.sigma[0])
    torch.testing.assert_close(first.var, torch.full_like(x, math.exp(-0.5)))


def test_levels_of_a_batch_may_differ() -> None:
    denoise = learned_variance(two_outputs(0.4), LEVELS)
    x = torch.randn(3, 1, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([0, 7, 999])
    together = denoise(x, LEVELS.sigma[index])
    for i in range(3):
        alone = denoise(x[i : i + 1], LEVELS.sigma[index[i]])
        torch.testing.assert_close(together.var[i : i + 1], alone.var)
        torch.testing.assert_close(together.mean[i : i + 1], alone.mean)


def test_it_samples_and_has_a_bound() -> None:
    denoise = learned_variance(two_outputs(0.5), LEVELS)
    grid = LEVELS.descending(uniform(1000, 5))
    (x,) = generate(denoise, Ancestral(), grid, (3, 4, 4), range(2), batch=2)
    assert x.isfinite().all()
    pixels = torch.zeros(2, 3, 4, 4) + 1 / 255
    bound = elbo(denoise, pixels, grid, noise_for(0, 2))
    assert bound.total.isfinite().all()


def test_what_is_refused() -> None:
    x = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match="gives 3 for 3 channels"):
        learned_variance(noise_only, LEVELS)(x, LEVELS.sigma[5])
    with pytest.raises(ValueError, match="a ladder of two at least"):
        learned_variance(two_outputs(0.5), NoiseLevels(LEVELS.sigma[:1]))


# --- objectives ---------------------------------------------------------------------------------


class Learning(nn.Module):
    """Two parameters: what the noise is, and its variance."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.fraction = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return torch.cat([self.mean * x, self.fraction * torch.ones_like(x)], 1)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 256, (6, 1, 4, 4), generator=generator) / 127.5 - 1
    noise = torch.randn(6, 1, 4, 4, generator=generator)
    return x0, LEVELS.sigma[torch.tensor([0, 1, 10, 200, 600, 999])], noise


def test_hybrid_moves_the_mean_as_simple_does_and_the_variance_as_the_bound() -> None:
    x0, sigma, noise = batch()
    network = Learning()
    bound = Bound(LEVELS)

    def gradients(objective: Simple | Bound | Hybrid) -> tuple[Tensor | None, Tensor | None]:
        network.zero_grad()
        loss = objective.loss(learned_variance(network, LEVELS), x0, sigma, noise)
        loss.value.mean().backward()
        return network.mean.grad, network.fraction.grad

    hybrid, simple, whole = map(gradients, (Hybrid(bound, 0.001), Simple(), bound))
    torch.testing.assert_close(hybrid[0], simple[0])
    assert whole[0] is not None
    assert whole[1] is not None
    assert simple[0] is not None
    assert not torch.allclose(whole[0], simple[0])
    torch.testing.assert_close(hybrid[1], 0.001 * whole[1] / math.log(2), rtol=1e-4, atol=1e-9)


def test_hybrid_adds_bits_of_the_whole_ladder() -> None:
    x0, sigma, noise = batch()
    denoise = learned_variance(Learning(), LEVELS)
    parts = [o.loss(denoise, x0, sigma, noise).value for o in (Simple(), Bound(LEVELS))]
    both = Hybrid(Bound(LEVELS), 0.001).loss(denoise, x0, sigma, noise).value
    torch.testing.assert_close(both, parts[0] + 0.001 * parts[1] / math.log(2))


@pytest.mark.parametrize("eta", [0.2, 0.5, 1.0])
def test_j_sigma_is_a_direct_kl(eta: float) -> None:
    """KL of DDIM's q_sigma(x_s | x, x0) to the same with D for x0, both written out (eq. 7)."""
    objective = DDIMBound(LEVELS, eta)
    x0, wrong = torch.tensor(0.3, dtype=F64), torch.tensor(0.1, dtype=F64)
    for index in (1, 2, 50, 999):
        sigma, s = LEVELS.sigma[index], LEVELS.sigma[index - 1]
        a, a_s = 1 / (1 + sigma**2), 1 / (1 + s**2)
        x_t = torch.tensor(0.7, dtype=F64)
        std = eta * ((1 - a_s) / (1 - a)).sqrt() * (1 - a / a_s).sqrt()

        def mean(clean: Tensor) -> Tensor:
            noise = (x_t - a.sqrt() * clean) / (1 - a).sqrt()  # noqa: B023
            return a_s.sqrt() * clean + (1 - a_s - std**2).clamp(min=0).sqrt() * noise  # noqa: B023

        kl = Gaussian(mean(x0), std**2).kl(Gaussian(mean(wrong), std**2))
        weight = objective.weight(sigma[None]) / len(LEVELS.sigma)
        torch.testing.assert_close(weight[0] * (x0 - wrong) ** 2, kl, rtol=1e-6, atol=0)


def test_j_sigma_of_eta_1_is_ddpms_bound() -> None:
    objective = DDIMBound(LEVELS, 1.0)
    sigma, s = LEVELS.sigma[1:], LEVELS.sigma[:-1]
    expected = 1000 * (s**-2 - sigma**-2) / 2
    torch.testing.assert_close(objective.weight(sigma), expected, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match=r"eta in \(0, 1\]"):
        DDIMBound(LEVELS, 0.0)


def test_the_bound_is_the_sum_over_the_ladder_of_what_elbo_says() -> None:
    """The objective's mean over all levels and the likelihood's total are one number."""
    levels = NoiseLevels(LEVELS.sigma[::100])
    denoise = learned_variance(two_outputs(0.3), levels)
    x0 = (torch.zeros(1, 1, 4, 4) + 1 / 255).double()
    noise = noise_for(0, 1)
    grid = levels.sigma.flip(0)
    whole = elbo(denoise, x0, grid, noise)
    total = 0.0
    from sfumato.randomness import Purpose

    for index in range(len(levels.sigma)):
        drawn = noise.at(len(levels.sigma) - 1 - index).normal((1, 4, 4), Purpose.BOUND, F64)
        loss = Bound(levels).loss(denoise, x0, levels.sigma[index][None], drawn)
        total += float(loss.value) * 16 / len(levels.sigma)
    assert total == pytest.approx(float(whole.levels.sum() + whole.decoder.sum()), rel=1e-9)


def test_uniform_levels_stay_what_they_were() -> None:
    u = torch.linspace(0.001, 0.999, 9, dtype=F64)
    assert set(UniformLevels(LEVELS).quantile(u).tolist()) <= set(LEVELS.sigma.tolist())
    for head, index in itertools.product((Between(), Free()), (0, 5)):
        var = head.variance(torch.zeros(1, 1), LEVELS.sigma[index], LEVELS.sigma)
        assert var.isfinite().all()


def test_level_term_takes_a_negative_variance_of_x0() -> None:
    """The published fraction may leave its bounds; the step's variance stays positive."""
    denoise = learned_variance(two_outputs(-0.3), LEVELS)
    x0 = torch.zeros(1, 1, 2, 2, dtype=F64)
    sigma, s = LEVELS.sigma[20], LEVELS.sigma[19]
    x = x0 + sigma * torch.ones_like(x0)
    answer = denoise(x, sigma)
    assert (answer.var < 0).all()
    assert (level_term(x0, x, answer, sigma, s) > 0).all()


def test_a_free_variance_is_that_of_the_ladders_step_on_any_grid() -> None:
    """The var of x0 that makes the ladder's own step right, not one read into a larger step."""
    x = torch.randn(2, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(3))
    denoise = learned_variance(two_outputs(0.25), LEVELS, Free())  # the output is -0.5
    few = LEVELS.sigma[[0, 300, 600, 999]].flip(0)
    for index in (300, 600, 999):
        sigma, s = LEVELS.sigma[index], LEVELS.sigma[index - 1]
        own = denoise(x, sigma)
        step = transition(own, x, sigma, s).var
        torch.testing.assert_close(step, torch.full_like(step, math.exp(-0.5)) * (1 + s**2))
        bound = denoise.on(few)(x, sigma)
        torch.testing.assert_close(bound.var, own.var.clamp(min=0))
        whole = denoise.on(LEVELS.sigma.flip(0))(x, sigma)
        torch.testing.assert_close(whole.var, own.var, rtol=0, atol=0)
