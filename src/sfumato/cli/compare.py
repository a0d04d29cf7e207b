"""`sfumato compare RUN --solvers ... --nfe ...`: which sampler is best for how many calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import tyro

from sfumato.cli.parse import OutPath, check_seeds, parse
from sfumato.cli.sampler_options import CommonOptions
from sfumato.errors import ConfigError
from sfumato.recipes.sampler_config import GridName, SamplerConfig, SolverName

if TYPE_CHECKING:
    from sfumato.recipes.evaluation.compare import Result
    from sfumato.recipes.evaluation.trials import Trial
    from sfumato.recipes.model import Model

_DEFAULT: tuple[SolverName, ...] = ("euler", "heun", "dpm++2m", "multistep", "unipc", "deis")


@dataclass(frozen=True)
class CompareOptions:
    """Options of `sfumato compare`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")] = ""
    """A run's folder, or one checkpoint folder."""
    solvers: tuple[SolverName, ...] = _DEFAULT
    """Solvers to compare; --list names them all."""
    nfe: tuple[int, ...] = ()
    """Network calls an image may cost, 5 9 17 35 if not given; a solver that cannot spend exactly
    so many is left out. For the tables and the sheet numbers of steps, DDIM's if not given."""
    screen: int = 0
    """Compare trajectories on 256 latents first, and draw images only with the best so many for
    each number of calls; 0 draws with all."""
    repeats: int = 1
    """Draw so many times, from other seeds: mean and error over them."""
    ddim_table: bool = False
    """DDIM's Table 1 instead: eta 0, 0.2, 0.5, 1 and sigma-hat at so many steps as --nfe lists."""
    truncation: bool = False
    """Instead: what each step of Euler's and Heun's methods misses by, for several rho (EDM
    Figure 13), with --steps steps on 64 latents."""
    steps: int = 18
    """Steps of the grids of --truncation."""
    rhos: tuple[float, ...] = (3.0, 5.0, 7.0, 10.0)
    """Exponents of the grids of --truncation."""
    consistency: bool = False
    """Instead: a sheet of -n latents (8 if not given), each by as many DDIM steps as --nfe lists
    (DDIM Figure 5)."""
    data: str = ""
    """Real images to compare with; the run's test images (else its training images)."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Images to draw with each; 1000 if not given."""
    reference_n: int = 10_000
    """Real images to compare with, a fixed random pick; 0: all."""
    features: str = "efficientnet"
    """What looks at them; as in sfumato evaluate."""
    seed: int = 0
    """Image i is seeded with seed + i, for every sampler."""
    list: bool = False
    """List solvers and grids, and stop."""
    sampler: Annotated[CommonOptions, tyro.conf.arg(name="")] = field(default_factory=CommonOptions)
    """Sampler: what all have in common, such as --grid, --rho or --guidance."""
    out: OutPath = None
    """Folder of the results; RUN/comparison if not given."""
    cache: Path | None = None
    """Folder of drawn images and features; RUN/evaluation/cache if not given."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""


_SCREENED = 256
_CALLS = (5, 9, 17, 35)
_TABLE = (10, 20, 50, 100)
_SHEET = (10, 20, 50, 100, 1000)


def run(arguments: Sequence[str]) -> int:
    """Compare, print the table, and say where the plot is."""
    options = parse(
        CompareOptions,
        arguments,
        "compare",
        "Draw the same seeds with several samplers and measure each. Interrupted, the same command "
        "goes on where it stopped.",
    )
    if options.list:
        print("solvers: " + ", ".join(get_args(SolverName)))
        print("grids: " + ", ".join(get_args(GridName)))
        print("what each is: docs/sampling.md; its options: sfumato sample --help")
        return 0
    if not options.run:
        raise ConfigError("say which run: sfumato compare RUN")
    if options.screen < 0:
        raise ConfigError(f"--screen must be 0 or more, not {options.screen}")
    if options.n is not None and options.n < 2:
        raise ConfigError(f"-n must be at least 2, not {options.n}")
    check_seeds(options.seed, (options.n or 1000) * options.repeats)
    if options.ddim_table and options.screen:
        raise ConfigError("--ddim-table has samplers that draw noise, which --screen cannot judge")
    if options.ddim_table + options.truncation + options.consistency > 1:
        raise ConfigError("--ddim-table, --truncation and --consistency are asked for one by one")
    from sfumato.recipes.environment import pick_device, set_threads

    set_threads(options.threads)
    device = pick_device(options.device)
    if options.truncation or options.consistency:
        return _without_real_images(options, device)
    return _compare(options, device)


def _without_real_images(options: CompareOptions, device: str) -> int:
    """The truncation error or the consistency sheet, which need the model alone."""
    from tqdm import tqdm

    from sfumato.files import usable
    from sfumato.recipes.evaluation import consistency as sheets
    from sfumato.recipes.evaluation import truncation as errors
    from sfumato.recipes.evaluation.cache import Cache
    from sfumato.recipes.loading import load

    model = load(options.run, device=device)
    run = model.run
    sampler = options.sampler.over(model.recipe.sampler)
    cache = Cache(options.cache or run / "evaluation" / "cache")
    out = usable(options.out or run / "comparison")
    if options.truncation:
        sampler = replace(sampler, steps=options.steps)
        with tqdm(total=(options.steps - 1) * len(options.rhos), unit="step") as bar:
            made = errors.truncation(
                model, sampler, cache, rhos=options.rhos, count=options.n or 64,
                seed=options.seed, tick=bar.update,
            )  # fmt: skip
        print(errors.in_lines(made))
        paths = errors.write_truncation(out, f"{run.name}: truncation error", made)
    else:
        steps = options.nfe or _possible(model, _SHEET)
        sheet = sheets.consistency(model, sampler, steps, options.n or 8, cache, options.seed)
        for steps, missed in zip(sheet.steps, sheet.missed, strict=True):
            print(f"{steps:>5} steps: RMSE {missed:.4f} to {sheet.steps[-1]} steps, on [-1, 1]")
        paths = sheets.write_sheet(out, sheet)
    for name, path in paths.items():
        print(f"{name}: {path}")
    return 0


def _compare(options: CompareOptions, device: str) -> int:
    from sfumato.files import usable
    from sfumato.recipes.evaluation import compare as work
    from sfumato.recipes.evaluation.comparison import table_of, write_comparison
    from sfumato.recipes.evaluation.settings import Settings
    from sfumato.recipes.evaluation.task import Places, of_run

    settings = Settings(
        ("fd",), n=options.n or 1000, reference_n=options.reference_n, features=options.features,
        seed=options.seed, repeats=options.repeats,
    )  # fmt: skip
    task = of_run(
        options.run,
        settings,
        Places(options.out and usable(options.out), options.cache),
        test=options.data,
        sampler=options.sampler.over,
        device=device,
    )
    drawn = task.samples[0]
    reference = task.real_images()
    assert isinstance(drawn, work.Drawn)
    assert task.run is not None
    out = usable(options.out or task.run / "comparison")
    chosen, left_out = _trials(options, drawn.model, drawn.sampler)
    misses: dict[work.Trial, float] = {}
    if options.screen:
        teacher = work.teacher_of(drawn.sampler)
        misses = work.screen(drawn.model, chosen, teacher, _SCREENED, task.cache)
        left_out += [
            f"{trial.name} draws noise: it has no trajectory to compare"
            for trial in chosen
            if trial not in misses
        ]
        chosen = work.best_of(misses, options.screen, always=("tuned",))
    if not chosen:
        raise ConfigError("none of these samplers can be compared: " + "; ".join(left_out))
    for reason in left_out:
        print(f"left out: {reason}")
    done = list(
        work.compare(
            drawn.model, chosen, reference, settings, task.cache,
            device=device, say=print, misses=misses,
        )
    )  # fmt: skip
    facts = {
        "run": str(task.run),
        "weights": drawn.model.fingerprint,
        "n": settings.n,
        "repeats": options.repeats,
        "seed": options.seed,
        "reference": f"{reference.name}, {len(reference):,}",
        "features": options.features,
        "grid": drawn.sampler.grid,
        "guidance": drawn.sampler.guidance,
    }
    measured = [result for result, _ in done]
    seen = {(result.name, result.nfe) for result in measured}
    screened = [
        work.unmeasured(trial, error)
        for trial, error in misses.items()
        if (trial.name, trial.nfe) not in seen
    ]
    title = f"{task.run.name}: samplers compared"
    paths = write_comparison(out, title, facts, [*measured, *screened], done, left_out)
    print()
    if misses:
        print(table_of([*measured, *screened], "trajectory error"))
        print()
    print(table_of(measured))
    if options.ddim_table:
        ladder = drawn.model.denoiser.range.levels
        print(_verdict(measured, 0 if ladder is None else len(ladder)))
    for name, path in paths.items():
        print(f"{name}: {path}")
    return 0


def _trials(
    options: CompareOptions, model: Model, sampler: SamplerConfig
) -> tuple[list[Trial], list[str]]:
    from sfumato.recipes.evaluation import trials as named
    from sfumato.recipes.tuned import load_tuned, samplers

    if options.ddim_table:
        return named.ddim_trials(model, sampler, options.nfe or _possible(model, _TABLE)), []
    tuned, _ = load_tuned(model)
    nfes = options.nfe or _CALLS
    return named.trials(model, sampler, options.solvers, nfes, samplers(tuned))


def _possible(model: Model, steps: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of steps that a model's ladder allows, and the whole ladder in their place."""
    ladder = model.denoiser.range.levels
    if ladder is None:
        return steps
    return tuple(dict.fromkeys(min(count, len(ladder)) for count in steps))


def _verdict(results: Sequence[Result], ladder: int) -> str:
    """Who wins at the most steps; at S = T the paper has a winner to compare with."""
    most = max(result.nfe for result in results)
    last = [result for result in results if result.nfe == most and result.frechet is not None]
    best, *others = sorted(last, key=lambda result: result.frechet or 0.0)
    text = f"at S = {most}: {best.name} is best"
    if others and best.frechet is not None and others[0].frechet is not None:
        error = math.hypot(best.error or 0.0, others[0].error or 0.0)
        if others[0].frechet - best.frechet < 2 * error:
            text += f", within the error of {others[0].name}"
    if most == ladder:
        text += " (S = T, where DDIM's Table 1 has sigma-hat)"
    return text
