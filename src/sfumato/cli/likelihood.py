"""`sfumato likelihood RUN --data TEST`: bits per dimension, by the bound and by the flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sfumato.cli.parse import OutPath, check_seeds, parse
from sfumato.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sfumato.processes import Processes


@dataclass(frozen=True)
class LikelihoodOptions:
    """Options of `sfumato likelihood`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run's folder (its newest checkpoint), or one checkpoint folder."""
    data: str = ""
    """Images to measure; the run's test images (else its training images)."""
    size: tuple[int, int] | None = None
    """Crop images to height and width."""
    channels: int | None = None
    """Turn images into so many channels (1 or 3)."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1000
    """Images of each set, a fixed random pick."""
    draws: int = 32
    """Noise levels drawn for each image, one of each stratum: unbiased."""
    all_levels: bool = False
    """Every level instead: slower, and gives the rate-distortion curve (DDPM Figure 5)."""
    steps: int = 0
    """Levels the bound is taken along, in geometric progression, rounded to a ladder's; 0: all of
    the ladder (1,000 without one)."""
    variance: Literal["zero", "unit-gaussian"] | None = None
    """Variance of x0, DDPM's fixed small (zero) or fixed large; the recipe's if not given."""
    tanh: bool = False
    """The discretised decoder as DDPM's code approximates it: for parity with published numbers."""
    flow: int = 64
    """Images whose exact density is told by the probability flow, too; 0: none."""
    tolerance: float = 1e-3
    """Relative and absolute tolerance of the flow's steps."""
    gap: bool = True
    """Also measure training images, where the run's own are there."""
    per_image: bool = False
    """Also write per-image.csv: what finds images unlike those of training."""
    seed: int = 0
    """Seed of noise and levels."""
    out: OutPath = None
    """Folder of the results; RUN/likelihood if not given."""
    force: bool = False
    """Replace results that are there."""
    cache: Path | None = None
    """Folder of what was computed; RUN/evaluation/cache if not given."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""


def run(arguments: Sequence[str]) -> int:
    """Measure, print the table, and say where the rest is."""
    options = parse(
        LikelihoodOptions,
        arguments,
        "likelihood",
        "Measure how many bits a dimension a model needs for images: the variational bound and the "
        "probability flow. Interrupted, the same command goes on where it stopped.",
    )
    check_seeds(options.seed)
    from sfumato.processes import joined

    with joined() as processes:
        return _measure(options, processes)


def _measure(options: LikelihoodOptions, processes: Processes) -> int:
    """Measure in this process, or its share; the first one speaks and writes."""
    from tqdm import tqdm

    from sfumato.files import usable
    from sfumato.processes import own_device
    from sfumato.recipes import likelihood as work
    from sfumato.recipes.environment import pick_device, set_threads
    from sfumato.recipes.evaluation.cache import Cache
    from sfumato.recipes.evaluation.settings import Settings
    from sfumato.recipes.evaluation.task import Places, of_run
    from sfumato.recipes.likelihood_page import in_lines, write_likelihood
    from sfumato.recipes.likelihood_results import Measured
    from sfumato.recipes.loading import load

    say = print if processes.first else _silent
    set_threads(options.threads)
    device = own_device(pick_device(options.device))
    draws = 0 if options.all_levels else options.draws
    if not options.all_levels and options.draws < 1:
        raise ConfigError(f"--draws must be at least 1, not {options.draws}")
    asked = work.Asked(options.n, draws, options.flow, options.tolerance, options.seed,
                       options.steps, options.variance, options.tanh)  # fmt: skip
    model = load(options.run, device=device)
    for note in model.notes:
        say(f"note: {note}")
    out = processes.from_first(lambda: usable(options.out or model.run / "likelihood"))
    processes.check_same(
        model.fingerprint, "weights", "a run must not train on while it is measured"
    )
    if processes.from_first(lambda: (out / "likelihood.json").exists()) and not options.force:
        raise ConfigError(f"{out} holds results already: --force replaces them, or another --out")
    cache = Cache(options.cache or model.run / "evaluation" / "cache")
    settings = Settings(("fd",), n=2, reference_n=options.n, seed=options.seed)
    measurer = work.Measurer(model, asked, cache, processes)
    given = {"size": options.size, "channels": options.channels}
    changes = {name: value for name, value in given.items() if value is not None}
    task = of_run(
        model, settings, Places(None, options.cache), test=options.data, device=device,
        opening=lambda own: replace(own, **changes),
    )  # fmt: skip
    sets = [ref.images for ref in task.references if ref.images is not None]
    for images in sets:
        if images.format != model.format:
            raise DataError(
                f"the {images.name} are {images.format.describe()}, and the model's "
                f"{model.format.describe()}: bring them there with --size and --channels; bit "
                "depths are not converted"
            )
    say(f"the bound is taken along {len(measurer.grid)} noise levels")
    if (options.variance or model.recipe.variance) == "zero" and options.steps:
        say("note: without a variance the bound is the looser the fewer the levels")
    if (var := measurer.fit(sets[-1])) is not None:
        say(f"the decoder's deviation, fitted on {sets[-1].name}: {var**0.5:.3g} on [-1, 1]")
    if not options.gap:
        sets = sets[:1]
    found: list[Measured] = []
    # The gap is one of bounds: only the first set has its flow.
    total = sum(measurer.total(images, flow=not number) for number, images in enumerate(sets))
    with tqdm(total=total, unit="image", disable=not processes.first) as bar:
        for number, images in enumerate(sets):
            bar.set_description(images.name)
            found.append(measurer.measure(images, bar.update, flow=not number))
    if not processes.first:
        return 0
    print("\n".join(in_lines(found)))
    facts = {
        "run": str(model.run),
        "weights": model.fingerprint,
        "variance of x0": options.variance or model.recipe.variance,
        "levels": f"{len(measurer.grid)}, " + (f"{draws} drawn an image" if draws else "all"),
        "pixels": f"{model.format.levels} values; bound: discretised Gaussian decoder"
        f"{' (tanh)' if options.tanh else ''}; flow: uniform dequantisation",
        "flow": f"{asked.flow} images, Dormand-Prince at {asked.tolerance:g}, one Rademacher "
        f"vector; {found[0].flow_calls:.0f} network calls",
        "decoder's variance": "the ladder's" if var is None else f"{var:.4g}, fitted",
    }
    title = f"{model.run.name}: bits per dimension"
    paths = write_likelihood(out, title, found, facts, per_image=options.per_image)
    for name, path in paths.items():
        print(f"{name}: {path}")
    return 0


def _silent(text: str) -> None:
    del text
