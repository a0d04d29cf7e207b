"""Solvers: ways to walk along a grid of noise levels. They know only `Denoise`."""

from sfumato.solvers.ancestral import DDIM, Ancestral
from sfumato.solvers.runge_kutta import Euler, Heun
from sfumato.solvers.stochastic import Churn

__all__ = ["DDIM", "Ancestral", "Churn", "Euler", "Heun"]
