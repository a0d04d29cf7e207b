"""Deterministic solvers against independent implementations at fixed sigmas, run at test time.

diffusers' schedulers are handed our sigmas and the same D; those that keep x_t work on
x / sqrt(1 + sigma^2). They agree to rounding in float64; its Euler and DPM-Solver++ schedulers cast
x to float32 in each step and agree to that. k-diffusion's samplers take sigmas as they are.

Documented differences: PNDM's half step is at half of sigma here, at half of the integer time there
(compared on a ladder where both are one); diffusers' DEIS never walks to 0 (it ends at sigma_min)
and its UniPC of type bh1 is NaN there; our order 3 is not the published one, and our order 2 is
diffusers' "heun" type; diffusers' 3S and k-diffusion's 3M have another formula inside.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.gaussian import Gaussian
from sfumato.noise import NoiseLevels, karras, linear_betas, uniform
from sfumato.protocols import Solver
from sfumato.randomness import Purpose, noise_for
from sfumato.sampling import sample
from sfumato.solvers import (
    DEIS,
    PLMS,
    PNDM,
    AdamsBashforth,
    Euler,
    Heun,
    Multistep,
    RungeKutta,
    SingleStep,
    UniPC,
)
from sfumato.solvers.tableau import EULER, HEUN
from sfumato.solvers.unipc import Variant

F64 = torch.float64
START = noise_for(11, 3).normal((2, 4, 4), Purpose.START, F64)


def model(x: Tensor, sigma: Tensor) -> Tensor:
    """A smooth D(x, sigma), sigma [B]."""
    s = sigma.reshape(-1, 1, 1, 1)
    return torch.tanh(x / (1 + s)) + 0.1 * torch.sin(s.log()) * x.roll(1, -1) / (1 + s)


def denoise(x: Tensor, sigma: Tensor) -> Gaussian:
    return Gaussian(model(x, sigma.expand(len(x))), torch.zeros((), dtype=x.dtype))


def ours(solver: Solver[Any], grid: Tensor) -> Tensor:
    *_, last = sample(denoise, solver, grid, START * grid[0])
    return last.x


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    error = float((a - b).abs().max() / b.abs().max())
    assert error < tolerance


GRIDS = [
    karras(12),
    karras(40, low=0.01, high=50.0),
    NoiseLevels.from_betas(linear_betas(1000)).descending(uniform(1000, 25)),
]
FEW, MANY, LADDER = GRIDS

# --- diffusers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schedulers() -> types.ModuleType:
    return pytest.importorskip("diffusers.schedulers", reason="diffusers is not installed")


def theirs(scheduler: Any, grid: Tensor, *, scaled: bool) -> Tensor:
    """Walk a scheduler that predicts x0 along our grid, each step at its own index."""
    steps = len(grid) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas = grid.clone()
    scheduler.timesteps = torch.arange(steps, 0, -1)
    if hasattr(scheduler, "order_list"):
        scheduler.order_list = scheduler.get_order_list(steps)
    scheduler.set_begin_index(0)
    scale = torch.rsqrt(1 + grid**2) if scaled else torch.ones_like(grid)
    x = START * grid[0] * scale[0]
    for k, time in enumerate(scheduler.timesteps):
        clean = model(x / scale[k], grid[k].expand(len(x)))
        x = scheduler.step(clean, time, x).prev_sample
    return x / scale[-1]


@pytest.mark.parametrize("grid", GRIDS, ids=["few", "many", "ladder"])
def test_diffusers_euler(schedulers: types.ModuleType, grid: Tensor):
    scheduler = schedulers.EulerDiscreteScheduler(prediction_type="sample")
    scheduler.set_timesteps(len(grid) - 1)
    scheduler.sigmas = grid.clone()
    scheduler.timesteps = torch.arange(len(grid) - 1, 0, -1.0)
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True
    x = START * grid[0]
    for k, time in enumerate(scheduler.timesteps):
        x = scheduler.step(model(x, grid[k].expand(len(x))), time, x).prev_sample
    for solver in (Euler(), RungeKutta(EULER)):
        close(x, ours(solver, grid), 2e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=["few", "many", "ladder"])
def test_diffusers_heun(schedulers: types.ModuleType, grid: Tensor):
    scheduler = schedulers.HeunDiscreteScheduler(prediction_type="sample")
    scheduler.set_timesteps(len(grid) - 1)
    twice = torch.cat([grid[:1], grid[1:-1].repeat_interleave(2), grid[-1:]])
    scheduler.sigmas = twice
    scheduler.set_begin_index(0)
    x = START * grid[0]
    for sigma in twice[:-1]:
        x = scheduler.step(model(x, sigma.expand(len(x))), sigma, x).prev_sample
    for solver in (Heun(), RungeKutta(HEUN)):
        close(x, ours(solver, grid), 1e-12)


# Lower orders at the end are for fewer than 15 steps there.
ENDS = [(FEW, False), (FEW, True), (MANY, False), (LADDER, False)]


@pytest.mark.parametrize(("grid", "final"), ENDS, ids=["few", "few-final", "many", "ladder"])
@pytest.mark.parametrize(
    ("order", "kind", "solver"),
    [
        (1, "midpoint", Multistep(1)),
        (1, "midpoint", Multistep(1, published=True)),
        (2, "midpoint", Multistep(2, published=True)),
        (2, "heun", Multistep(2)),
        (3, "midpoint", Multistep(3, published=True)),
    ],
    ids=str,
)
def test_diffusers_dpm_multistep(
    schedulers: types.ModuleType,
    grid: Tensor,
    order: int,
    kind: str,
    solver: Multistep,
    final: bool,
):
    scheduler = schedulers.DPMSolverMultistepScheduler(
        solver_order=order, solver_type=kind, prediction_type="sample", lower_order_final=final
    )
    solver = Multistep(solver.points, solver.published, lower_at_end=final)
    close(theirs(scheduler, grid, scaled=True), ours(solver, grid), 2e-6)


def test_the_true_third_order_is_another_method(schedulers: types.ModuleType):
    scheduler = schedulers.DPMSolverMultistepScheduler(solver_order=3, prediction_type="sample")
    published = theirs(scheduler, MANY, scaled=True)
    assert float((published - ours(Multistep(3), MANY)).abs().max()) > 1e-4


@pytest.mark.parametrize("grid", GRIDS, ids=["few", "many", "ladder"])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("points", [1, 2, 3])
def test_diffusers_unipc(
    schedulers: types.ModuleType, grid: Tensor, points: int, variant: Variant, final: bool
):
    scheduler = schedulers.UniPCMultistepScheduler(
        solver_order=points,
        solver_type=variant.name.lower(),
        prediction_type="sample",
        lower_order_final=final,
    )
    if not final or variant is Variant.BH1:  # there its formulas are NaN at sigma = 0
        grid = grid[:-1]
    solver = UniPC(points, variant, lower_at_end=final)
    close(theirs(scheduler, grid, scaled=True), ours(solver, grid), 1e-12)


@pytest.mark.parametrize(("grid", "final"), ENDS, ids=["few", "few-final", "many", "ladder"])
@pytest.mark.parametrize("points", [1, 2, 3])
def test_diffusers_deis(schedulers: types.ModuleType, grid: Tensor, points: int, final: bool):
    grid = grid[:-1]
    scheduler = schedulers.DEISMultistepScheduler(
        solver_order=points, prediction_type="sample", lower_order_final=final
    )
    solver = DEIS(points, lower_at_end=final)
    close(theirs(scheduler, grid, scaled=True), ours(solver, grid), 1e-12)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("grid", [FEW[:-1], LADDER[:-1]], ids=["few", "ladder"])
def test_diffusers_single_step(schedulers: types.ModuleType, grid: Tensor, order: int):
    """Their steps are ours cut at our inner levels: orders 1, 2, 3 in turn.

    Inside a step of order 3 they reach the second level by 2S ("midpoint"); the authors, and we, by
    the exact integral of two points, which is their "heun".
    """
    scheduler = schedulers.DPMSolverSinglestepScheduler(
        solver_order=order,
        prediction_type="sample",
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    step = scheduler.step

    def exact_inside(clean: Tensor, time: Tensor, x: Tensor) -> Any:
        inside = order == 3 and (scheduler.step_index or 0) % 3 == 1
        scheduler.register_to_config(solver_type="heun" if inside else "midpoint")
        return step(clean, time, x)

    scheduler.step = exact_inside
    parts = [grid[:-1] * (grid[1:] / grid[:-1]) ** (k / order) for k in range(order)]
    fine = torch.cat([torch.stack(parts, 1).flatten(), grid[-1:]])
    close(theirs(scheduler, fine, scaled=True), ours(SingleStep(order), grid), 1e-12)


@pytest.mark.parametrize(("solver", "skip"), [(PLMS(), True), (PNDM(), False)], ids=str)
def test_diffusers_pndm(schedulers: types.ModuleType, solver: Solver[Any], skip: bool):
    """On a ladder with equally spaced sigmas, where half the time is half of sigma."""
    ladder = 0.02 * torch.arange(1, 1001, dtype=F64)
    scheduler = schedulers.PNDMScheduler(skip_prk_steps=skip, set_alpha_to_one=True)
    scheduler.alphas_cumprod = 1 / (1 + ladder**2)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=F64)
    scheduler.set_timesteps(20)
    grid = torch.cat([ladder[torch.arange(0, 1000, 50)].flip(0), torch.zeros(1, dtype=F64)])
    x = START * grid[0] * torch.rsqrt(1 + grid[0] ** 2)
    calls = 0
    for time in scheduler.timesteps:
        sigma = ladder[time]
        plain = x * (1 + sigma**2).sqrt()
        noise = (plain - model(plain, sigma.expand(len(x)))) / sigma
        x = scheduler.step(noise, int(time), x).prev_sample
        calls += 1
    close(x, ours(solver, grid), 1e-12)
    assert solver.evaluations(20) == calls  # type: ignore[attr-defined]


# --- k-diffusion ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize("grid", GRIDS, ids=["few", "many", "ladder"])
@pytest.mark.parametrize(
    ("name", "solver", "options"),
    [
        ("sample_euler", RungeKutta(EULER), {}),
        ("sample_heun", RungeKutta(HEUN), {}),
        ("sample_dpm_2", SingleStep(2, plus=False), {}),
        ("sample_dpmpp_2m", Multistep(2, published=True), {}),
        ("sample_dpmpp_2s_ancestral", SingleStep(2), {"eta": 0.0}),
        *[("sample_lms", AdamsBashforth(n), {"order": n}) for n in (1, 2, 3, 4)],
    ],
    ids=str,
)
def test_k_diffusion(
    k_diffusion: types.ModuleType, name: str, solver: Solver[Any], options: Any, grid: Tensor
):
    """lms integrates its weights numerically, to 1e-4 or better; here that is all of 1e-8."""
    if name == "sample_dpmpp_2s_ancestral":
        options = {**options, "noise_sampler": lambda *_: torch.zeros(())}
    out = getattr(k_diffusion, name)(model, START * grid[0], grid, disable=True, **options)
    close(out, ours(solver, grid), 1e-8 if name == "sample_lms" else 1e-10)


@pytest.mark.parametrize("grid", GRIDS, ids=["few", "many", "ladder"])
def test_k_diffusions_3m(k_diffusion: types.ModuleType, grid: Tensor):
    """The published three points; but its second step is the exact one of two points."""
    x, state = START * grid[0], Multistep().start(START, grid)
    for k, (sigma, sigma_next) in enumerate(pairwise(grid)):
        solver = Multistep(2) if k == 1 else Multistep(3, published=True)
        x, state = solver.step(denoise, x, sigma, sigma_next, state, None)
    none = {"eta": 0.0, "noise_sampler": lambda *_: torch.zeros(())}
    out = k_diffusion.sample_dpmpp_3m_sde(model, START * grid[0], grid, disable=True, **none)
    close(out, x, 1e-10)


@pytest.mark.parametrize("order", [2, 3])
def test_k_diffusions_dpm_solver_steps(k_diffusion: types.ModuleType, order: int):
    """DPM-Solver-2 and -3 for noise prediction, step by step."""
    solver = k_diffusion.DPMSolver(model)
    grid = LADDER[:-1]
    x = START * grid[0]
    for sigma, sigma_next in pairwise(grid):
        step = getattr(solver, f"dpm_solver_{order}_step")
        x, _ = step(x, -sigma.log(), -sigma_next.log())
    close(x, ours(SingleStep(order, plus=False), grid), 1e-10)
