"""Samplers by the words of a recipe: a solver, wrapped in what was asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sfumato.errors import ConfigError
from sfumato.noise import VE, VP, NoiseLevels, SubVP
from sfumato.protocols import Solver
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.solvers import (
    DDIM,
    DEIS,
    IPNDM,
    PLMS,
    PNDM,
    AdamsBashforth,
    Adaptive,
    Ancestral,
    AnnealedLangevin,
    Churn,
    Corrector,
    Euler,
    EulerMaruyama,
    ExponentialSDE,
    Heun,
    Multistep,
    NonStationary,
    Overshoot,
    Restart,
    ReverseDiffusion,
    RungeKutta,
    SingleStep,
    UniPC,
)
from sfumato.solvers.cost import steps_for
from sfumato.solvers.restart import Interval
from sfumato.solvers.tableau import CLASSIC4, KUTTA3, MIDPOINT, RALSTON

Process = NoiseLevels | VP | SubVP | VE
"""What a network of ours can have been trained on."""

BETWEEN = (
    "midpoint",
    "ralston",
    "kutta3",
    "rk4",
    "rk45",
    "pndm",
    "dpm++2s",
    "dpm++3s",
    "dpm++2s-ancestral",
)
"""Solvers that ask the network between the levels of the grid."""


def solver_of(
    config: SamplerConfig, process: Process | None = None, lowest: float = 0.01
) -> Solver[Any]:
    """Return the solver, wrapped in churn or restarts where asked.

    `process` is what the network was trained on (None: EDM's, which is VE's), for the predictors
    of Score-SDE; `lowest` the grid's lowest level above 0, for Langevin's step size. Raises
    ConfigError where they do not suit the solver.
    """
    solver = _plain(config, process or VE(), lowest)
    try:
        if config.churn:
            return Churn(
                solver, config.churn, config.churn_low, config.churn_high, config.churn_noise
            )
        if config.restarts:
            interval = Interval(
                config.restart_low, config.restart_high, config.restarts, config.restart_steps
            )
            return Restart(solver, (interval,))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return solver


def deterministic(solver: Solver[Any]) -> bool:
    """Whether a solver draws no noise: it can be inverted, or is a table that only walks down."""
    return solver.invertible or isinstance(solver, NonStationary)


def with_evaluations(config: SamplerConfig, nfe: int) -> SamplerConfig:
    """Return the sampler with so many steps that it spends exactly `nfe` network calls.

    Raises ConfigError, naming what is possible, where there is no such number.
    """
    try:
        return replace(config, steps=steps_for(solver_of(config), nfe))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _plain(config: SamplerConfig, process: Process, lowest: float) -> Solver[Any]:
    points = config.points
    match config.solver:
        case "heun":
            return Heun(config.alpha)
        case "euler":
            return Euler()
        case "midpoint":
            return RungeKutta(MIDPOINT)
        case "ralston":
            return RungeKutta(RALSTON)
        case "kutta3":
            return RungeKutta(KUTTA3)
        case "rk4":
            return RungeKutta(CLASSIC4)
        case "rk45":
            return Adaptive(config.tolerance, config.tolerance)
        case "ab":
            return AdamsBashforth(points or 4)
        case "deis":
            return DEIS(points or 3)
        case "ipndm":
            return IPNDM(points or 4)
        case "plms":
            return PLMS()
        case "pndm":
            return PNDM()
        case "multistep":
            return Multistep(points or 2)
        case "dpm++2m":
            return Multistep(2, published=True)
        case "dpm++3m":
            return Multistep(3, published=True)
        case "dpm++2s":
            return SingleStep(2)
        case "dpm++3s":
            return SingleStep(3)
        case "unipc":
            return UniPC(points or 2)
        case "tuned":
            assert config.table is not None
            return NonStationary(
                config.table.sigmas, config.table.start_weights, config.table.weights
            )
        case _:
            return _stochastic(config, process, lowest)


def _stochastic(config: SamplerConfig, process: Process, lowest: float) -> Solver[Any]:
    match config.solver:
        case "ddim":
            return DDIM(config.eta)
        case "dpm++sde":
            return ExponentialSDE(1, config.heat)
        case "dpm++2m-sde":
            return ExponentialSDE(2, config.heat, published=True)
        case "multistep-sde":
            return ExponentialSDE(2, config.heat)
        case "dpm++2s-ancestral":
            return Overshoot(SingleStep(2))
        case "reverse-diffusion":
            return ReverseDiffusion(process)
        case "euler-maruyama":
            if isinstance(process, NoiseLevels):
                raise ConfigError(
                    "euler-maruyama walks in the time of a VP, sub-VP or VE process, and this "
                    "model was trained on a ladder: use reverse-diffusion"
                )
            return EulerMaruyama(process)
        case "pc":
            return Corrector(
                ReverseDiffusion(process),
                config.snr,
                config.corrections,
                process=process if isinstance(process, NoiseLevels | VP) else None,
            )
        case "langevin":
            return AnnealedLangevin(config.langevin_step * lowest**2, config.corrections)
        case _:
            return Ancestral()
