"""Solvers: ways to walk along a grid of noise levels. They know only `Denoise`."""

from sfumato.solvers.adaptive import Adaptive
from sfumato.solvers.ancestral import DDIM, Ancestral
from sfumato.solvers.exponential import Multistep, SingleStep
from sfumato.solvers.exponential_sde import ExponentialSDE, Overshoot
from sfumato.solvers.langevin import AnnealedLangevin, Corrector
from sfumato.solvers.multistep import DEIS, IPNDM, PLMS, PNDM, AdamsBashforth
from sfumato.solvers.non_stationary import NonStationary
from sfumato.solvers.predictors import EulerMaruyama, ReverseDiffusion
from sfumato.solvers.restart import Restart
from sfumato.solvers.runge_kutta import Euler, Heun, RungeKutta
from sfumato.solvers.stochastic import Churn
from sfumato.solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "IPNDM",
    "PLMS",
    "PNDM",
    "AdamsBashforth",
    "Adaptive",
    "Ancestral",
    "AnnealedLangevin",
    "Churn",
    "Corrector",
    "Euler",
    "EulerMaruyama",
    "ExponentialSDE",
    "Heun",
    "Multistep",
    "NonStationary",
    "Overshoot",
    "Restart",
    "ReverseDiffusion",
    "RungeKutta",
    "SingleStep",
    "UniPC",
]
