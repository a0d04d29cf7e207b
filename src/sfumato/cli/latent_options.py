"""What `invert` and `interpolate` have in common: the model, its class, a deterministic sampler."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sfumato.cli.parse import OutPath, free_folder
from sfumato.cli.sampler_options import SamplerOptions

if TYPE_CHECKING:
    from sfumato.recipes.latents import Flow


@dataclass(frozen=True)
class LatentOptions:
    """Model."""

    out: OutPath = None
    """Folder for the files; below RUN if not given."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name or number of the class; without it a model with label dropout walks unconditionally."""
    sampler: Annotated[SamplerOptions, tyro.conf.arg(name="")] = field(
        default_factory=SamplerOptions
    )
    """Sampler."""
    size: tuple[int, int] | None = None
    """Height and width the images are brought to."""
    channels: int | None = None
    """1 or 3: turn RGB grey or grey RGB."""
    weights: Literal["ema", "network"] = "ema"
    """The moving average of the weights, or the raw ones."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Arithmetic of the network's body; auto is what the run was trained with."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""

    def folder(self, flow: Flow, name: str) -> Path:
        """Return the folder of the results: the new one asked for, or a free one below the run."""
        from sfumato.files import usable
        from sfumato.recipes.samples import refuse_used

        if self.out:
            refuse_used(self.out)
            return self.out
        checkpoint = flow.model.path
        assert checkpoint is not None
        return usable(free_folder(flow.model.run / name / checkpoint.name))


def open_flow(
    run: str, options: LatentOptions, *, any_solver: bool = False, fine: bool = False
) -> tuple[Flow, str]:
    """Load the model with its sampler, and what is to be said about it, or "".

    Where no solver is asked for, the run's own is taken without its noise; as it is by any_solver.
    `fine` takes steps that can be inverted where none are asked for.
    """
    from sfumato.recipes.environment import pick_device, set_threads
    from sfumato.recipes.latents import Flow, deterministic, fine_enough
    from sfumato.recipes.loading import load
    from sfumato.recipes.samples import refuse_used

    if options.out:
        refuse_used(options.out)
    set_threads(options.threads)
    model = load(run, weights=options.weights, device=pick_device(options.device))
    notes = [f"note: {note}" for note in model.notes]
    model = model.with_precision(options.precision)
    own = model.recipe.sampler
    if not any_solver and options.sampler.solver is None:
        quiet = deterministic(own)
        if quiet != own:
            notes.append(
                f"the run's own sampler ({own.solver}) draws noise, so this goes by {quiet.solver}"
                + (" with eta 0" if quiet.solver == "ddim" else " alone")
            )
        own = quiet
    if own.guidance != 1 and options.sampler.guidance is None:
        # It bends the flow so much that coarse steps of it have no inverse.
        own = replace(own, guidance=1.0)
        notes.append("the run's own guidance is off here, unless --guidance asks for it")
    if fine and options.sampler.steps is None and options.sampler.nfe is None:
        own = fine_enough(own, model.denoiser.range.levels)
    flow = Flow(model, options.sampler.over(own), options.class_)
    flow.denoiser(1)
    return flow, "\n".join(notes)
