"""`sfumato sample RUN`: new images from a trained model."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sfumato.cli.parse import OutPath, check_seeds, duration, free_folder, parse
from sfumato.cli.sampler_options import SamplerOptions
from sfumato.errors import ConfigError
from sfumato.recipes.sampler_config import SamplerConfig

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.processes import Processes
    from sfumato.recipes.model import Model


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
    out: OutPath = None
    """Folder for the images; RUN/samples/... if not given."""
    sampler: Annotated[SamplerOptions, tyro.conf.arg(name="")] = field(
        default_factory=SamplerOptions
    )
    """Sampler."""
    autoguidance: Annotated[str | None, tyro.conf.arg(metavar="RUN|CHECKPOINT")] = None
    """A weaker model for --guidance to lead away from, such as RUN/checkpoints/NUMBER."""
    progressive: bool = False
    """Also write progressive.png: predictions of x0 along the way, for the first 8 images."""
    share_latent: float | None = None
    """Also write share-latent.png: up to 16 completions of one x at this sigma (DDPM Figure 7)."""
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
    check_seeds(options.seed, options.n)
    from sfumato.processes import joined

    with joined() as processes:
        return _sample(options, processes)


def _sample(options: SampleOptions, processes: Processes) -> int:
    """Sample in this process, or its share; the first one speaks."""
    from tqdm import tqdm

    from sfumato.processes import own_device
    from sfumato.recipes.environment import pick_device, set_threads
    from sfumato.recipes.loading import load
    from sfumato.recipes.samples import SampleWriter, own_share, refuse_used, shared
    from sfumato.recipes.tuned import load_tuned, samplers
    from sfumato.report.grid import image_grid, save_png
    from sfumato.training.interruption import Interruption

    say = print if processes.first else _silent
    if out := options.out:
        processes.from_first(lambda: refuse_used(out))
    here = replace(options, run="", out=None, device="", threads=0)
    processes.check_same(repr(here), "options", "start all with the same command line")
    set_threads(options.threads)
    device = own_device(pick_device(options.device))
    model = load(options.run, weights=options.weights, device=device)
    processes.check_same(
        model.fingerprint, "weights", "a run must not train on while it is sampled"
    )
    for note in model.notes:
        say(f"note: {note}")
    model = model.with_precision(options.precision)
    if options.autoguidance is not None:
        from sfumato.recipes.autoguidance import load_autoguided

        asked = options.sampler.guidance
        model = load_autoguided(model, options.autoguidance, asked, options.precision)
    tuned, notes = load_tuned(model)
    for note in notes:
        say(f"note: {note}")
    sampler = options.sampler.over(model.recipe.sampler, samplers(tuned))
    known = tuned.get(options.sampler.nfe or 0)
    if known and options.sampler.solver is None and sampler.table != known.sampler.table:
        say("note: the sampler tuned for these calls is for other options: it is not used")
    completed = _completed(options, model, sampler) if processes.first else None
    folder = processes.from_first(
        lambda: options.out or free_folder(_default_folder(options, model))
    )
    steps = _steps_in_words(sampler, len(model.grid(sampler)) - 1)

    start = time.perf_counter()
    seeds = range(options.seed, options.seed + options.n)
    drawn = shared(model, seeds, processes, options.class_, sampler)
    label = options.class_ and model.classes[model.class_index(options.class_)]
    say(f"sampling {options.n} images with {sampler.solver}, {steps}, from {model.path}")
    if options.n < sampler.batch:
        say(
            f"they fill one batch of {sampler.batch}, padded so that a seed gives the same image "
            f"for any -n: --batch {options.n} is faster"
        )
    if processes.count > 1:
        batches = -(-options.n // sampler.batch)
        say(f"{processes.count} processes share {batches} batches of {sampler.batch}")
    writer = SampleWriter(folder, model, sampler, options.seed, label, processes)
    total = own_share(options.n, sampler.batch, processes)
    bar = tqdm(total=total, unit="image", desc=processes.named or None, disable=not processes.first)
    with bar, _sigterm_as_ctrl_c():
        try:
            for place, images in drawn:
                with Interruption() as interruption:  # what is drawn is written, all of it
                    writer.add(images, place)
                bar.update(len(images))
                if interruption.requested:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            if processes.count > 1 or not writer.count:
                raise
    grid = writer.close(time.perf_counter() - start)
    if processes.count == 1 and writer.count < options.n:
        _tell_rest(options, writer.count, folder)
        return 130
    if not processes.first:
        return 0
    print(f"{options.n} images in {duration(time.perf_counter() - start)}; a grid of them: {grid}")
    if completed is not None:
        save_png(image_grid(completed), folder / "share-latent.png")
        print(f"completions: {folder / 'share-latent.png'}")
    if options.progressive:
        _progress(options, model, sampler, folder / "progressive.png")
    print(f"images: {folder}")
    return 0


@contextmanager
def _sigterm_as_ctrl_c() -> Generator[None]:
    """Let SIGTERM end the work as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell_rest(options: SampleOptions, count: int, folder: Path) -> None:
    """Say what an interruption left, and how the images that are missing are drawn."""
    print(
        f"sfumato sample: interrupted: {count} of {options.n} images are in {folder}, with their "
        f"grid.png and sample.toml; for the others give the same command --seed "
        f"{options.seed + count} -n {options.n - count} and another --out",
        file=sys.stderr,
    )


def _silent(text: str) -> None:
    del text


def _completed(options: SampleOptions, model: Model, sampler: SamplerConfig) -> Tensor | None:
    """Completions of one latent, if asked for; before all else, since it may be refused."""
    if options.share_latent is None:
        return None
    from sfumato.recipes.latent_figures import completions
    from sfumato.recipes.latents import Flow

    flow = Flow(model, sampler, options.class_)
    done, sigma = completions(flow, options.seed, options.share_latent, min(options.n, 16))
    print(f"{len(done)} completions share their x at sigma {sigma:.4g}")
    return done


def _progress(options: SampleOptions, model: Model, sampler: SamplerConfig, path: Path) -> None:
    from sfumato.recipes.latent_figures import progressive
    from sfumato.recipes.latent_files import write_progress
    from sfumato.recipes.latents import Flow

    seeds = range(options.seed, options.seed + min(options.n, 8))
    progress = progressive(Flow(model, sampler, options.class_), seeds)
    write_progress(path, progress)
    levels = ", ".join(f"{sigma:.3g}" for sigma in progress.sigmas)
    print(f"predictions at sigma {levels}: {path}")


def _steps_in_words(sampler: SamplerConfig, walked: int) -> str:
    """How many steps are walked, and how many of those asked for fell together."""
    if sampler.grid == "all" or walked == sampler.steps:
        return f"{walked} steps"
    return (
        f"{walked} steps ({sampler.steps} were asked for: {sampler.steps - walked} levels of the "
        f"grid {sampler.grid} fall on others)"
    )


def _default_folder(options: SampleOptions, model: Model) -> Path:
    assert model.path is not None
    label = f"-{options.class_}" if options.class_ else ""
    return model.run / "samples" / f"{model.path.name}{label.replace('/', '-')}-seed{options.seed}"
