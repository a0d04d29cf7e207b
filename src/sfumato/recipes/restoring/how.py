"""How images are restored, as plain values: the method by its name, answers, seeds, noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sfumato.errors import ConfigError
from sfumato.protocols import Denoiser, Solver
from sfumato.randomness import Noise
from sfumato.recipes.model import Model
from sfumato.recipes.restoring.names import MethodName
from sfumato.recipes.sampler_config import SamplerConfig, plain, sub_sequence
from sfumato.restoration import (
    DAPS,
    DDRM,
    DPS,
    CovarianceMatching,
    DiffPIR,
    Measured,
    Method,
    MomentMatching,
    PiGDM,
    Repaint,
    Replacement,
    Restored,
)
from sfumato.restoration.covariance import Covariance
from sfumato.solvers import DDIM

_ONLY_OF: dict[str, MethodName] = {"rounds": "moment-matching", "times": "repaint", "walk": "daps"}


@dataclass(frozen=True)
class How:
    """What decides restored images besides the model and what was measured.

    `method` None is spectral for models that know their data's frequencies, else moment-matching.
    `rounds`: conjugate gradients of moment-matching, 2 if None. `times`: walks of repaint, 4.
    `walk`: steps of each of daps's ways down, 4. `overlap`: share of a window that the next one
    covers too. Raises ConfigError for numbers that mean nothing.
    """

    method: MethodName | None = None
    answers: int = 1
    seed: int = 0
    rounds: int | None = None
    times: int | None = None
    walk: int | None = None
    overlap: float = 0.5

    def __post_init__(self) -> None:
        for name in ("answers", *_ONLY_OF):
            if (value := getattr(self, name)) is not None and value < 1:
                told = "-n (answers)" if name == "answers" else name
                raise ConfigError(f"{told} must be at least 1, not {value}")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap is a share from 0 to below 1, not {self.overlap}")

    def named(self, *, known: bool) -> MethodName:
        """Return the method; `known`: whether the data's frequencies are.

        Raises ConfigError for one that needs them where they are not.
        """
        if self.method == "spectral" and not known:
            raise ConfigError(
                "the method spectral needs a model that knows its data's frequencies (trained with "
                "--skip spectral): leave out --method, or choose another"
            )
        return self.method or ("spectral" if known else "moment-matching")

    def method_for(self, model: Model) -> MethodName | None:
        """Return the method for this model; None for one of pairs, which needs none.

        Raises ConfigError as `named` does, and for one that is named where none is needed.
        """
        if model.condition is None:
            return self.named(known=model.network.spectrum is not None)
        if self.method is not None:
            raise ConfigError(
                "this model was trained on pairs and knows from them what to restore: leave out "
                "--method"
            )
        return None

    def refuse_unused(self, method: MethodName | None) -> None:
        """Raise ConfigError for what only other methods use; None: a model that needs none."""
        for name, user in _ONLY_OF.items():
            if getattr(self, name) is not None and method != user:
                used = f"the method here is {method}" if method else "no method is needed here"
                raise ConfigError(
                    f"--{name} is of the method {user} alone, and {used}: leave it out"
                    + (f", or add --method {user}" if method else "")
                )

    def bend(
        self,
        denoise: Denoiser,
        solver: Solver[Any],
        measured: Measured,
        noise: Noise,
        covariance: Covariance | None = None,
    ) -> tuple[Denoiser, Solver[Any]]:
        """Return what is sampled, and by what; `covariance` is what is known of the data's."""
        method = self.named(known=covariance is not None)
        if method == "daps":
            down = DDIM() if isinstance(solver, DDIM) else solver  # along the flow
            return denoise, DAPS(measured, down, self.walk or 4)
        if method == "repaint":
            bent = Restored(denoise, measured, Replacement(noise))
            return bent, Repaint(solver, self.times or 4)
        if method == "spectral" and covariance is not None:
            return Restored(denoise, measured, CovarianceMatching(covariance)), solver
        methods: dict[str, Method] = {
            "moment-matching": MomentMatching(self.rounds or 2),
            "replace": Replacement(noise),
            "ddrm": DDRM(),
            "dps": DPS(),
            "pigdm": PiGDM(),
            "diffpir": DiffPIR(),
        }
        return Restored(denoise, measured, methods[method]), solver


def usual_sampler(config: SamplerConfig, method: MethodName | None) -> SamplerConfig:
    """Return the sampler of a recipe as restoration uses it if nothing else is asked for.

    One with fresh noise: what was filled in badly is forgotten, where the flow would keep it. Of
    order 2, its levels nearly even in log sigma, where the method bends the denoiser smoothly: one
    of order 1 leaves out, of few steps, half the variance of the answers. DDIM for the others,
    which push at every step. A model of pairs needs no method (None), and nothing bends it. Answers
    are found one by one, for most are asked for one, and a batch is always a whole one.
    """
    if method in (None, "spectral", "moment-matching"):
        smooth = replace(plain(config, "dpm++2m-sde"), heat=1.0, grid="karras", rho=20.0)
        return replace(smooth, steps=18, batch=1)
    return replace(sub_sequence(plain(config, "ddim")), eta=1.0, steps=18, batch=1)
