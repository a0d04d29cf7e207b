"""Likelihood: the variational bound, the probability flow's exact one, rate and distortion.

Everything is in nats per example, float64, with named terms; `diffusion.bits_per_dim` converts.
"""

from sfumato.likelihood.elbo import Bound, bound_grid, elbo, estimate_elbo, fit_decoder_var
from sfumato.likelihood.flow import Exact, FlowLogProb, Hutchinson, dequantise, flow_log_prob
from sfumato.likelihood.rate_distortion import RateDistortion, rate_distortion

__all__ = [
    "Bound",
    "Exact",
    "FlowLogProb",
    "Hutchinson",
    "RateDistortion",
    "bound_grid",
    "dequantise",
    "elbo",
    "estimate_elbo",
    "fit_decoder_var",
    "flow_log_prob",
    "rate_distortion",
]
