"""Noise levels whose latents are whole numbers: what the lossless coder walks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from sfumato.codec.profile import Profile
from sfumato.codec.stack import Real, Whole
from sfumato.errors import CodecError
from sfumato.gaussian import Gaussian
from sfumato.noise import F64
from sfumato.protocols import Denoise


@dataclass(frozen=True)
class Lattice:
    """Levels, descending, and the width of the cells that x is rounded to at each.

    A cell is the deviation of q(x_s | x_sigma, x0) over `fineness`: what a pop takes from the stack
    is log2(4.13 fineness) bits a value, and cells that coarse cost hardly anything, for the
    probabilities are of whole cells and the network's input is noisy anyway.
    """

    sigmas: tuple[float, ...]
    fineness: float = 1.0

    def spacing(self, index: int) -> float:
        """Return the width of a cell at a level."""
        s = self.sigmas[index]
        if index == 0:
            return math.sqrt(s**2 - self.sigmas[1] ** 2) / self.fineness
        return s * math.sqrt(1 - (s / self.sigmas[index - 1]) ** 2) / self.fineness

    def forward_std(self, index: int) -> float:
        """Return the deviation of x at a level given x at the next lower one, in cells.

        At the lowest that of x given x0.
        """
        below = self.sigmas[index + 1] if index + 1 < len(self.sigmas) else 0.0
        return math.sqrt(self.sigmas[index] ** 2 - below**2) / self.spacing(index)

    def down(self, index: int, cells: Whole, answer: Answer) -> tuple[Real, Real]:
        """Return mean and deviation of x at the next lower level, in cells of that [n, d]."""
        x = cells.astype(np.float64) * self.spacing(index)
        width = self.spacing(index + 1)
        mean, std, _ = step_down(x, answer, self.sigmas[index], self.sigmas[index + 1])
        return mean / width, std / width


@dataclass(frozen=True, eq=False)
class Answer:
    """What the network says of x0: mean [n, d] and variance [n, d], float64."""

    mean: Real
    var: Real


def step_down(x: Real, answer: Answer, sigma: float, s: float) -> tuple[Real, Real, float]:
    """Return mean and deviation of p(x_s | x) [n, d], and the deviation of q(x_s | x, x0)."""
    keep = (s / sigma) ** 2
    own = s**2 * (1 - keep)
    var = own + (1 - keep) ** 2 * answer.var
    return keep * x + (1 - keep) * answer.mean, np.sqrt(var), math.sqrt(own)


@dataclass(frozen=True, eq=False)
class Asker:
    """A denoiser that is always asked about `batch` images at once, however many there are.

    So each image has the same answer, to the bit, whatever others are coded with it.
    """

    denoise: Denoise
    profile: Profile
    shape: tuple[int, ...]
    batch: int
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def __call__(self, x: Real, sigma: float) -> Answer:
        """Return the answers for x [n, d] at sigma, n at most `batch`."""
        if len(x) > self.batch:
            raise ValueError(f"at most {self.batch} images are asked about, not {len(x)}")
        padded = np.zeros((self.batch, x.shape[1]))
        padded[: len(x)] = x
        told: Gaussian = self.denoise(
            torch.from_numpy(padded).reshape(self.batch, *self.shape).to(self.device),
            torch.tensor(sigma, dtype=F64),
        )
        mean = told.mean.to(F64)
        var = self.profile.variance(told.var.to(F64).expand_as(mean), sigma)
        rows = [part.reshape(self.batch, -1)[: len(x)].cpu().numpy() for part in (mean, var)]
        if not (np.isfinite(rows[0]).all() and np.isfinite(rows[1]).all()):
            raise CodecError(f"the network's answer at sigma {sigma:.6g} is not finite")
        return Answer(*rows)

    def pixels(self, answer: Answer, top: int) -> tuple[Real, Real]:
        """Return mean and deviation [n, d] of the discretised last step, for values in 0..top."""
        std = np.sqrt(answer.var * self.profile.decoder)
        return (answer.mean + 1) * (top / 2), std * (top / 2)
