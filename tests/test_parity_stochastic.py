"""Stochastic solvers against k-diffusion and diffusers at fixed sigmas and with recorded noise.

Known differences, documented rather than imitated: k-diffusion draws a step's noise from a Brownian
tree on the clock sigma (here replaced by the recorded draws); diffusers' Score-SDE schedulers keep
float32 levels (here replaced by float64 ones), and its VP predictor steps by 1 / N in time whatever
the grid (compared where that is the grid's step).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.gaussian import Gaussian
from sfumato.noise import VE, VP, geometric, karras
from sfumato.protocols import Solver
from sfumato.randomness import Noise, Purpose, noise_for
from sfumato.sampling import sample
from sfumato.solvers import DDIM, Euler, SingleStep
from sfumato.solvers.exponential_sde import ExponentialSDE, Overshoot
from sfumato.solvers.langevin import Corrector
from sfumato.solvers.predictors import EulerMaruyama, ReverseDiffusion
from test_parity import (  # noqa: F401 (k_diffusion is a fixture)
    COUNT,
    GRIDS,
    NOISE,
    SHAPE,
    START,
    denoise,
    k_diffusion,
    last,
    model,
)

F64 = torch.float64


def recorded(purpose: Purpose) -> Callable[..., Tensor]:
    """A stand-in for a peer's generator: our draws 0, 1, 2, ..."""
    numbers = iter(range(10_000))
    return lambda *_, **__: NOISE.at(next(numbers)).normal(SHAPE, purpose, F64)


# --- diffusers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schedulers() -> types.ModuleType:
    return pytest.importorskip("diffusers.schedulers", reason="diffusers is not installed")


def given_noise(monkeypatch: pytest.MonkeyPatch, scheduler: Any, draw: Callable[..., Tensor]):
    monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", draw)


@pytest.mark.parametrize("form", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2])
def test_diffusers_sde_dpm_solver(schedulers: types.ModuleType, order: int, form: str):
    """In its coordinates x / sqrt(1 + sigma^2), and its precision: it steps in float32."""
    scheduler = schedulers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++",
        solver_order=order,
        solver_type=form,
        prediction_type="sample",
        final_sigmas_type="zero",
        lower_order_final=False,
        use_karras_sigmas=True,
    )
    grid = karras(20, low=0.02, high=30.0)
    scheduler.set_timesteps(20)
    scheduler.sigmas = grid
    scheduler.timesteps = torch.arange(20)  # distinct, or it looks up the wrong one (trap 11)
    x = START * 30.0
    theirs = x / (1 + grid[0] ** 2).sqrt()
    solver = ExponentialSDE(order, published=form == "midpoint")
    for step in sample(denoise, solver, grid, x, NOISE):
        here = theirs * (1 + step.sigma**2) ** 0.5
        x0 = model(here, torch.full((COUNT,), step.sigma, dtype=F64))
        z = NOISE.at(step.index).normal(SHAPE, Purpose.TRANSITION, F64)
        at = scheduler.timesteps[step.index]
        theirs = scheduler.step(x0, at, theirs, variance_noise=z).prev_sample
        ours = step.x / (1 + step.sigma_next**2) ** 0.5
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("corrections", [0, 1, 3])
def test_diffusers_score_sde_ve(
    schedulers: types.ModuleType, monkeypatch: pytest.MonkeyPatch, corrections: int
):
    """Its pipeline: correct, then predict; the norms averaged; the last mean without noise."""
    steps, snr = 12, 0.17
    grid = geometric(steps, low=0.05, high=20.0)
    scheduler = schedulers.ScoreSdeVeScheduler(snr=snr, sigma_min=0.05, sigma_max=20.0)
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    scheduler.discrete_sigmas = grid[:-1].flip(0)
    predictions, corrected = recorded(Purpose.TRANSITION), recorded(Purpose.CORRECTOR)

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return (model(x, sigma.expand(COUNT)) - x) / sigma**2

    theirs = mean = START * 20.0
    for t, sigma in zip(scheduler.timesteps, grid, strict=False):
        given_noise(monkeypatch, scheduler, corrected)
        for _ in range(corrections):
            theirs = scheduler.step_correct(score(theirs, sigma), theirs).prev_sample
        given_noise(monkeypatch, scheduler, predictions)
        out = scheduler.step_pred(score(theirs, sigma), t, theirs)
        theirs, mean = out.prev_sample, out.prev_sample_mean
    predictor = ReverseDiffusion(VE())
    solver: Solver[Any] = predictor
    if corrections:
        solver = Corrector(predictor, snr, corrections, corrects_first=True, shared_norms=True)
    tolerance = 1e-6 if corrections else 1e-9  # its size of a correction is float32
    torch.testing.assert_close(last_from(solver, grid), mean, rtol=tolerance, atol=tolerance)


def last_from(solver: Solver[Any], grid: Tensor, noise: Noise = NOISE) -> Tensor:
    x = START * grid[0]
    for step in sample(denoise, solver, grid, x, noise):
        x = step.x
    return x


def test_diffusers_score_sde_vp(monkeypatch: pytest.MonkeyPatch):
    """Euler-Maruyama, on times that are 1 / N apart; its score is a network's noise."""
    steps, process = 25, VP()
    module = pytest.importorskip("diffusers.schedulers.deprecated.scheduling_sde_vp")
    scheduler = module.ScoreSdeVpScheduler(beta_min=0.1, beta_max=20)
    scheduler.set_timesteps(steps)
    given_noise(monkeypatch, scheduler, recorded(Purpose.TRANSITION))
    times = torch.linspace(1, 0.2, 21, dtype=F64)
    grid = process.sigma(times)
    x = START * grid[0]
    theirs = x * process.scale(grid[0])
    ours = sample(denoise, EulerMaruyama(process), grid, x, NOISE)
    for step, (t, _) in zip(ours, pairwise(times), strict=True):
        sigma = process.sigma(t)
        here = theirs / process.scale(sigma)
        predicted_noise = (here - denoise(here, sigma).mean) / sigma
        theirs, _ = scheduler.step_pred(predicted_noise, theirs, t)
        s = torch.tensor(step.sigma_next, dtype=F64)
        torch.testing.assert_close(step.x * process.scale(s), theirs, rtol=1e-9, atol=1e-9)


def test_the_peers_draws_are_told_apart():
    """The comparison would not hold for other noise."""
    grid = karras(10)
    ours = last_from(DDIM(1.0), grid)
    assert not ours.isclose(last_from(DDIM(1.0), grid, noise_for(1, COUNT)), atol=1e-4).all()


def test_the_model_is_not_linear():
    """Nor is its mean all there is to see: an order or a coefficient would show."""
    x = START * 3
    sigma = torch.full((COUNT,), 1.0, dtype=F64)
    assert (model(2 * x, sigma) - 2 * model(x, sigma)).abs().max() > 0.1
    assert isinstance(denoise(x, sigma), Gaussian)


# --- k-diffusion (last: its fixture puts stubs in place of modules that diffusers looks for) ---


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("name", "solver", "options"),
    [
        *(
            ("dpmpp_2m_sde", ExponentialSDE(2, heat, form == "midpoint"),
             {"eta": heat, "solver_type": form})
            for heat in (0.0, 0.6, 1.0)
            for form in ("midpoint", "heun")
        ),
        *(
            (name, Overshoot(inner, eta), {"eta": eta})
            for name, inner in (
                ("dpmpp_2s_ancestral", SingleStep(2)),
                ("dpm_2_ancestral", SingleStep(2, plus=False)),
                ("euler_ancestral", Euler()),
            )
            for eta in (0.0, 0.6, 1.0)
        ),
    ],
    ids=str,
)  # fmt: skip
def test_k_diffusion(
    k_diffusion: types.ModuleType,  # noqa: F811
    name: str,
    solver: Solver[Any],
    options: dict[str, Any],
    grid: Tensor,
):
    walk = getattr(k_diffusion, f"sample_{name}")
    draw = recorded(Purpose.TRANSITION)
    theirs = walk(model, START * grid[0], grid, disable=True, noise_sampler=draw, **options)
    torch.testing.assert_close(last(solver, grid), theirs, rtol=1e-10, atol=1e-10)
