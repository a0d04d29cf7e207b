"""Inversion against the quantile map, round trips, arcs, and DDPM's interpolations."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oracles import F64, EmpiricalData, GaussianOracle, Mixture
from sfumato.gaussian import Gaussian
from sfumato.latents import (
    interpolate,
    interpolate_corners,
    interpolate_diffused,
    invert,
    invert_exactly,
    reconstruct,
    rmse,
    round_trip,
    share_latent,
    slerp,
)
from sfumato.noise import NoiseLevels, karras, linear_betas, uniform
from sfumato.parameterization import predicts_noise
from sfumato.protocols import Denoise, Solver
from sfumato.randomness import Purpose, noise_for
from sfumato.sampling import sample
from sfumato.solvers import DDIM, Ancestral, Churn, Euler, Heun, Multistep, SingleStep
from sfumato.solvers.exponential_sde import ExponentialSDE

MIXTURE = Mixture()
LEVELS = NoiseLevels.from_betas(linear_betas(1000))


def ladder(count: int) -> Tensor:
    return LEVELS.ascending(uniform(1000, count))


def log_grid(steps: int, low: float = 0.05, high: float = 20.0) -> Tensor:
    return torch.logspace(math.log10(low), math.log10(high), steps + 1, dtype=F64)


def images(count: int = 4, size: int = 48) -> Tensor:
    return noise_for(3, count).normal([size], Purpose.START, F64)


# --- inversion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "order"),
    [(DDIM(0), 1), (Heun(), 2), (SingleStep(3), 3), (ExponentialSDE(2, 0.0), 2)],
    ids=str,
)
def test_inversion_tends_to_the_exact_latents_and_back_at_the_solvers_order(
    solver: Solver[Any], order: int
):
    """The truth is the quantile map: cdf(latent, high) = cdf(x, low)."""
    x = MIXTURE.flow(torch.linspace(-50, 50, 15, dtype=F64)[:, None], 20.0, 0.05)
    exact = MIXTURE.flow(x, 0.05, 20.0)

    def errors(steps: int) -> tuple[float, float]:
        latent = invert(MIXTURE, x, solver, log_grid(steps))
        back = round_trip(MIXTURE, x, latent, solver, log_grid(steps))
        return float((latent - exact).abs().max()), float(back.error.max())

    (up, trip), (finer_up, finer_trip) = errors(200), errors(400)
    assert math.log2(up / finer_up) == pytest.approx(order, abs=0.2)
    assert math.log2(trip / finer_trip) > order - 0.25  # on the way to it, or to more


def test_latents_of_data_are_gaussian_quantile_by_quantile():
    """A quantile p of the data has the latent quantile p of N(mean, high^2 + var), at high level.

    Inverted by Heun from the first level, on which the image itself stands.
    """
    p = torch.linspace(0.01, 0.99, 21, dtype=F64)
    normal = torch.special.ndtri(p)[:, None]
    wide = MIXTURE.mean() + math.sqrt(1e3**2 + MIXTURE.var()) * normal
    data = MIXTURE.flow(wide, 1e3, 0.0)
    torch.testing.assert_close(MIXTURE.cdf(data, 0.0)[:, 0], p, rtol=0, atol=1e-3)
    latent = invert(MIXTURE, data, Heun(), log_grid(300, 0.002, 80.0))
    spread = (latent - MIXTURE.mean()) / math.sqrt(80.0**2 + MIXTURE.var())
    torch.testing.assert_close(spread, normal, rtol=0, atol=2e-3)


@pytest.mark.parametrize("solver", [Euler(), DDIM(0), Heun()], ids=str)
@pytest.mark.parametrize("grid", [karras(18)[:-1].flip(0), ladder(10), ladder(100)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    "denoise",
    [MIXTURE, GaussianOracle.diagonal([10 ** (-k / 12) for k in range(48)])],
    ids=["mixture", "gaussian"],
)
def test_exact_inversion_comes_back(
    denoise: Denoise, solver: Solver[None], grid: Tensor, dtype: torch.dtype
):
    """Within 1e-4 per dimension where the explicit step is off by up to half the data's range."""
    x = images().to(dtype)
    found = invert_exactly(denoise, x, solver, grid)
    trip = round_trip(denoise, x, found.latent, solver, grid)
    assert found.latent.dtype == dtype
    assert float(trip.error.max()) < 1e-4
    assert float(found.residual.max()) < (1e-6 if dtype == F64 else 4e-6)
    explicit = round_trip(denoise, x, invert(denoise, x, solver, grid), solver, grid)
    assert float(explicit.error.max()) > 3 * float(trip.error.max())


def test_exact_inversion_of_points():
    """Data that are a few images: each latent leads to its image."""
    data = EmpiricalData(images(8).tanh())
    x = data.points + 0.01 * images(8).flip(0)
    found = invert_exactly(data, x, Heun(), ladder(50))
    trip = round_trip(data, x, found.latent, Heun(), ladder(50))
    assert float(trip.error.max()) < 1e-5
    torch.testing.assert_close(trip.image, data.points, rtol=0, atol=1e-6)


def test_exact_inversion_with_a_network():
    """A convolution in float32, on DDPM's ladder, which is asked at its own levels only."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))

    def network(x: Tensor, t: Tensor) -> Tensor:
        return x + 0.3 * layers(x.float())

    denoise = predicts_noise(network, LEVELS)
    x = images(3, 64).reshape(3, 1, 8, 8).float().tanh()
    grid = ladder(20)
    found = invert_exactly(denoise, x, DDIM(0), grid)
    trip = round_trip(denoise, x, found.latent, DDIM(0), grid)
    assert float(trip.error.max()) < 1e-4
    assert not found.latent.requires_grad
    assert not trip.image.requires_grad
    explicit = round_trip(denoise, x, invert(denoise, x, DDIM(0), grid), DDIM(0), grid)
    assert float(explicit.error.min()) > 1e-3


def test_an_inverted_image_does_not_depend_on_its_companions():
    x, grid = images(), ladder(20)
    together = invert_exactly(MIXTURE, x, Heun(), grid)
    for i in range(4):
        alone = invert_exactly(MIXTURE, x[i : i + 1], Heun(), grid)
        assert alone.latent[0].equal(together.latent[i])
        assert alone.residual[0].equal(together.residual[i])


def test_exact_inversion_counts_and_reports_what_it_did():
    """The residual is the worst step's miss, in units of sqrt(1 + sigma^2); few tries leave one."""
    x, grid = images(), ladder(10)
    one = invert_exactly(MIXTURE, x, Euler(), grid, iterations=1)
    assert one.evaluations == 9 * 2
    assert one.latent.equal(invert(MIXTURE, x, Euler(), grid))
    worst = torch.zeros(4, dtype=F64)
    y = x
    for low, high in pairwise(grid):
        up = reconstruct(MIXTURE, y, Euler(), [float(low), float(high)])
        down = reconstruct(MIXTURE, up, Euler(), [float(high), float(low)])
        worst = torch.maximum(worst, rmse(y, down) / (1 + low**2).sqrt())
        y = up
    torch.testing.assert_close(one.residual, worst)
    finer = invert_exactly(MIXTURE, x, Euler(), grid, tolerance=1e-9)
    assert float(finer.residual.max()) < 1e-9
    assert float(round_trip(MIXTURE, x, finer.latent, Euler(), grid).error.max()) < 1e-8


def test_a_round_trip_reports_the_last_step_apart():
    x, grid = images(), ladder(50)
    latent = invert_exactly(MIXTURE, x, Heun(), grid).latent
    trip = round_trip(MIXTURE, x, latent, Heun(), grid)
    down = torch.cat([grid.flip(0), torch.zeros(1, dtype=F64)])
    *_, before, after = sample(MIXTURE, Heun(), down, latent)
    assert trip.returned.equal(before.x)
    assert trip.image.equal(after.x)
    torch.testing.assert_close(trip.error, (before.x - x).square().mean(1).sqrt())
    torch.testing.assert_close(trip.image_error, (after.x - x).square().mean(1).sqrt())
    assert (trip.image_error > trip.error).all()


# --- what cannot be inverted ---------------------------------------------------------------------


@pytest.mark.parametrize("solver", [Ancestral(), DDIM(0.5), Churn(Heun(), 1.0)], ids=str)
def test_stochastic_solvers_do_not_invert(solver: Solver[Any]):
    for act in (
        lambda: invert(MIXTURE, images(), solver, ladder(5)),
        lambda: invert_exactly(MIXTURE, images(), solver, ladder(5)),
        lambda: reconstruct(MIXTURE, images(), solver, ladder(5).flip(0)),
    ):
        with pytest.raises(ValueError, match="draws fresh noise"):
            act()


@pytest.mark.parametrize("act", [invert, invert_exactly])
@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([0.0, 0.1, 1.0], "starts at 0, where the flow's direction .* is 0 / 0"),
        ([1.0, 0.5, 0.1], "inversion walks up"),
        ([0.1, 1.0, 1.0], "strictly monotone"),
        ([0.1], "at least two levels"),
        ([], "at least two levels"),
    ],
)
def test_grids_that_do_not_invert(act: Any, grid: list[float], words: str):
    with pytest.raises(ValueError, match=words):
        act(MIXTURE, images(), Euler(), grid)


def test_solvers_with_a_history_invert_only_explicitly():
    grid = log_grid(40)
    assert invert(MIXTURE, images(), Multistep(2), grid).isfinite().all()
    with pytest.raises(ValueError, match="remembers from above"):
        invert_exactly(MIXTURE, images(), Multistep(2), grid)  # pyright: ignore


def test_levels_off_the_ladder_are_refused():
    network = predicts_noise(lambda x, t: x, LEVELS)
    for act in (invert, invert_exactly):
        with pytest.raises(ValueError, match="not a trained level"):
            act(network, images().float(), Euler(), [0.011, 5.0])


def test_a_network_that_returns_nan_is_named():
    def broken(x: Tensor, sigma: Tensor) -> Gaussian:
        return Gaussian(x * math.nan, sigma)

    with pytest.raises(FloatingPointError, match=r"from sigma 0\.0100005 up to"):
        invert_exactly(broken, images(), Euler(), ladder(5))


def test_latents_of_another_shape():
    with pytest.raises(ValueError, match="different shapes"):
        round_trip(MIXTURE, images(3), images(4), Euler(), ladder(5))


# --- arcs ----------------------------------------------------------------------------------------


def unit(*x: float) -> Tensor:
    return torch.tensor([x], dtype=F64)


def test_slerp_is_a_rotation_in_the_plane_of_its_ends():
    for weight in (0.0, 0.1, 0.5, 1.0, 1.2):
        turned = math.pi / 3 * weight
        out = slerp(unit(2, 0, 0), unit(1, math.sqrt(3), 0), weight)
        torch.testing.assert_close(out, unit(2 * math.cos(turned), 2 * math.sin(turned), 0))


def test_slerp_keeps_the_norm_and_each_example_is_its_own():
    a, b = images(3, 1000), images(6, 1000)[3:]
    b = b / b.norm(dim=1, keepdim=True) * a.norm(dim=1, keepdim=True)
    weights = torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    out = slerp(a, b, weights)
    torch.testing.assert_close(out.norm(dim=1), a.norm(dim=1))
    for i in range(3):
        assert slerp(a[i : i + 1], b[i : i + 1], float(weights[i]))[0].equal(out[i])
    straight = 0.5 * (a + b)
    assert (straight.norm(dim=1) < 0.8 * a.norm(dim=1)).all()  # what a line would do


def test_slerp_is_the_papers_formula():
    """DDIM eq. (67), with the arc cosine, where that is accurate; ends of different norms."""
    a, b = images(2, 30), 3 * images(4, 30)[2:]
    theta = torch.acos((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)))[:, None]
    paper = torch.sin(0.7 * theta) / theta.sin() * a + torch.sin(0.3 * theta) / theta.sin() * b
    torch.testing.assert_close(slerp(a, b, 0.3), paper, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, 1e-5, 1e-3, 1e-2])
def test_slerp_of_nearly_equal_latents(angle: float):
    """Towards a straight line, with no loss of digits."""
    b = unit(math.cos(angle), math.sin(angle))
    out = slerp(unit(1, 0), b, 0.25)
    torch.testing.assert_close(
        out, unit(math.cos(angle / 4), math.sin(angle / 4)), rtol=1e-9, atol=1e-18
    )


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_slerp_keeps_dtype_and_ends(dtype: torch.dtype):
    a, b = (images(4)[:2].to(dtype), images(4)[2:].to(dtype))
    assert slerp(a, b, 0.0).equal(a)
    assert slerp(a, b, 1.0).equal(b)
    assert slerp(a, b, 0.3).dtype == dtype


def test_slerp_refuses():
    with pytest.raises(ValueError, match=r"different shapes, \[1, 2\] and \[1, 3\]"):
        slerp(unit(1, 0), unit(1, 0, 0), 0.5)
    with pytest.raises(ValueError, match="opposite"):
        slerp(unit(1, 2), unit(-2, -4), 0.5)
    with pytest.raises(ValueError, match="0 everywhere"):
        slerp(unit(1, 2), unit(0, 0), 0.5)


def test_a_strip_goes_from_end_to_end_at_equal_angles():
    a, b = images(2)[0].reshape(3, 4, 4), images(2)[1].reshape(3, 4, 4)
    strip = interpolate(a, b, 5)
    assert strip.shape == (5, 3, 4, 4)
    assert strip[0].equal(a)
    assert strip[4].equal(b)
    flat = strip.flatten(1) / strip.flatten(1).norm(dim=1, keepdim=True)
    cosine = (flat[1:] * flat[:-1]).sum(1)
    same = (b / b.norm() * a.norm()).to(F64)  # equal angles where the ends have one norm
    flat = interpolate(a, same, 5).flatten(1) / a.norm()
    cosine = (flat[1:] * flat[:-1]).sum(1)
    torch.testing.assert_close(cosine, cosine[:1].expand(4))
    with pytest.raises(ValueError, match="at least its two ends, not 1"):
        interpolate(a, b, 1)


def test_a_grid_of_four_corners():
    corners = tuple(images(4).reshape(4, 3, 4, 4))
    grid = interpolate_corners(corners, 3, 5)  # pyright: ignore
    assert grid.shape == (3, 5, 3, 4, 4)
    for (row, column), corner in zip([(0, 0), (0, 4), (2, 0), (2, 4)], corners, strict=True):
        assert grid[row, column].equal(corner)
    assert grid[0].equal(interpolate(corners[0], corners[1], 5))
    assert grid[2].equal(interpolate(corners[2], corners[3], 5))
    middle = slerp(grid[0, 2:3], grid[2, 2:3], 0.5)[0]
    torch.testing.assert_close(grid[1, 2], middle)
    with pytest.raises(ValueError, match="different shapes"):
        interpolate_corners((corners[0], corners[1], corners[2][:2], corners[3][:2]), 3, 5)


# --- DDPM's figures ------------------------------------------------------------------------------


def test_interpolated_images_at_the_ends_are_plain_reconstructions():
    """Weight 0: a, diffused to the level and sampled; and the weights share every draw."""
    a, b = images(2).tanh()
    grid, noise = karras(12), noise_for(5, 1)
    weights = [0.0, 0.5, 1.0]
    out = interpolate_diffused(MIXTURE, DDIM(1.0), grid, a, b, weights, noise)
    for row, end in ((0, a), (2, b)):
        x = end[None] + grid[0] * noise.normal([48], Purpose.START, F64)
        *_, last = sample(MIXTURE, DDIM(1.0), grid, x, noise)
        torch.testing.assert_close(out[row], last.x[0], rtol=1e-12, atol=1e-12)


def test_mixed_at_a_low_level_images_are_mixed_and_at_a_high_one_forgotten():
    a, b = images(2).tanh()
    wide = GaussianOracle.diagonal([100.0] * 48)  # hardly any prior: D is nearly the identity
    low = torch.tensor([1e-4, 0.0], dtype=F64)
    out = interpolate_diffused(wide, Ancestral(), low, a, b, [0.25], noise_for(0, 1))
    torch.testing.assert_close(out[0], 0.75 * a + 0.25 * b, rtol=0, atol=1e-3)
    high = karras(40, low=0.01, high=1e4)
    ends = interpolate_diffused(MIXTURE, Ancestral(), high, a, b, [0, 1], noise_for(0, 1))
    assert float(rmse(ends[:1], ends[1:])) < 0.05 < float(rmse(a[None], b[None]))


def test_mixtures_have_the_noise_of_their_level():
    """Shared noise keeps its variance at every weight; own noise would halve it at 1/2."""
    seen: list[Tensor] = []

    def spy(x: Tensor, sigma: Tensor) -> Gaussian:
        seen.append(x)
        return Gaussian(x, sigma)

    a = torch.zeros(20_000, dtype=F64)
    grid = torch.tensor([7.0, 0.0], dtype=F64)
    interpolate_diffused(spy, Euler(), grid, a, a, [0.0, 0.3, 0.5], noise_for(0, 1))
    assert seen[0].std(1).tolist() == pytest.approx([7.0] * 3, rel=0.02)


def test_interpolation_of_images_takes_one_seed_and_one_shape():
    a, b = images(2)
    with pytest.raises(ValueError, match="one seed, not of 2"):
        interpolate_diffused(MIXTURE, Euler(), karras(3), a, b, [0.5], noise_for(0, 2))
    with pytest.raises(ValueError, match="different shapes"):
        interpolate_diffused(MIXTURE, Euler(), karras(3), a, b[:4], [0.5], noise_for(0, 1))


def test_completions_of_one_latent_share_the_more_the_lower_it_is():
    """On Gaussian data their spread is the posterior's, e s^2 / (e + s^2), about its mean."""
    data = GaussianOracle.diagonal([0.5] * 40)
    x = 2.0 * images(1, 40)[0]
    for high in (0.1, 2.0):
        grid = torch.cat([log_grid(60, 0.01, high).flip(0), torch.zeros(1, dtype=F64)])
        out = share_latent(data, Ancestral(), grid, x, noise_for(0, 200))
        assert out.shape == (200, 40)
        level = torch.tensor(high, dtype=F64)
        expected = data(x[None], level)
        assert float(out.var(0).mean()) == pytest.approx(float(expected.var[0, 0]), rel=0.06)
        torch.testing.assert_close(
            out.mean(0), expected.mean[0], rtol=0, atol=4 * float(expected.var[0, 0] / 200) ** 0.5
        )
        again = share_latent(data, Ancestral(), grid, x, noise_for(3, 1))
        torch.testing.assert_close(again[0], out[3], rtol=1e-12, atol=1e-12)


def test_a_deterministic_solver_completes_in_one_way_only():
    with pytest.raises(ValueError, match="in one way only"):
        share_latent(MIXTURE, Heun(), karras(3), images(1)[0], noise_for(0, 3))
