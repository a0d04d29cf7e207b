"""`sfumato sample RUN`: new images from a trained model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sfumato.cli.parse import duration, free_folder, parse
from sfumato.errors import ConfigError
from sfumato.recipes.config import GridName, SamplerConfig, SolverName


@dataclass(frozen=True)
class SampleOptions:
    """Options of `sfumato sample`; what is not given is the run's own default."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run's folder (its newest checkpoint), or one checkpoint folder."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """How many images."""
    seed: int = 0
    """Image i is seeded with seed + i: the same picture for any -n."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name or number of a class to draw (models trained with --classes)."""
    out: Path | None = None
    """Folder for the images; RUN/samples/... if not given."""
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
    weights: Literal["ema", "network"] = "ema"
    """The moving average of the weights, or the raw ones."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network's body; auto is what the run was trained with."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""


def run(arguments: Sequence[str]) -> int:
    """Parse the arguments, sample, and say where the images are."""
    options = parse(SampleOptions, arguments, "sample", "Draw new images from a trained model.")
    if options.n < 1:
        raise ConfigError(f"-n must be at least 1, not {options.n}: there is nothing to sample")
    from sfumato.recipes.environment import pick_device, set_threads
    from sfumato.recipes.model import load
    from sfumato.recipes.samples import SampleWriter

    set_threads(options.threads)
    model = load(options.run, weights=options.weights, device=pick_device(options.device))
    for note in model.notes:
        print(f"note: {note}")
    model = model.with_precision(options.precision)
    sampler = _sampler(options, model.recipe.sampler)
    folder = options.out or free_folder(_default_folder(options, model.path))
    print(f"sampling {options.n} images with {sampler.solver}, {sampler.steps} steps, "
          f"from {model.path}")  # fmt: skip
    from tqdm import tqdm

    start = time.perf_counter()
    seeds = range(options.seed, options.seed + options.n)
    drawn = model.samples(seeds, label=options.class_, sampler=sampler)
    label = options.class_ and model.classes[model.class_index(options.class_)]
    writer = SampleWriter(folder, model, sampler, options.seed, label)
    with tqdm(total=options.n, unit="image") as bar:
        for images in drawn:
            writer.add(images)
            bar.update(len(images))
    grid = writer.close(time.perf_counter() - start)
    print(f"{options.n} images in {duration(time.perf_counter() - start)}; a grid of them: {grid}")
    print(f"images: {folder}")
    return 0


def _sampler(options: SampleOptions, default: SamplerConfig) -> SamplerConfig:
    """Return the run's sampler with the given options in place of its own."""
    given = {
        item.name: value
        for item in fields(SamplerConfig)
        if (value := getattr(options, item.name, None)) is not None
    }
    if given.get("solver", default.solver) != default.solver:
        # What belongs to the run's own solver does not carry over to another.
        default = replace(default, solver=given["solver"], eta=0.0, alpha=1.0, churn=0.0)
    if "grid" not in given and "steps" in given and default.grid == "all":
        given["grid"] = "uniform"
    return replace(default, **given)


def _default_folder(options: SampleOptions, checkpoint: Path | None) -> Path:
    assert checkpoint is not None
    base = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
    label = f"-{options.class_}" if options.class_ else ""
    return base / "samples" / f"{checkpoint.name}{label.replace('/', '-')}-seed{options.seed}"
