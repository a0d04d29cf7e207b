"""Networks adapted to denoisers, whatever they predict. Integer times and schedules live here."""

from sfumato.parameterization.adapted import (
    Adapted,
    Head,
    Process,
    Skip,
    unit_gaussian,
    zero_variance,
)
from sfumato.parameterization.edm import EDMProcess, edm_preconditioned
from sfumato.parameterization.learned import Between, Free, learned_variance
from sfumato.parameterization.predicts import (
    predicts_mean,
    predicts_noise,
    predicts_score,
    predicts_v,
    predicts_x0,
)
from sfumato.parameterization.spectral import Spectral

__all__ = [
    "Adapted",
    "Between",
    "EDMProcess",
    "Free",
    "Head",
    "Process",
    "Skip",
    "Spectral",
    "edm_preconditioned",
    "learned_variance",
    "predicts_mean",
    "predicts_noise",
    "predicts_score",
    "predicts_v",
    "predicts_x0",
    "unit_gaussian",
    "zero_variance",
]
