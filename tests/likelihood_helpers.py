"""An oracle with what a likelihood asks of a denoiser besides D."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.gaussian import Gaussian
from sfumato.noise import F64, NoiseRange
from sfumato.protocols import Denoise


@dataclass(frozen=True, eq=False)
class Known:
    """D of known data, between two levels, with its prior and decoder's variance."""

    oracle: Denoise
    low: float
    high: float
    prior_var: float
    last_var: float = 1e-4
    no_var: bool = False

    @property
    def range(self) -> NoiseRange:
        return NoiseRange(self.low, self.high)

    @property
    def prior(self) -> Gaussian:
        return Gaussian(torch.zeros((), dtype=F64), torch.tensor(self.prior_var, dtype=F64))

    @property
    def decoder_var(self) -> Tensor:
        return torch.tensor(self.last_var, dtype=F64)

    def on(self, sigmas: Tensor) -> Known:
        return self

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        answer = self.oracle(x, sigma)
        return Gaussian(answer.mean, torch.zeros((), dtype=F64)) if self.no_var else answer
