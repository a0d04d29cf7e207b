"""Damaged images recovered with a denoiser as prior: operators, and D bent to a measurement."""

from sfumato.restoration.covariance import Covariance, CovarianceMatching
from sfumato.restoration.daps import DAPS
from sfumato.restoration.operators import (
    GREY,
    Average,
    Blur,
    Composed,
    Identity,
    Mask,
    Mix,
    Operator,
    check_adjoint,
)
from sfumato.restoration.posterior import (
    DDRM,
    DPS,
    DiffPIR,
    Measured,
    Method,
    MomentMatching,
    PiGDM,
    Replacement,
    Restored,
)
from sfumato.restoration.repaint import Repaint

__all__ = [
    "DAPS",
    "DDRM",
    "DPS",
    "GREY",
    "Average",
    "Blur",
    "Composed",
    "Covariance",
    "CovarianceMatching",
    "DiffPIR",
    "Identity",
    "Mask",
    "Measured",
    "Method",
    "Mix",
    "MomentMatching",
    "Operator",
    "PiGDM",
    "Repaint",
    "Replacement",
    "Restored",
    "check_adjoint",
]
