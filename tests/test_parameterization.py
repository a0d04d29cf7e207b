"""Every parameterization on every process gives the same exact denoiser.

The networks below are built from an oracle by the papers' own formulas: they see what a network
of that process sees, decode the number they are told, and return what such a network predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oracles import EmpiricalData, GaussianOracle, Mixture
from sfumato.denoiser import Clipped, Counted
from sfumato.diffusion import decoder_term
from sfumato.gaussian import Gaussian
from sfumato.noise import (
    VE,
    VP,
    Interpolated,
    NoiseLevels,
    SubVP,
    cosine_betas,
    geometric,
    karras,
    linear_betas,
    uniform,
    zero_terminal_snr,
)
from sfumato.parameterization import (
    Adapted,
    edm_preconditioned,
    predicts_mean,
    predicts_noise,
    predicts_score,
    predicts_v,
    predicts_x0,
    unit_gaussian,
)
from sfumato.protocols import is_denoiser

F64 = torch.float64
ORACLE = Mixture()
BETA = linear_betas(1000)
ABAR = torch.cumprod(1 - BETA, 0)
LADDER = NoiseLevels.from_betas(BETA)
NCSN = NoiseLevels.geometric(100, 0.01, 50.0)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@dataclass(frozen=True)
class Case:
    """A process, levels to ask at, and how (input scale, sigma) follow from the number told."""

    process: NoiseLevels | VP | SubVP | VE | Interpolated
    sigmas: Tensor
    decode: Callable[[Tensor], tuple[Tensor, Tensor]]


def decode_ladder(told: Tensor) -> tuple[Tensor, Tensor]:
    a = ABAR[told.long()]
    return a.sqrt(), ((1 - a) / a).sqrt()


def decode_ncsn(told: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(told), 0.01 * (50 / 0.01) ** (told / 99)


def decode_vp(told: Tensor) -> tuple[Tensor, Tensor]:
    b = 0.5 * 19.9 * (told / 999) ** 2 + 0.1 * told / 999
    return torch.exp(-b / 2), torch.expm1(b).sqrt()


def decode_sub_vp(told: Tensor) -> tuple[Tensor, Tensor]:
    b = 0.5 * 19.9 * (told / 999) ** 2 + 0.1 * told / 999
    return torch.exp(-b / 2), -torch.expm1(-b) * torch.exp(b / 2)


def decode_ve(told: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(told), 2 * told.exp()


def decode_between(told: Tensor) -> tuple[Tensor, Tensor]:
    below = told.floor().long().clamp(max=998)
    logs = (1 / ABAR - 1).sqrt().log()
    sigma = torch.exp(logs[below] + (told - below) * (logs[below + 1] - logs[below]))
    return (1 + sigma**2).rsqrt(), sigma


SPREAD = torch.tensor([0.05, 0.3, 1.1, 7.0, 40.0], dtype=F64)
CASES = {
    "ladder": Case(LADDER, LADDER.sigma[[0, 1, 10, 500, 999]], decode_ladder),
    "ncsn": Case(NCSN, NCSN.sigma[[0, 1, 20, 50, 99]], decode_ncsn),
    "vp": Case(VP(), SPREAD, decode_vp),
    "sub-vp": Case(SubVP(), SPREAD, decode_sub_vp),
    "ve": Case(VE(), SPREAD, decode_ve),
    "between": Case(Interpolated(LADDER), SPREAD, decode_between),
}

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From x, exact x0, sigma and the input scale, all [B, ...], to what such a network predicts."""


def noise_of(x: Tensor, x0: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
    return (x - x0) / sigma


def x0_of(x: Tensor, x0: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
    return x0


def v_of(x: Tensor, x0: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
    alpha = 1 / (1 + sigma**2)  # abar at this ratio of noise to signal
    return alpha.sqrt() * (x - x0) / sigma - (1 - alpha).sqrt() * x0


def score_of(x: Tensor, x0: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
    return (x0 - x) / sigma**2 / scale


ADAPTERS: dict[str, tuple[Callable[..., Adapted], Predict]] = {
    "noise": (predicts_noise, noise_of),
    "x0": (predicts_x0, x0_of),
    "v": (predicts_v, v_of),
    "score": (predicts_score, score_of),
}


def network(case: Case, predict: Predict) -> Callable[[Tensor, Tensor], Tensor]:
    def forward(seen: Tensor, told: Tensor) -> Tensor:
        assert told.shape == (len(seen),)
        scale, sigma = (v.reshape(-1, 1, 1) for v in case.decode(told))
        x = seen / scale
        return predict(x, ORACLE(x, sigma.flatten()).mean, sigma, scale)

    return forward


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", CASES)
def test_every_parameterization_on_every_process_is_the_oracle(name: str, adapter: str):
    case = CASES[name]
    adapt, predict = ADAPTERS[adapter]
    denoise = adapt(network(case, predict), case.process, unit_gaussian)
    for sigma in case.sigmas:
        x = numbers(4, 3, 2) * (1 + sigma)
        exact = ORACLE(x, sigma).mean
        out = denoise(x, sigma)
        torch.testing.assert_close(out.mean, exact, rtol=1e-9, atol=1e-9)
        assert float(out.var) == pytest.approx(float(sigma**2 / (1 + sigma**2)))


@pytest.mark.parametrize("name", ["ladder", "ncsn"])
def test_the_posterior_mean_is_the_oracle_too(name: str):
    """DDPM's mu by its eq. (7), with betas; NCSN's by the same Bayes rule, unscaled."""
    case = CASES[name]
    assert isinstance(case.process, NoiseLevels)
    ladder = case.process.sigma

    def forward(seen: Tensor, told: Tensor) -> Tensor:
        scale, sigma = (v.reshape(-1, 1, 1) for v in case.decode(told))
        x0 = ORACLE(seen / scale, sigma.flatten()).mean
        i = told.long()
        if name == "ladder":
            before = torch.where(i > 0, ABAR[(i - 1).clamp(min=0)], 1.0)
            c0 = before.sqrt() * BETA[i] / (1 - ABAR[i])
            ct = (1 - BETA[i]).sqrt() * (1 - before) / (1 - ABAR[i])
        else:
            below = torch.where(i > 0, ladder[(i - 1).clamp(min=0)], 0.0)
            ct = below**2 / ladder[i] ** 2
            c0 = 1 - ct
        return c0.reshape(-1, 1, 1) * x0 + ct.reshape(-1, 1, 1) * seen

    denoise = predicts_mean(forward, case.process)
    for sigma in case.sigmas:
        x = numbers(4, 3, 2) * (1 + sigma)
        out = denoise(x, sigma).mean
        # mu holds 1 - keep of x0 only: that many digits are lost by construction
        torch.testing.assert_close(out, ORACLE(x, sigma).mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_preconditioning_is_the_oracle_too(sigma_data: float):
    """EDM Table 1, last column, from the printed c_skip, c_out, c_in and c_noise."""

    def forward(seen: Tensor, told: Tensor) -> Tensor:
        sigma = (4 * told).exp().reshape(-1, 1, 1)
        total = sigma**2 + sigma_data**2
        x = seen * total.sqrt()
        x0 = ORACLE(x, sigma.flatten()).mean
        return (x0 - sigma_data**2 / total * x) / (sigma * sigma_data / total.sqrt())

    denoise = edm_preconditioned(forward, sigma_data)
    for sigma in SPREAD:
        x = numbers(4, 3, 2) * (1 + sigma)
        exact = ORACLE(x, sigma).mean
        torch.testing.assert_close(denoise(x, sigma).mean, exact, rtol=1e-9, atol=1e-9)


def test_edm_preconditioning_has_unit_variances():
    """EDM appendix B.6: inputs and training targets have variance 1 for data of sigma_data."""
    sigma_data = 0.7
    oracle = GaussianOracle.diagonal([sigma_data**2])
    coefficients = edm_preconditioned(lambda x, c: x, sigma_data).coefficients
    process = edm_preconditioned(lambda x, c: x, sigma_data).process
    for sigma in karras(10)[:-1]:
        c_skip, c_out = coefficients(sigma)
        c_in = process.scale(sigma)
        assert float(c_in**2 * (oracle.eigenvalues + sigma**2)) == pytest.approx(1)
        # target (x0 - c_skip x) / c_out with x = x0 + sigma noise
        var = ((1 - c_skip) ** 2 * oracle.eigenvalues + (c_skip * sigma) ** 2) / c_out**2
        assert float(var) == pytest.approx(1)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", CASES)
def test_a_level_per_image_equals_one_by_one(name: str, adapter: str):
    case = CASES[name]
    adapt, predict = ADAPTERS[adapter]
    denoise = adapt(network(case, predict), case.process, unit_gaussian)
    x = numbers(5, 3, 2)
    together = denoise(x, case.sigmas)
    for i, sigma in enumerate(case.sigmas):
        alone = denoise(x[i : i + 1], sigma)
        torch.testing.assert_close(together.mean[i], alone.mean[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together.var[i].squeeze(), alone.var, rtol=1e-14, atol=0)


def test_conversions_of_ddpms_notation():
    """From one exact x0: noise, v and score satisfy the identities of DDPM, v-prediction, Song."""
    x0, z = numbers(4, 3), numbers(4, 3, seed=1)
    for t in (0, 10, 999):
        a, sigma = ABAR[t], LADDER.sigma[t]
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * z
        x = x_t / a.sqrt()
        outputs = {
            predicts_noise: z,
            predicts_x0: x0,
            predicts_v: a.sqrt() * z - (1 - a).sqrt() * x0,
            predicts_score: -z / (1 - a).sqrt(),
        }
        for adapt, output in outputs.items():
            seen: list[Tensor] = []

            def forward(
                y: Tensor, told: Tensor, output: Tensor = output, seen: list[Tensor] = seen
            ) -> Tensor:
                seen.append(y)
                return output

            mean = adapt(forward, LADDER)(x, sigma).mean
            torch.testing.assert_close(mean, x0, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(seen[0], x_t, rtol=1e-12, atol=1e-12)


# --- refusals ------------------------------------------------------------------------------------

PURE_NOISE = NoiseLevels.from_betas(zero_terminal_snr(BETA))


@pytest.mark.parametrize("adapt", [predicts_noise, predicts_mean, predicts_score])
def test_zero_terminal_snr_is_refused_with_the_reason(adapt: Callable[..., Adapted]):
    with pytest.raises(ValueError, match=r"zero terminal SNR.*predict v or x0"):
        adapt(lambda x, t: x, PURE_NOISE)


def test_zero_terminal_snr_is_refused_between_levels_too():
    for adapt in (predicts_noise, predicts_score):
        with pytest.raises(ValueError, match="zero terminal SNR"):
            adapt(lambda x, t: x, PURE_NOISE, interpolate=True)
        with pytest.raises(ValueError, match="zero terminal SNR"):
            adapt(lambda x, t: x, Interpolated(PURE_NOISE))


def test_v_prediction_works_at_zero_terminal_snr():
    """There v is -x0, whatever the network sees: the mean of the data for an exact network."""

    def forward(seen: Tensor, told: Tensor) -> Tensor:
        assert told.tolist() == [999.0] * 4
        return torch.full_like(seen, -ORACLE.mean())

    x = numbers(4, 3) * PURE_NOISE.sigma[-1]
    mean = predicts_v(forward, PURE_NOISE)(x, PURE_NOISE.sigma[-1]).mean
    torch.testing.assert_close(mean, torch.full_like(mean, ORACLE.mean()), rtol=0, atol=1e-3)


def test_levels_off_the_ladder_need_interpolation():
    off = torch.tensor(1.0, dtype=F64)
    x = numbers(2, 3)
    with pytest.raises(ValueError, match="not a trained level"):
        predicts_noise(lambda y, t: y, LADDER)(x, off)
    told: list[float] = []

    def forward(y: Tensor, t: Tensor) -> Tensor:
        told.append(float(t[0]))
        return y

    predicts_noise(forward, LADDER, interpolate=True)(x, off)
    below = int(told[0])
    assert LADDER.sigma[below] < 1 < LADDER.sigma[below + 1]


# --- dtypes, conditions, variance of the last step -----------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.dtypes |= {x.dtype, t.dtype}
        return self.weight * x


@pytest.mark.parametrize("net_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_dtype_and_the_network_its_own(
    dtype: torch.dtype, net_dtype: torch.dtype
):
    net = Small().to(net_dtype)
    x = numbers(2, 3).to(dtype) * 157
    out = predicts_noise(net, LADDER, unit_gaussian)(x, LADDER.sigma[-1])
    assert out.mean.dtype == out.var.dtype == dtype
    assert net.dtypes == {net_dtype}
    scale = (1 + LADDER.sigma[-1] ** 2).rsqrt()
    exact = x.double() * (1 - LADDER.sigma[-1] * 0.5 * scale)
    rough = torch.float32 in (dtype, net_dtype)
    torch.testing.assert_close(out.mean.double(), exact, rtol=0, atol=1e-4 if rough else 1e-11)


class HalfNetwork(nn.Module):
    """A convolution in half precision that embeds the level in float32, as large networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.mix.weight, 0.5)
        nn.init.zeros_(self.mix.bias)
        self.told: list[float] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.float32
        self.told += t.tolist()
        return self.mix(x)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_networks_in_half_precision_work_and_are_told_the_exact_level(half: torch.dtype):
    net = HalfNetwork().to(half)
    x = numbers(2, 1, 3, 3).float()
    # bfloat16 has no 999: it would be told 1000, which is no level.
    sigma = LADDER.sigma[[999, 998]]
    out = predicts_x0(net, LADDER)(x, sigma)
    assert net.told == [999.0, 998.0]
    assert out.mean.dtype == torch.float32
    exact = 0.5 * x * LADDER.scale(sigma)[:, None, None, None].float()
    torch.testing.assert_close(out.mean, exact, rtol=2**-7, atol=0)


def test_a_float32_sigma_on_the_ladder_is_accepted():
    """A training loop may hand levels in float32: they round to the ladder's own."""
    x, net = numbers(3, 2).float(), Small()
    sigma = LADDER.sigma[[0, 400, 999]]
    a = predicts_x0(net, LADDER)(x, sigma.float()).mean
    torch.testing.assert_close(a, predicts_x0(net, LADDER)(x, sigma).mean)


def test_conditions_reach_the_network_by_name():
    def forward(x: Tensor, t: Tensor, *, label: Tensor, height: Tensor) -> Tensor:
        return x * 0 + label[:, None] + height

    denoise = predicts_x0(forward, VP())
    bound = denoise.given(label=torch.tensor([1.0, 2.0])).given(height=torch.tensor(10.0))
    assert bound(numbers(2, 1), SPREAD[0]).mean.tolist() == [[11.0], [12.0]]
    rebound = bound.given(height=torch.tensor(0.0)).on(karras(4))
    assert rebound(numbers(2, 1), SPREAD[0]).mean.tolist() == [[1.0], [2.0]]


def test_decoder_var_is_ddpms_and_follows_the_grid():
    denoise = predicts_noise(lambda x, t: x, LADDER)
    assert float(denoise.decoder_var) == pytest.approx(5.4532e-5, rel=1e-5)
    a, b = ABAR[4], ABAR[104]
    respaced = (1 - b / a) * (1 - a) / (1 - b)  # beta-tilde of the respaced chain, second level
    grid = LADDER.descending([4, 104, 500])
    assert float(denoise.on(grid).decoder_var) == pytest.approx(float(respaced), rel=1e-12)
    assert float(denoise.on(LADDER.ascending()).decoder_var) == pytest.approx(5.4532e-5, rel=1e-5)


def test_decoder_var_without_a_ladder_must_be_fitted_or_bound():
    denoise = edm_preconditioned(lambda x, t: x)
    assert is_denoiser(denoise)
    with pytest.raises(ValueError, match="bind a grid of at least two levels"):
        _ = denoise.decoder_var
    assert 0 < float(denoise.on(karras(18)).decoder_var) < 0.002**2
    fitted = Adapted(denoise.network, denoise.process, denoise.coefficients, fixed_decoder_var=0.1)
    assert float(fitted.decoder_var) == pytest.approx(0.1)
    assert float(fitted.on(karras(18)).decoder_var) == pytest.approx(0.1)


@pytest.mark.parametrize("var", [0.0, -1e-5, float("nan"), float("inf")])
def test_a_decoder_without_variance_is_refused(var: float):
    """With none, -log p is infinite for every image that is not predicted exactly."""
    denoise = edm_preconditioned(lambda x, t: x)
    with pytest.raises(ValueError, match="variance must be above 0"):
        Adapted(denoise.network, denoise.process, denoise.coefficients, fixed_decoder_var=var)
    if var != float("inf"):
        x0 = numbers(2, 3)
        given = Gaussian(x0, torch.zeros((), dtype=F64))
        with pytest.raises(ValueError, match="variance must be above 0"):
            decoder_term(x0, given, torch.tensor(var, dtype=F64), 1 / 255)


def test_priors():
    assert float(predicts_noise(lambda x, t: x, LADDER).prior.var) == pytest.approx(
        1 / float(ABAR[-1]), rel=1e-10
    )
    assert float(edm_preconditioned(lambda x, t: x).prior.var) == 6400


# --- combinators and oracles ---------------------------------------------------------------------


def test_clipped_clamps_the_mean_and_forwards_the_rest():
    inner = predicts_x0(lambda x, t: 3 * x, LADDER, unit_gaussian)
    clipped = Clipped(inner, -0.5, 2.0)
    x = torch.tensor([[-1.0], [0.1], [1.0]], dtype=F64)
    out = clipped(x, LADDER.sigma[3])
    seen = 3 * x * LADDER.scale(LADDER.sigma[3])
    assert -0.5 < float(seen[1]) < 2
    assert out.mean.flatten().tolist() == pytest.approx([-0.5, float(seen[1]), 2.0])
    assert float(out.var) == float(inner(x, LADDER.sigma[3]).var)
    grid = LADDER.descending([4, 104, 500])
    assert clipped.on(grid).decoder_var == inner.on(grid).decoder_var
    assert clipped.range.high == inner.range.high
    assert clipped.prior.var == inner.prior.var
    assert clipped.on(grid).low == -0.5


def test_counted_counts():
    counted = Counted(ORACLE)
    assert counted.range is None
    x = numbers(2, 1)
    for _ in range(3):
        out: Gaussian = counted(x, SPREAD[0])
    assert counted.evaluations == 3
    assert counted.last is out.mean
    assert Counted(predicts_x0(lambda x, t: x, VP())).range is not None


def test_oracles_satisfy_tweedies_formulas():
    """D = x + sigma^2 score and dD/dx = var / sigma^2: the oracles against each other."""
    x = torch.linspace(-6, 6, 41, dtype=F64)[:, None].requires_grad_()
    for sigma in SPREAD:
        out = ORACLE(x, sigma)
        torch.testing.assert_close(out.mean, x + sigma**2 * ORACLE.score(x, sigma))
        (slope,) = torch.autograd.grad(out.mean.sum(), x)
        torch.testing.assert_close(slope, out.var / sigma**2, rtol=1e-9, atol=1e-12)
        (density,) = torch.autograd.grad(ORACLE.cdf(x, sigma).sum(), x)
        torch.testing.assert_close(density, ORACLE.pdf(x, sigma), rtol=1e-9, atol=1e-14)
        (score,) = torch.autograd.grad(ORACLE.pdf(x, sigma).log().sum(), x)
        torch.testing.assert_close(score, ORACLE.score(x, sigma), rtol=1e-7, atol=1e-9)


def test_gaussian_oracle_agrees_with_linear_regression():
    root = numbers(4, 4)
    oracle = GaussianOracle.full(numbers(4, seed=1), root @ root.T)
    x = numbers(3, 4, seed=2)
    for sigma in SPREAD:
        gain = oracle.covariance @ torch.linalg.inv(
            oracle.covariance + sigma**2 * torch.eye(4, dtype=F64)
        )
        expected = oracle.mean + (x - oracle.mean) @ gain.T
        torch.testing.assert_close(oracle(x, sigma).mean, expected, rtol=1e-8, atol=1e-8)
        exact = oracle.covariance - gain @ oracle.covariance
        torch.testing.assert_close(oracle.posterior_covariance(sigma), exact, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(
            oracle(x, sigma).var[0], oracle.posterior_covariance(sigma).diagonal()
        )


def test_empirical_data_denoise_to_the_nearest_point_and_to_the_mean():
    points = numbers(5, 2, 2)
    data = EmpiricalData(points)
    near = data(points + 0.01, torch.tensor(0.02, dtype=F64))
    torch.testing.assert_close(near.mean, points, rtol=0, atol=1e-9)
    far = data(points, torch.tensor(1e6, dtype=F64))
    torch.testing.assert_close(far.mean, points.mean(0).expand_as(points), rtol=0, atol=1e-9)
    torch.testing.assert_close(far.var, points.var(0, correction=0).expand_as(points))


def test_mixture_flow_of_one_component_is_the_gaussian_flow():
    one, oracle = Mixture((1.0,), (0.4,), 0.3), GaussianOracle.diagonal([0.09], mean=0.4)
    x = torch.linspace(-20, 20, 21, dtype=F64)[:, None]
    torch.testing.assert_close(one.flow(x, 5.0, 0.1), oracle.flow(x, 5.0, 0.1))
    assert one.entropy() == pytest.approx(oracle.entropy(), abs=1e-12)
    assert math.isclose(one.var(), 0.09)


def test_grids_outside_the_cosine_ladder_are_errors():
    levels = NoiseLevels.from_betas(cosine_betas(100))
    with pytest.raises(ValueError, match="not a trained level"):
        levels.range.check(geometric(5, 0.05, 50.0))


def test_a_network_that_wraps_its_output_is_refused_with_a_way_out() -> None:
    class Output:
        sample = torch.ones(2, 1)

    levels = NoiseLevels.from_betas(linear_betas(1000))
    x, sigma = torch.ones(2, 1), levels.descending(uniform(1000, 5))[2]
    with pytest.raises(TypeError, match=r"returned Output, not a tensor: wrap it.*\.sample"):
        predicts_noise(lambda x, t: Output(), levels)(x, sigma)
    wrapped = predicts_noise(lambda x, t: Output().sample, levels)(x, sigma)
    assert torch.allclose(wrapped.mean, 1 - sigma.float())
