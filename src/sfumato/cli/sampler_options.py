"""The options of every verb that samples: what is not given is the run's own default."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from sfumato.recipes.config import GridName, SamplerConfig, SolverName


@dataclass(frozen=True)
class SamplerOptions:
    """Sampler."""

    solver: SolverName | None = None
    """heun, euler, ddim or ancestral."""
    steps: int | None = None
    """Steps: heun spends 2 steps - 1 network calls, the others as many as steps."""
    grid: GridName | None = None
    """Grid of noise levels; uniform, quadratic and all need a model with a ladder."""
    eta: float | None = None
    """DDIM's eta in [0, 1]."""
    alpha: float | None = None
    """Heun's alpha: 1 Heun, 2/3 Ralston, 1/2 midpoint."""
    rho: float | None = None
    """Exponent of the karras grid."""
    sigma_min: float | None = None
    """Lowest sigma of the grid above 0."""
    sigma_max: float | None = None
    """Highest sigma of the grid."""
    churn: float | None = None
    """EDM's S_churn."""
    churn_low: float | None = None
    """EDM's S_tmin."""
    churn_high: float | None = None
    """EDM's S_tmax."""
    churn_noise: float | None = None
    """EDM's S_noise."""
    clip: bool | None = None
    """Clamp every prediction of x0 to the pixel range."""
    guidance: float | None = None
    """Classifier-free guidance (1 is off); doubles the network calls. Needs label dropout."""
    guidance_low: float | None = None
    """Guidance acts above this sigma ..."""
    guidance_high: float | None = None
    """... and up to this one."""
    batch: int | None = None
    """Images per network call."""

    def over(self, default: SamplerConfig) -> SamplerConfig:
        """Return the run's sampler with the given options in place of its own."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if given.get("solver", default.solver) != default.solver:
            # What belongs to the run's own solver does not carry over to another.
            default = replace(default, solver=given["solver"], eta=0.0, alpha=1.0, churn=0.0)
        if "grid" not in given and "steps" in given and default.grid == "all":
            given["grid"] = "uniform"
        return replace(default, **given)
