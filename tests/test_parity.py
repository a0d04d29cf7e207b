"""Agreement with independent implementations, run at test time on recorded noise.

diffusers' DDIM and DDPM schedulers at fixed time steps, and k-diffusion's samplers at fixed
sigmas. With our float64 levels in their tables they agree to 1e-9; as shipped (float32 tables) to
1e-5 where their tables hold that many digits: neither 1 - abar near the data nor abar near pure
noise does on the whole ladder (1000 linear steps: 4e-5; noise prediction on the cosine one, whose
abar ends at 2e-9: 1e-3), so those are compared in float64 only. And only settings are compared
under which a peer steps to the listed next level: diffusers' DDIM computes it as t - T // S, which
is the listed one for "leading" spacing with S dividing T.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.gaussian import Gaussian
from sfumato.noise import NoiseLevels, cosine_betas, karras, linear_betas, strided, uniform
from sfumato.parameterization import (
    predicts_noise,
    predicts_v,
    predicts_x0,
    unit_gaussian,
    zero_variance,
)
from sfumato.protocols import Solver
from sfumato.randomness import Purpose, noise_for
from sfumato.sampling import sample
from sfumato.solvers import DDIM, Ancestral, Churn, Euler, Heun

F64 = torch.float64
COUNT, SHAPE = 3, (2, 4, 4)
NOISE = noise_for(11, COUNT)
START = NOISE.normal(SHAPE, Purpose.START, F64)
BETAS = {"linear": linear_betas(1000), "squaredcos_cap_v2": cosine_betas(1000)}
PREDICTIONS = {
    "epsilon": predicts_noise,
    "sample": predicts_x0,
    "v_prediction": predicts_v,
}


def net(x: Tensor, t: Tensor) -> Tensor:
    """Smooth in x_t, and near the noise in unit Gaussian data so that a chain stays bounded.

    (Otherwise 1000 steps amplify the rounding of a peer's tables, whatever we compute.)
    """
    i = t.reshape(-1, 1, 1, 1)
    level = (1 - torch.cumprod(1 - BETAS["linear"], 0))[i.long()].sqrt()
    return level * (x + 0.3 * torch.sin(2 * x.roll(1, -1) + i / 150))


@pytest.fixture(scope="module")
def schedulers() -> types.ModuleType:
    return pytest.importorskip("diffusers.schedulers", reason="diffusers is not installed")


def configured(kind: Any, schedule: str, *, float64: bool, **options: Any) -> Any:
    scheduler = kind(
        beta_schedule=schedule, clip_sample=False, timestep_spacing="leading", **options
    )
    if float64:
        scheduler.alphas_cumprod = torch.cumprod(1 - BETAS[schedule], 0)
    return scheduler


def ours(solver: Solver[Any], schedule: str, indices: list[int], prediction: str, var: Any):
    """Our states after every step, in DDPM's coordinates."""
    levels = NoiseLevels.from_betas(BETAS[schedule])
    denoise = PREDICTIONS[prediction](net, levels, var)
    grid = levels.descending(indices)
    x = START / levels.scale(grid[0])
    for step in sample(denoise, solver, grid, x, NOISE):
        yield step.x * levels.scale(torch.tensor(step.sigma_next, dtype=F64))


def compare(pairs: Iterator[tuple[Tensor, Tensor]], tolerance: float) -> None:
    steps = 0
    for a, b in pairs:
        steps += 1
        scale = max(1.0, float(a.abs().max()))
        assert float((a - b).abs().max()) < tolerance * scale, f"after step {steps}"
    assert steps > 0


@pytest.mark.parametrize(
    ("schedule", "steps", "float64", "tolerance"),
    [
        ("linear", 50, True, 1e-9),
        ("squaredcos_cap_v2", 20, True, 1e-9),
        ("linear", 50, False, 1e-5),
    ],
)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_diffusers_ddim(
    schedulers: types.ModuleType,
    steps: int,
    schedule: str,
    eta: float,
    prediction: str,
    float64: bool,
    tolerance: float,
):
    scheduler = configured(
        schedulers.DDIMScheduler, schedule, float64=float64, prediction_type=prediction
    )
    scheduler.set_timesteps(steps)
    indices = strided(1000, steps)
    assert scheduler.timesteps.tolist() == indices[::-1]

    def theirs() -> Iterator[Tensor]:
        x = START
        for number, t in enumerate(scheduler.timesteps):
            z = NOISE.at(number).normal(SHAPE, Purpose.TRANSITION, F64)
            out = net(x, t.to(F64).expand(COUNT))
            x = scheduler.step(out, int(t), x, eta=eta, variance_noise=z).prev_sample
            yield x

    pairs = zip(
        ours(DDIM(eta), schedule, indices, prediction, zero_variance), theirs(), strict=True
    )
    compare(pairs, tolerance)


@pytest.mark.parametrize(
    ("schedule", "count", "float64", "tolerance"),
    [
        ("linear", 1000, True, 1e-9),
        ("linear", 37, True, 1e-9),
        ("squaredcos_cap_v2", 37, True, 1e-9),
        ("linear", 37, False, 1e-5),
    ],
)
@pytest.mark.parametrize(
    ("variance_type", "var"), [("fixed_small", zero_variance), ("fixed_large", unit_gaussian)]
)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_diffusers_ddpm(
    schedulers: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
    count: int,
    prediction: str,
    variance_type: str,
    var: Any,
    float64: bool,
    tolerance: float,
):
    scheduler = configured(
        schedulers.DDPMScheduler,
        schedule,
        float64=float64,
        prediction_type=prediction,
        variance_type=variance_type,
    )
    indices = uniform(1000, count)
    scheduler.set_timesteps(timesteps=indices[::-1])
    number = 0

    def recorded(shape: Any, **_: Any) -> Tensor:
        return NOISE.at(number).normal(SHAPE, Purpose.TRANSITION, F64)

    monkeypatch.setattr(sys.modules[scheduler.__module__], "randn_tensor", recorded)

    def theirs() -> Iterator[Tensor]:
        nonlocal number
        x = START
        for number, t in enumerate(scheduler.timesteps):  # noqa: B007 (read by `recorded`)
            x = scheduler.step(net(x, t.to(F64).expand(COUNT)), t, x).prev_sample
            yield x

    pairs = zip(ours(Ancestral(), schedule, indices, prediction, var), theirs(), strict=True)
    compare(pairs, tolerance)


# --- k-diffusion --------------------------------------------------------------------------------

Model = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(scope="module")
def k_diffusion() -> Iterator[types.ModuleType]:
    """Its sampling.py alone: the package itself imports a dozen others."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("k-diffusion is not installed: pip install --no-deps k-diffusion")
    folder = next(iter(spec.submodule_search_locations))
    utils = types.ModuleType("_k.utils")
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
    package = types.ModuleType("_k")
    package.__path__ = [folder]
    package.utils = utils  # type: ignore[attr-defined]
    ode = types.ModuleType("torchdiffeq")
    ode.odeint = None  # type: ignore[attr-defined]
    stubs = {"_k": package, "_k.utils": utils, "torchdiffeq": ode}
    stubs["torchsde"] = types.ModuleType("torchsde")
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stubs.items():
            patch.setitem(sys.modules, name, module)
        location = importlib.util.spec_from_file_location("_k.sampling", f"{folder}/sampling.py")
        assert location is not None
        assert location.loader is not None
        sampling = importlib.util.module_from_spec(location)
        location.loader.exec_module(sampling)
        yield sampling


def model(x: Tensor, sigma: Tensor) -> Tensor:
    """A smooth D(x, sigma), sigma [B]."""
    s = sigma.reshape(-1, 1, 1, 1)
    return torch.tanh(x / (1 + s)) + 0.1 * torch.sin(s.log()) * x.roll(1, -1) / (1 + s)


def denoise(x: Tensor, sigma: Tensor) -> Gaussian:
    return Gaussian(model(x, sigma.expand(len(x))), torch.zeros((), dtype=x.dtype))


CHURN = {"s_churn": 5.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.007}


def churned(solver: Solver[Any]) -> Solver[Any]:
    return Churn(solver, 5.0, low=0.05, high=50.0, inflation=1.007)


def levels_to_zero(top: int) -> Tensor:
    return NoiseLevels.from_betas(linear_betas(1000)).descending(uniform(top, 25))


GRIDS = [karras(18), karras(40, low=0.01, high=50.0), levels_to_zero(1000)]


def last(solver: Solver[Any], grid: Tensor) -> Tensor:
    *_, end = sample(denoise, solver, grid, START * grid[0], NOISE)
    return end.x


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("name", "solver", "options"),
    [
        ("sample_euler", Euler(), {}),
        ("sample_euler", DDIM(0.0), {}),
        ("sample_heun", Heun(), {}),
        ("sample_euler", churned(Euler()), CHURN),
        ("sample_heun", churned(Heun()), CHURN),
        ("sample_euler", Churn(Euler(), 1e9), {"s_churn": 1e9}),
    ],
)
def test_k_diffusion(
    k_diffusion: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    solver: Solver[Any],
    options: dict[str, float],
    grid: Tensor,
):
    numbers = iter(range(1000))  # it draws at every step, also where it adds nothing
    monkeypatch.setattr(
        torch, "randn_like", lambda x: NOISE.at(next(numbers)).normal(SHAPE, Purpose.CHURN, F64)
    )
    theirs = getattr(k_diffusion, name)(model, START * grid[0], grid, disable=True, **options)
    torch.testing.assert_close(last(solver, grid), theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("grid", GRIDS)
def test_k_diffusions_ancestral_euler_is_ddim(
    k_diffusion: types.ModuleType, grid: Tensor, eta: float
):
    numbers = iter(range(1000))

    def draw(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return NOISE.at(next(numbers)).normal(SHAPE, Purpose.TRANSITION, F64)

    theirs = k_diffusion.sample_euler_ancestral(
        model, START * grid[0], grid, disable=True, eta=eta, noise_sampler=draw
    )
    torch.testing.assert_close(last(DDIM(eta), grid), theirs, rtol=1e-11, atol=1e-11)


def test_k_diffusions_karras_grid(k_diffusion: types.ModuleType):
    """Theirs is float32 (trap 32)."""
    theirs = k_diffusion.get_sigmas_karras(18, 0.002, 80.0)
    torch.testing.assert_close(karras(18).float(), theirs, rtol=2e-5, atol=0)
