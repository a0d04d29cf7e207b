"""DDPM's betas: what `NoiseLevels.from_betas` makes a ladder of. All [T], float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.noise.levels import F64


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Return DDPM's linear betas, end points scaled by 1000 / steps (Improved DDPM's rule).

    Raises ValueError below 21 steps, where the last beta would reach 1.
    """
    scale = 1000 / max(steps, 1)
    if scale * end >= 1:
        raise ValueError(
            f"linear betas need more than {math.floor(1000 * end)} steps for beta < 1, "
            f"not {steps}; cosine_betas works for any number"
        )
    return torch.linspace(scale * start, scale * end, steps, dtype=F64)


def quadratic_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Return betas whose square roots are linear (DDPM's code, "quad")."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=F64) ** 2


def scaled_linear_betas(steps: int = 1000, start: float = 8.5e-4, end: float = 0.012) -> Tensor:
    """Return the betas of latent diffusion: quadratic ones with its end points."""
    return quadratic_betas(steps, start, end)


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """Return Improved DDPM's cosine betas (eq. 17), clipped at `largest`."""
    u = torch.arange(steps + 1, dtype=F64) / steps
    abar = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=largest)


def sigmoid_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Return betas along a sigmoid from -6 to 6 (DDIM's code)."""
    return torch.sigmoid(torch.linspace(-6, 6, steps, dtype=F64)) * (end - start) + start


def constant_betas(steps: int = 1000, value: float = 0.02) -> Tensor:
    """Return equal betas."""
    return torch.full((steps,), value, dtype=F64)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Rescale betas so that the last level is pure noise (Lin et al. 2023, Algorithm 1).

    Raises ValueError below two betas: the first level keeps its noise, the last loses its signal.
    """
    if len(betas) < 2:
        raise ValueError(f"zero terminal SNR needs at least two betas, not {len(betas)}")
    root = torch.cumprod(1 - betas.to(F64), 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    abar = root**2
    alpha = torch.cat([abar[:1], abar[1:] / abar[:-1]])
    return 1 - alpha
