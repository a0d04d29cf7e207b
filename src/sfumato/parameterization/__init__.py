"""Networks adapted to denoisers, whatever they predict. Integer times and schedules live here."""

from sfumato.parameterization.adapted import (
    Adapted,
    Head,
    Process,
    predicts_mean,
    predicts_noise,
    predicts_score,
    predicts_v,
    predicts_x0,
    unit_gaussian,
    zero_variance,
)
from sfumato.parameterization.edm import EDMProcess, edm_preconditioned
from sfumato.parameterization.learned import Between, Free, learned_variance

__all__ = [
    "Adapted",
    "Between",
    "EDMProcess",
    "Free",
    "Head",
    "Process",
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
