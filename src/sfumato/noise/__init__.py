"""Noise levels, all float64, in data units of x = x0 + sigma * noise.

`levels`: ladders networks are trained on; `betas`: where DDPM's come from; `processes`: Score-SDE's
continuous ones; `grids`: what solvers walk.
"""

from sfumato.noise.betas import (
    constant_betas,
    cosine_betas,
    linear_betas,
    quadratic_betas,
    scaled_linear_betas,
    sigmoid_betas,
    zero_terminal_snr,
)
from sfumato.noise.grids import (
    check_grid,
    geometric,
    iddpm,
    iddpm_levels,
    karras,
    quadratic,
    strided,
    uniform,
    ve,
    vp,
)
from sfumato.noise.levels import (
    F64,
    ZERO_SNR_SIGMA,
    Interpolated,
    NoiseLevels,
    NoiseRange,
    check_bounds,
)
from sfumato.noise.processes import VE, VP, SubVP

__all__ = [
    "F64",
    "VE",
    "VP",
    "ZERO_SNR_SIGMA",
    "Interpolated",
    "NoiseLevels",
    "NoiseRange",
    "SubVP",
    "check_bounds",
    "check_grid",
    "constant_betas",
    "cosine_betas",
    "geometric",
    "iddpm",
    "iddpm_levels",
    "karras",
    "linear_betas",
    "quadratic",
    "quadratic_betas",
    "scaled_linear_betas",
    "sigmoid_betas",
    "strided",
    "uniform",
    "ve",
    "vp",
    "zero_terminal_snr",
]
