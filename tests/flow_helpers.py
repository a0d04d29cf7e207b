"""What tests of the probability flow share: two oracles, a walk, a grid."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from oracles import GaussianOracle, Mixture
from sfumato.protocols import Denoise, Solver
from sfumato.sampling import sample

F64 = torch.float64
MIXTURE = Mixture()
COVARIANCE = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.2, 0.0], [0.1, 0.0, 0.05]], dtype=F64)
DATA = GaussianOracle.full(torch.tensor([0.3, -0.2, 0.1], dtype=F64), COVARIANCE)
HIGH, LOW = 5.0, 0.1


def end(denoise: Denoise, solver: Solver[Any], grid: Tensor, x: Tensor) -> Tensor:
    *_, last = sample(denoise, solver, grid, x)
    return last.x


def log_grid(steps: int, high: float = HIGH, low: float = LOW) -> Tensor:
    return torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=F64)
