"""Latents: where the probability flow puts an image at a high noise level, and what that is for."""

from sfumato.latents.interpolation import (
    interpolate,
    interpolate_corners,
    interpolate_diffused,
    share_latent,
    slerp,
)
from sfumato.latents.inversion import (
    Inversion,
    RoundTrip,
    invert,
    invert_exactly,
    reconstruct,
    rmse,
    round_trip,
)

__all__ = [
    "Inversion",
    "RoundTrip",
    "interpolate",
    "interpolate_corners",
    "interpolate_diffused",
    "invert",
    "invert_exactly",
    "reconstruct",
    "rmse",
    "round_trip",
    "share_latent",
    "slerp",
]
