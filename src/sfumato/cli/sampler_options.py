"""The options of every verb that samples: what is not given is the run's own default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from sfumato.errors import ConfigError
from sfumato.recipes.sampler_config import (
    FLOW,
    GridName,
    SamplerConfig,
    SolverName,
    same_flow,
    with_solver,
)


@dataclass(frozen=True)
class FlowOptions:
    """Sampler: the grid, and what changes the denoiser."""

    grid: GridName | None = None
    """Grid of noise levels; uniform, quadratic and all need a model with a ladder."""
    rho: float | None = None
    """Exponent of the karras grid."""
    sigma_min: float | None = None
    """Lowest sigma of the grid above 0."""
    sigma_max: float | None = None
    """Highest sigma of the grid."""
    interpolate: bool | None = None
    """On a ladder: ask the network between its levels too."""
    clip: bool | None = None
    """Clamp every prediction of x0 to the pixel range."""
    mirror: bool | None = None
    """Average every prediction of x0 with that for the mirror image, at twice the work (models
    trained with --flip)."""
    guidance: float | None = None
    """Classifier-free guidance (1 is off), at twice the work. Needs label dropout."""
    guidance_interval: tuple[float, float] | None = None
    """Guidance acts above sigma LOW and up to HIGH: both of what follows at once."""
    guidance_low: float | None = None
    """Guidance acts above this sigma ..."""
    guidance_high: float | None = None
    """... and up to this one."""
    batch: int | None = None
    """Images per network call."""

    def over(
        self, default: SamplerConfig, tuned: Mapping[int, SamplerConfig] | None = None
    ) -> SamplerConfig:
        """Return the run's sampler with the given options in place of its own.

        What was tuned plays no part, for no number of calls is asked for.
        """
        return replace(default, **_given(self))


@dataclass(frozen=True)
class CommonOptions(FlowOptions):
    """Sampler."""

    eta: float | None = None
    """DDIM's eta in [0, 1]."""
    points: int | None = None
    """Past values a multistep solver goes by (ab, deis, ipndm, multistep, unipc)."""
    tolerance: float | None = None
    """Relative and absolute tolerance of a step (rk45)."""
    heat: float | None = None
    """Noise of dpm++sde, dpm++2m-sde and multistep-sde: 0 none, 1 the reverse SDE's."""
    snr: float | None = None
    """Signal-to-noise ratio of the correction (pc)."""
    corrections: int | None = None
    """Langevin steps a level (pc, langevin)."""
    langevin_step: float | None = None
    """Step size over the variance of the level (langevin)."""
    restarts: int | None = None
    """Times the walk goes back up from restart-low to restart-high (Restart sampling)."""
    restart_low: float | None = None
    """Where it turns back."""
    restart_high: float | None = None
    """Where it goes up to."""
    restart_steps: int | None = None
    """Steps of each way down again."""
    variance: Literal["zero", "unit-gaussian"] | None = None
    """Variance of x0 in ancestral sampling; unit-gaussian on few steps is DDIM's sigma-hat."""
    alpha: float | None = None
    """Heun's alpha: 1 Heun, 2/3 Ralston, 1/2 midpoint."""
    churn: float | None = None
    """EDM's S_churn."""
    churn_low: float | None = None
    """EDM's S_tmin."""
    churn_high: float | None = None
    """EDM's S_tmax."""
    churn_noise: float | None = None
    """EDM's S_noise."""


@dataclass(frozen=True)
class SamplerOptions(CommonOptions):
    """Sampler."""

    solver: SolverName | None = None
    """The method; docs/sampling.md says which paper's, and its order."""
    steps: int | None = None
    """Steps of the grid."""
    nfe: int | None = None
    """Network calls to spend, in place of steps; an error says which are possible."""

    def over(
        self, default: SamplerConfig, tuned: Mapping[int, SamplerConfig] | None = None
    ) -> SamplerConfig:
        """Return the run's sampler with the given options in place of its own.

        Calls that a sampler was `tuned` for are spent by it, unless another one or what it was not
        tuned for is asked for. Raises ConfigError for calls that cannot be spent exactly.
        """
        given = _given(self)
        nfe = given.pop("nfe", None)
        if (found := self._found(given, nfe, default, tuned or {})) is not None:
            return found
        default = with_solver(default, given.get("solver", default.solver))
        if "grid" not in given and (nfe or "steps" in given) and default.grid == "all":
            given["grid"] = "uniform"
        chosen = replace(default, **given)
        if nfe is None:
            return chosen
        if "steps" in given:
            raise ConfigError("give --steps or --nfe, not both")
        from sfumato.recipes.samplers import with_evaluations

        return with_evaluations(chosen, nfe)

    def _found(
        self,
        given: Mapping[str, Any],
        nfe: int | None,
        default: SamplerConfig,
        tuned: Mapping[int, SamplerConfig],
    ) -> SamplerConfig | None:
        """The tuned sampler, where these options mean it."""
        asked = given.get("solver") == "tuned"
        if nfe is not None and nfe in tuned and given.get("solver", "tuned") == "tuned":
            own = replace(tuned[nfe], batch=given.get("batch", default.batch))
            bounds = {k: v for k, v in given.items() if k in FLOW}
            if "sigma_min" not in given and "sigma_max" not in given:
                bounds |= {"sigma_min": own.sigma_min, "sigma_max": own.sigma_max}
            rest = given.keys() - {*FLOW, "solver", "batch"}
            if not rest and same_flow(own, replace(default, **bounds)):
                return own
            if asked:
                listed = ", ".join(sorted(rest)) or "another guidance, clipping, mirror or range"
                raise ConfigError(
                    f"a tuned sampler is what it is, and {listed} would make it another: "
                    "leave that out (sfumato tune takes guidance, clipping, mirror and range)"
                )
        elif asked:
            known = ", ".join(map(str, sorted(tuned))) or "none yet"
            raise ConfigError(
                f"this model has no sampler tuned for {nfe or 'an unnamed number of'} calls "
                f"(tuned: {known}): sfumato tune RUN --nfe {nfe or 6}, then --nfe {nfe or 6}"
            )
        return None


def _given(options: FlowOptions) -> dict[str, Any]:
    """What was asked for, by the names of a `SamplerConfig` (and nfe)."""
    given = {name: value for name, value in asdict(options).items() if value is not None}
    interval = given.pop("guidance_interval", None)
    if interval is None:
        return given
    if "guidance_low" in given or "guidance_high" in given:
        raise ConfigError(
            "give --guidance-interval LOW HIGH, or --guidance-low and --guidance-high, not both"
        )
    return {**given, "guidance_low": interval[0], "guidance_high": interval[1]}
