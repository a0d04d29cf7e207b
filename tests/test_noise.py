"""Ladders, grids and processes against published numbers and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sfumato import noise
from sfumato.noise import (
    VE,
    VP,
    ZERO_SNR_SIGMA,
    Interpolated,
    NoiseLevels,
    NoiseRange,
    SubVP,
    check_grid,
    cosine_betas,
    linear_betas,
)
from sfumato.parameterization import edm_preconditioned

F64 = torch.float64
LINEAR = NoiseLevels.from_betas(linear_betas(1000))


def abar(levels: NoiseLevels) -> Tensor:
    return 1 / (1 + levels.sigma**2)


# --- betas and ladders ---------------------------------------------------------------------------


def test_linear_betas_give_ddpms_published_numbers():
    assert float(LINEAR.sigma[0]) == pytest.approx(0.0100005, rel=1e-6)
    assert float(LINEAR.sigma[-1]) == pytest.approx(157.407, rel=1e-5)
    assert float(abar(LINEAR)[-1]) == pytest.approx(4.0358e-5, rel=1e-5)
    assert float(abar(LINEAR)[-1].sqrt()) == pytest.approx(0.0063528, rel=1e-5)
    assert float(1 - abar(LINEAR)[-1]) == pytest.approx(0.99995964, abs=1e-8)


def test_cosine_betas_clip_one_beta():
    for steps, first in ((1000, 4.1e-5), (4000, 9.9e-6)):
        betas = cosine_betas(steps)
        assert int((betas == 0.999).sum()) == 1
        assert float(betas[0]) == pytest.approx(first, rel=0.02)
    assert float(abar(NoiseLevels.from_betas(cosine_betas(1000)))[-1]) == pytest.approx(
        2.43e-9, rel=2e-3
    )


@pytest.mark.parametrize("steps", [0, 1, 10, 19, 20])
def test_linear_betas_refuse_too_few_steps(steps: int):
    with pytest.raises(ValueError, match="more than 20 steps"):
        linear_betas(steps)


def test_linear_betas_scale_with_the_number_of_steps():
    """Improved DDPM: endpoints times 1000 / T, so the last abar hardly depends on T."""
    betas = linear_betas(4000)
    assert float(betas[0]) == pytest.approx(2.5e-5, rel=1e-12)
    assert float(betas[-1]) == pytest.approx(5e-3, rel=1e-12)
    assert math.log(float(abar(NoiseLevels.from_betas(betas))[-1])) == pytest.approx(-10.1, abs=0.1)
    NoiseLevels.from_betas(linear_betas(21))


def test_other_betas_have_their_end_points_and_shape():
    quadratic, sigmoid = noise.quadratic_betas(), noise.sigmoid_betas()
    assert [float(quadratic[0]), float(quadratic[-1])] == pytest.approx([1e-4, 0.02])
    assert float(quadratic.sqrt().diff().std()) < 1e-15
    stable = noise.scaled_linear_betas()
    assert [float(stable[0]), float(stable[-1])] == pytest.approx([8.5e-4, 0.012])
    logit = torch.logit((sigmoid - 1e-4) / (0.02 - 1e-4))
    torch.testing.assert_close(logit, torch.linspace(-6, 6, 1000, dtype=F64), rtol=0, atol=1e-9)
    assert noise.constant_betas(3, 0.1).tolist() == [0.1, 0.1, 0.1]


ALL_BETAS: dict[str, Callable[[], Tensor]] = {
    "linear": linear_betas,
    "quadratic": noise.quadratic_betas,
    "scaled": noise.scaled_linear_betas,
    "cosine": cosine_betas,
    "sigmoid": noise.sigmoid_betas,
    "constant": noise.constant_betas,
    "cosine10": lambda: cosine_betas(10),
}


@pytest.mark.parametrize("name", ALL_BETAS)
def test_composing_one_step_kernels_gives_the_closed_form(name: str):
    """x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) z, all t: mean factor and variance of q(x_t|x0)."""
    betas = ALL_BETAS[name]()
    levels = NoiseLevels.from_betas(betas)
    scale = levels.scale(levels.sigma)
    factor, var = 1.0, 0.0
    for beta, c, sigma in zip(betas.tolist(), scale.tolist(), levels.sigma.tolist(), strict=True):
        factor, var = math.sqrt(1 - beta) * factor, (1 - beta) * var + beta
        assert c == pytest.approx(factor, rel=1e-12)
        assert (c * sigma) ** 2 == pytest.approx(var, rel=1e-12)


@pytest.mark.parametrize("betas", [linear_betas(1000), linear_betas(8000), cosine_betas(50)])
def test_zero_terminal_snr(betas: Tensor):
    """Lin et al.: the last signal vanishes, the first level stays, sqrt(abar) is an affine map."""
    rescaled = noise.zero_terminal_snr(betas)
    assert float(rescaled[-1]) == 1.0
    levels = NoiseLevels.from_betas(rescaled)
    assert levels.zero_terminal
    assert float(levels.sigma[-1]) >= ZERO_SNR_SIGMA
    before = abar(NoiseLevels.from_betas(betas)).sqrt()
    after = abar(levels).sqrt()[:-1]
    assert float(after[0]) == pytest.approx(float(before[0]), rel=1e-12)
    ratio = (after - 0) / (before[:-1] - before[-1])
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    "betas", [[0.0, 0.1], [0.1, 1.1], [1.0, 0.1], [-0.1, 0.2], [float("nan"), 0.1]]
)
def test_from_betas_refuses_what_is_no_beta(betas: list[float]):
    with pytest.raises(ValueError, match="betas must lie"):
        NoiseLevels.from_betas(torch.tensor(betas))


@pytest.mark.parametrize("sigma", [[], [0.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, float("inf")]])
def test_ladders_are_positive_and_ascending(sigma: list[float]):
    with pytest.raises(ValueError, match="noise levels"):
        NoiseLevels(torch.tensor(sigma, dtype=F64))


def test_float32_ladders_are_refused():
    with pytest.raises(ValueError, match="float64"):
        NoiseLevels(torch.tensor([1.0, 2.0]))


def test_geometric_ladder():
    levels = NoiseLevels.geometric(10, 0.01, 1.0)
    assert not levels.scaled
    assert levels.sigma[[0, -1]].tolist() == pytest.approx([0.01, 1.0], rel=1e-14)
    ratio = levels.sigma[1:] / levels.sigma[:-1]
    torch.testing.assert_close(ratio, ratio[:1].expand(9), rtol=1e-13, atol=0)
    assert levels.prior_var == pytest.approx(1.0)
    assert levels.scale(levels.sigma).tolist() == [1.0] * 10


def test_condition_is_the_index():
    assert LINEAR.condition(LINEAR.sigma).tolist() == list(range(1000))
    assert float(LINEAR.condition(LINEAR.sigma[17])) == 17
    assert NoiseLevels(torch.tensor([2.0], dtype=F64)).condition(torch.tensor([2.0])).tolist() == [
        0
    ]


def test_off_ladder_names_the_nearest_level():
    with pytest.raises(ValueError, match=r"sigma 1 is not a trained level; the nearest is 0.9"):
        LINEAR.condition(torch.tensor([1.0], dtype=F64))
    with pytest.raises(ValueError, match=r"outside the trained range 0.0100005 to 157\.407"):
        LINEAR.condition(torch.tensor([200.0], dtype=F64))
    with pytest.raises(ValueError, match="sigma 0 has no index"):
        LINEAR.condition(torch.tensor([0.0], dtype=F64))


def test_descending_and_ascending():
    grid = LINEAR.descending([999, 0, 500])
    assert grid.tolist() == [*LINEAR.sigma[[999, 500, 0]].tolist(), 0.0]
    assert LINEAR.ascending([3, 1]).tolist() == LINEAR.sigma[[1, 3]].tolist()
    assert len(LINEAR.descending()) == 1001
    check_grid(LINEAR.descending(), may_ascend=False)
    check_grid(LINEAR.ascending(), may_ascend=True)


def test_prior_variance():
    assert LINEAR.prior_var == pytest.approx(1 + 157.407**2, rel=1e-5)
    assert VP().prior_var == pytest.approx(math.exp(0.5 * 19.9 + 0.1), rel=1e-12)
    assert SubVP().prior_var == pytest.approx(math.exp(0.5 * 19.9 + 0.1), rel=1e-12)
    assert VE().prior_var == 1e4


def test_interpolated_time_passes_through_the_levels_and_is_linear_in_log_sigma():
    between = Interpolated(LINEAR)
    torch.testing.assert_close(
        between.condition(LINEAR.sigma), torch.arange(1000, dtype=F64), rtol=0, atol=1e-9
    )
    middle = (LINEAR.sigma[4] * LINEAR.sigma[5]).sqrt()
    assert float(between.condition(middle)) == pytest.approx(4.5, abs=1e-12)
    assert between.range.levels is None
    assert between.prior_var == LINEAR.prior_var
    between.range.check(torch.tensor([1.0], dtype=F64))


# --- ranges --------------------------------------------------------------------------------------


def test_snap_rounds_in_log_sigma_and_keeps_zero():
    limits = NoiseRange(1.0, 100.0, torch.tensor([1.0, 10.0, 100.0], dtype=F64))
    asked = torch.tensor([300.0, 33.0, 31.0, 3.0, 0.001, 0.0], dtype=F64)
    assert limits.snap(asked).tolist() == [100.0, 100.0, 10.0, 1.0, 1.0, 0.0]
    limits.check(limits.snap(asked))
    assert float(limits.snap(torch.tensor(31.0, dtype=F64))) == 10.0
    assert NoiseRange(1.0, 100.0).snap(asked).tolist() == [100.0, 33.0, 31.0, 3.0, 0.001, 0.0]


def test_range_errors():
    limits = NoiseRange(0.002, 80.0)
    limits.check(noise.karras(18))
    with pytest.raises(ValueError, match=r"sigma 90 is outside the trained range 0.002 to 80"):
        limits.check(noise.karras(18, high=90.0))
    with pytest.raises(ValueError, match=r"sigma 0.001 is outside"):
        limits.check(noise.karras(18, low=0.001))
    with pytest.raises(ValueError, match="not a trained level; the nearest is"):
        LINEAR.range.check(noise.karras(5, low=0.02))


# --- grids ---------------------------------------------------------------------------------------

GRIDS: dict[str, Callable[[int], Tensor]] = {
    "karras": noise.karras,
    "geometric": noise.geometric,
    "ve": noise.ve,
    "vp": noise.vp,
    "sub-vp": lambda n: noise.vp(n, SubVP()),
    "iddpm": noise.iddpm,
}


@pytest.mark.parametrize("steps", [1, 2, 18, 256])
@pytest.mark.parametrize("name", GRIDS)
def test_grids_have_n_plus_one_values_and_descend_to_zero(name: str, steps: int):
    grid = GRIDS[name](steps)
    assert grid.shape == (steps + 1,)
    assert grid.dtype == F64
    assert float(grid[-1]) == 0
    assert (grid.diff() < 0).all()
    check_grid(grid, may_ascend=False)


@pytest.mark.parametrize("name", GRIDS)
def test_grids_of_no_steps_are_refused(name: str):
    with pytest.raises(ValueError, match="at least one step"):
        GRIDS[name](0)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 80.0), (0.0, 80.0), (80.0, 0.002), (1.0, 1.0), (NAN, 80.0), (0.1, INF)]
)
@pytest.mark.parametrize(
    "make",
    [
        lambda low, high: noise.karras(5, low, high),
        lambda low, high: noise.geometric(5, low, high),
        lambda low, high: NoiseLevels.geometric(5, low, high),
        VE,
        lambda low, high: edm_preconditioned(lambda x, c: x, low=low, high=high),
    ],
    ids=["karras", "geometric", "ladder", "ve", "edm"],
)
def test_levels_must_be_positive_finite_and_in_order(
    make: Callable[[float, float], object], low: float, high: float
):
    with pytest.raises(ValueError, match="0 < low < high"):
        make(low, high)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: noise.karras(5, rho=0.0), "rho"),
        (lambda: noise.karras(5, rho=NAN), "rho"),
        (lambda: noise.vp(5, epsilon=0.0), "epsilon"),
        (lambda: noise.iddpm(5, first=1000), "0..999, not 1000"),
        (lambda: NoiseLevels.geometric(0, 0.01, 1.0), "at least one level"),
        (lambda: VP(epsilon=0.0), "epsilon"),
        (lambda: VP(beta_min=-1.0), "beta_min"),
        (lambda: SubVP(beta_d=NAN), "beta_d"),
        (lambda: edm_preconditioned(lambda x, c: x, 0.0), "sigma_data"),
        (lambda: NoiseLevels.from_betas(cosine_betas(0)), "at least 1"),
        (lambda: NoiseLevels.from_betas(torch.tensor(0.1)), r"must be \[T\]"),
        (lambda: noise.zero_terminal_snr(cosine_betas(0)), "at least two betas"),
        (lambda: noise.zero_terminal_snr(cosine_betas(1)), "at least two betas"),
    ],
)
def test_numbers_that_make_no_levels_are_refused(make: Callable[[], object], named: str):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("sigma", [NAN, INF, -INF, -1.0])
def test_a_sigma_that_is_no_level_is_refused(sigma: float):
    asked = torch.tensor([1.0, sigma], dtype=F64)
    for limits in (NoiseRange(0.002, 80.0), LINEAR.range):
        with pytest.raises(ValueError, match="finite and not negative"):
            limits.check(asked)
    with pytest.raises(ValueError, match="finite and not negative"):
        LINEAR.condition(torch.tensor([sigma], dtype=F64))


def test_karras_is_linear_in_the_root():
    grid = noise.karras(18)
    assert grid[[0, -2]].tolist() == pytest.approx([80.0, 0.002], rel=1e-13)
    step = (grid[:-1] ** (1 / 7)).diff()
    torch.testing.assert_close(step, step[:1].expand(17), rtol=1e-10, atol=0)
    assert noise.karras(1).tolist() == pytest.approx([80.0, 0.0])


def test_edms_vp_grid():
    """EDM Table 1: sigma at t = 1 + i / (N - 1) (eps_s - 1), beta_d 19.9, beta_min 0.1."""
    grid = noise.vp(256)
    t = [1 + i / 255 * (1e-3 - 1) for i in range(256)]
    expected = [math.sqrt(math.expm1(0.5 * 19.9 * u**2 + 0.1 * u)) for u in t]
    assert grid[:-1].tolist() == pytest.approx(expected, rel=1e-12)
    assert float(grid[0]) == pytest.approx(152.17, rel=1e-4)


def test_edms_ve_grid():
    """EDM Table 1: sigma^2 in geometric progression from 100^2 to 0.02^2."""
    grid = noise.ve(5)
    expected = [math.sqrt(1e4 * (0.02**2 / 1e4) ** (i / 4)) for i in range(5)]
    assert grid[:-1].tolist() == pytest.approx(expected, rel=1e-12)


def test_iddpm_levels_have_the_published_values():
    u = noise.iddpm_levels()
    assert u.shape == (1000,)
    assert float(u[0]) == pytest.approx(20291.17, rel=1e-6)
    assert float(u[8]) == pytest.approx(80.2037, rel=1e-6)
    assert float(u[999]) == pytest.approx(0.00642541, rel=1e-6)
    assert (u.diff() < 0).all()
    assert int(((u >= 0.002) & (u <= 81)).sum()) == 992
    grid = noise.iddpm(18)
    assert [float(grid[0]), float(grid[-2])] == [float(u[8]), float(u[999])]
    assert torch.isin(grid[:-1], u).all()


def test_sub_sequences_are_unique_and_have_both_ends():
    for choose in (noise.uniform, noise.quadratic):
        for total in (1, 2, 7, 50, 1000):
            for count in {1, 2, 3, total // 3, total // 2, total - 1, total}:
                if not 1 <= count <= total:
                    continue
                chosen = choose(total, count)
                assert len(chosen) == count
                assert all(a < b for a, b in pairwise(chosen))
                assert chosen[-1] == total - 1
                assert count == 1 or chosen[0] == 0


def test_sub_sequences_have_the_papers_spacing():
    assert noise.uniform(1000, 5) == [0, 250, 500, 749, 999]
    spread = noise.uniform(1000, 50)
    assert all(abs(i - j * 999 / 49) <= 0.5 for j, i in enumerate(spread))
    dense = noise.quadratic(1000, 10)
    assert all(abs(i - 999 * (j / 9) ** 2) < 1 for j, i in enumerate(dense))
    assert noise.strided(1000, 50) == list(range(0, 1000, 20))
    assert noise.strided(1000, 30) == list(range(0, 990, 33))


@pytest.mark.parametrize("choose", [noise.uniform, noise.quadratic, noise.strided])
@pytest.mark.parametrize("count", [0, -1, 11])
def test_impossible_sub_sequences(choose: Callable[[int, int], list[int]], count: int):
    with pytest.raises(ValueError, match="1 to 10"):
        choose(10, count)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([1.0, 0.5, 0.5, 0.0], r"sigma\[1\] = 0.5 is followed by 0.5"),
        ([1.0, 0.5, 0.7, 0.0], r"sigma\[1\] = 0.5 is followed by 0.7"),
        ([0.1, 0.5, 0.4], r"sigma\[1\] = 0.5 is followed by 0.4"),
        ([1.0, 1.0, 0.5], r"sigma\[0\] = 1 is followed by 1"),
        ([1.0], "at least two levels"),
        ([1.0, -0.5], "not negative"),
        ([float("nan"), 0.0], "finite"),
        ([float("inf"), 1.0], "finite"),
        ([0.0, 1.0], "starts at the first trained level"),
    ],
)
def test_grids_must_be_strictly_monotone(grid: list[float], message: str):
    with pytest.raises(ValueError, match=message):
        check_grid(torch.tensor(grid, dtype=F64), may_ascend=True)


def test_ascending_grids_need_permission():
    ascending = torch.tensor([0.1, 1.0], dtype=F64)
    check_grid(ascending, may_ascend=True)
    with pytest.raises(ValueError, match="cannot walk up"):
        check_grid(ascending, may_ascend=False)


# --- processes -----------------------------------------------------------------------------------


def test_vp_at_its_smallest_time():
    """float32 gives 9.7656e-4 here: 2.4 % off."""
    assert VP().range.low == pytest.approx(1.0004976e-3, rel=1e-7)


@pytest.mark.parametrize("process", [VP(), SubVP(), VP(15.0, 0.2), SubVP(15.0, 0.2)])
def test_time_inverts_sigma(process: VP | SubVP):
    t = torch.cat([torch.tensor([1e-7, 1e-5, 1e-3], dtype=F64), torch.linspace(0.01, 1, 50)])
    t = t.to(F64)
    torch.testing.assert_close(process.time(process.sigma(t)), t, rtol=1e-11, atol=0)
    torch.testing.assert_close(process.condition(process.sigma(t)), 999 * t, rtol=1e-11, atol=0)


def test_processes_agree_with_their_sdes():
    """Score-SDE eq. 29: mean factor exp(-B/2); 1 - exp(-B) is VP's std^2, sub-VP's std."""
    t = torch.linspace(0.01, 1, 20, dtype=F64)
    b = 0.5 * 19.9 * t**2 + 0.1 * t
    for process, std in ((VP(), (1 - torch.exp(-b)).sqrt()), (SubVP(), 1 - torch.exp(-b))):
        sigma = process.sigma(t)
        torch.testing.assert_close(process.scale(sigma), torch.exp(-b / 2), rtol=1e-10, atol=0)
        torch.testing.assert_close(process.scale(sigma) * sigma, std, rtol=1e-10, atol=0)


def test_ve_tells_the_network_half_sigmas_logarithm():
    sigma = torch.tensor([0.02, 2.0, 100.0], dtype=F64)
    assert VE().condition(sigma).tolist() == pytest.approx(
        [math.log(s / 2) for s in (0.02, 2, 100)]
    )
    assert VE().scale(sigma).tolist() == [1.0, 1.0, 1.0]
