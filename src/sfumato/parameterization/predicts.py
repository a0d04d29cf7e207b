"""What a network predicts, as D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), F the network.

| the network predicts            | c_skip            | c_out                   |
|---------------------------------|-------------------|-------------------------|
| noise                           | 1                 | -sigma                  |
| x0                              | 0                 | 1                       |
| v = (noise - sigma x0) / r      | 1 / r^2           | -sigma / r              |
| mean of x_{t-1} (DDPM's mu)     | -k / (1 - k)      | r_s / (1 - k)           |
| score of what it sees (divided) | 1                 | scale sigma^2 (sigma)   |
| EDM's F                         | sd^2 / (s^2+sd^2) | s sd / sqrt(s^2 + sd^2) |

with r = sqrt(1 + sigma^2), k = (s / sigma)^2, s the level below sigma, r_s = 1 / scale(s). A
process (a `NoiseLevels` ladder, `VP`, `VE`, `SubVP`) says how x is scaled before the network sees
it and what number tells the network the noise level. Integer times and schedules exist only here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.noise import Interpolated, NoiseLevels
from sfumato.parameterization.adapted import Adapted, Network, Process, Variance, zero_variance


def predicts_noise(
    network: Network,
    process: Process,
    var: Variance = zero_variance,
    *,
    interpolate: bool = False,
) -> Adapted:
    """Adapt a network that predicts the noise (DDPM eq. 11; EDM Table 1, VP, VE and iDDPM).

    `network(x_seen [B, *data], c_noise [B])` returns [B, *data]. A ladder admits only its own
    levels unless `interpolate`. Raises ValueError for a ladder with zero terminal SNR, where the
    noise says nothing about x0 at the last level.
    """
    _needs_signal(process, "noise")
    return Adapted(network, _between(process, interpolate), _noise_coefficients, var)


def predicts_x0(
    network: Network, process: Process, var: Variance = zero_variance, *, interpolate: bool = False
) -> Adapted:
    """Adapt a network that predicts x0 itself (DDPM section 3.2)."""
    return Adapted(network, _between(process, interpolate), _x0_coefficients, var)


def predicts_v(
    network: Network, process: Process, var: Variance = zero_variance, *, interpolate: bool = False
) -> Adapted:
    """Adapt a network that predicts v = (noise - sigma x0) / sqrt(1 + sigma^2).

    In DDPM's notation sqrt(abar) noise - sqrt(1 - abar) x0 (Salimans & Ho 2022, appendix D).
    Meaningful for every process, also at zero terminal SNR.
    """
    return Adapted(network, _between(process, interpolate), _v_coefficients, var)


def predicts_mean(network: Network, levels: NoiseLevels, var: Variance = zero_variance) -> Adapted:
    """Adapt a network that predicts the mean of x_{t-1} as the network sees it (DDPM's mu tilde).

    It belongs to neighbouring levels of the ladder it was trained on, so it needs `levels`.
    Raises ValueError at zero terminal SNR, where x0 would be multiplied by a vanishing factor.
    """
    _needs_signal(levels, "the mean of x_{t-1}")

    def coefficients(sigma: Tensor) -> tuple[Tensor, Tensor]:
        below = levels.below(sigma)
        keep = (below / sigma) ** 2
        return -keep / (1 - keep), 1 / (levels.scale(below) * (1 - keep))

    return Adapted(network, levels, coefficients, var)


def predicts_score(
    network: Network,
    process: Process,
    var: Variance = zero_variance,
    *,
    divided: bool = False,
    interpolate: bool = False,
) -> Adapted:
    """Adapt a network that predicts the score of what it sees, scale(sigma) * x.

    D = x + scale sigma^2 F (NCSN eq. 5; Tweedie's formula). `divided` says that the score is the
    network's output over the standard deviation of the noise it sees, scale * sigma (NCSNv2;
    Score-SDE). Raises ValueError at zero terminal SNR, where the score says nothing about x0.
    """
    _needs_signal(process, "the score")

    def coefficients(sigma: Tensor) -> tuple[Tensor, Tensor]:
        factor = sigma if divided else process.scale(sigma) * sigma**2
        return torch.ones_like(sigma), factor

    return Adapted(network, _between(process, interpolate), coefficients, var)


def _noise_coefficients(sigma: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(sigma), -sigma


def _x0_coefficients(sigma: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(sigma), torch.ones_like(sigma)


def _v_coefficients(sigma: Tensor) -> tuple[Tensor, Tensor]:
    return 1 / (1 + sigma**2), -sigma * torch.rsqrt(1 + sigma**2)


def _between(process: Process, interpolate: bool) -> Process:
    return Interpolated(process) if interpolate and isinstance(process, NoiseLevels) else process


def _needs_signal(process: Process, what: str) -> None:
    ladder = process.ladder if isinstance(process, Interpolated) else process
    if isinstance(ladder, NoiseLevels) and ladder.zero_terminal:
        raise ValueError(
            f"a network that predicts {what} cannot be used at zero terminal SNR: at the last "
            f"level its input is pure noise and its output says nothing about x0; predict v or x0"
        )
