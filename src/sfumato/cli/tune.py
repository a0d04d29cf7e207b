"""`sfumato tune RUN --nfe ...`: the best sampler for this model and so many network calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sfumato.cli.parse import OutPath, check_seeds, duration, parse
from sfumato.cli.sampler_options import FlowOptions
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.recipes.evaluation.tuned_report import Judge
    from sfumato.recipes.model import Model
    from sfumato.recipes.sampler_config import SamplerConfig
    from sfumato.recipes.tuned import Tuned
    from sfumato.recipes.tuning import Search


@dataclass(frozen=True)
class TuneOptions:
    """Options of `sfumato tune`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run's folder (its newest checkpoint), or one checkpoint folder."""
    nfe: tuple[int, ...] = (5, 6, 8, 10)
    """Network calls an image may cost; a sampler is tuned for each."""
    levels_only: bool = False
    """Choose noise levels alone, for the fixed solver that does best on them."""
    latents: int = 256
    """Trajectories to learn from; the network draws them itself."""
    held_out: int = 64
    """Other trajectories, by which the best is chosen."""
    teacher_steps: int = 40
    """Steps of the teacher, whose trajectories are followed."""
    iterations: int = 150
    """Updates by gradients for each number of calls; 0 is least squares alone."""
    seed: int = 0
    """Seed of the trajectories; with --search-churn, of the images and the search."""
    search_churn: bool = False
    """Instead: search EDM's four numbers of churn for Heun's method, by the Fréchet distance of -n
    images; kept where it beats no churn. Takes a number of calls Heun's method can spend."""
    trials: int = 30
    """Settings to try with --search-churn."""
    force: bool = False
    """Tune again what is tuned already."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1000
    """Images to measure the best four fixed solvers and the tuned one with; 0: trajectories
    alone are compared."""
    repeats: int = 1
    """Draw them so many times, from other seeds: mean and error over them."""
    best: int = 4
    """How many fixed solvers to measure, those of least trajectory error."""
    screen: int = 256
    """Latents to compare the trajectories of all fixed solvers on; 0: no comparison."""
    data: str = ""
    """Real images to measure against; the run's test images (else its training images)."""
    features: str = "efficientnet"
    """What looks at them; as in sfumato evaluate."""
    sampler: Annotated[FlowOptions, tyro.conf.arg(name="")] = field(default_factory=FlowOptions)
    """Sampler: what is tuned for, such as --guidance or --sigma-max."""
    out: OutPath = None
    """Folder of the report; RUN/tuning if not given."""
    cache: Path | None = None
    """Folder of drawn images and features; RUN/evaluation/cache if not given."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""


def run(arguments: Sequence[str]) -> int:
    """Tune, say where each sampler is, and compare it with every fixed one."""
    options = parse(
        TuneOptions,
        arguments,
        "tune",
        "Learn levels and weights of a sampler of so many calls from the model's own trajectories, "
        "store it beside the checkpoint, where sfumato sample --nfe finds it, and compare it with "
        "every fixed solver. Interrupted, the same command goes on where it stopped.",
    )
    if not options.nfe or min(options.nfe) < 1:
        raise ConfigError("--nfe takes one or more numbers of calls, each at least 1")
    if options.n < 0 or options.n == 1 or min(options.screen, options.best) < 0:
        raise ConfigError("-n, --screen and --best must not be negative, and -n not 1")
    check_seeds(options.seed, max(options.n, 1) * max(options.repeats, 1))
    from sfumato.recipes.environment import pick_device, set_threads
    from sfumato.recipes.loading import load
    from sfumato.recipes.tuned import load_tuned, samplers
    from sfumato.recipes.tuning import Search

    set_threads(options.threads)
    device = pick_device(options.device)
    model = load(options.run, device=device)
    for note in model.notes:
        print(f"note: {note}")
    sampler = options.sampler.over(model.recipe.sampler)
    search = Search(
        options.latents, options.held_out, options.teacher_steps, options.iterations,
        options.levels_only, options.seed,
    )  # fmt: skip
    if options.search_churn:
        return _search_churn(options, model, sampler, device)
    judge = _judge(options, model, device) if options.screen else None
    _tune(options, model, sampler, search)
    if judge is None:
        return 0
    found, notes = load_tuned(model)
    for note in notes:
        print(f"note: {note}")
    for name, path in judge.judge(sampler, samplers(found), print).items():
        print(f"{name}: {path}")
    return 0


def _judge(options: TuneOptions, model: Model, device: str) -> Judge:
    """What will compare; made before tuning, so that what is missing is told at once."""
    from sfumato.recipes.evaluation.tuned_report import Judge, Judging

    nfes = tuple(dict.fromkeys(options.nfe))
    judging = Judging(
        nfes, options.n, options.repeats, options.best, options.screen, options.data,
        options.features,
    )  # fmt: skip
    return Judge(model, judging, options.out, options.cache, device)


def _tune(options: TuneOptions, model: Model, sampler: SamplerConfig, search: Search) -> None:
    """Find what is not found yet, with progress, and store it."""
    from tqdm import tqdm

    from sfumato.recipes.tuned import Tuned, load_tuned, save_tuned
    from sfumato.recipes.tuning import Tuner

    known, _ = load_tuned(model)
    tuner = Tuner(model, sampler, search)
    wanted: list[int] = []
    for nfe in dict.fromkeys(options.nfe):
        if nfe in known and not options.force and tuner.made(known[nfe]):
            print(f"{nfe} calls: tuned before ({_in_words(known[nfe])}); --force tunes it again")
        else:
            if nfe in known:
                print(f"{nfe} calls: replaces what was tuned before ({_in_words(known[nfe])})")
            wanted.append(nfe)
    if not wanted:
        return
    tuner.check(wanted)
    if tuner.count < options.latents:
        print(f"note: memory has room for {tuner.count} trajectories, not {options.latents}")
    with tqdm(total=tuner.total, unit="latent", desc="the teacher's trajectories") as bar:
        for done in tuner.walk():
            bar.update(done)
    print(f"the teacher's own error is about {tuner.teacher_error:.2g}, RMSE on [-1, 1]")
    for nfe in wanted:
        with tqdm(total=search.iterations, unit="update", desc=f"{nfe} calls") as bar:
            for state in tuner.tune(nfe):
                if isinstance(state, Tuned):
                    path = save_tuned(model, state)
                    tqdm.write(f"{nfe} calls: {_in_words(state)}: {path}")
                else:
                    bar.total = state.total
                    bar.update(state.done - bar.n)
                    bar.set_postfix_str(f"held-out error {state.error:.4f}")


def _search_churn(options: TuneOptions, model: Model, sampler: SamplerConfig, device: str) -> int:
    """Search churn for each number of calls, and keep what wins."""
    from sfumato.files import usable
    from sfumato.recipes.evaluation import churn
    from sfumato.recipes.evaluation.cache import Cache
    from sfumato.recipes.evaluation.settings import Settings
    from sfumato.recipes.evaluation.task import Places, of_run
    from sfumato.recipes.sampler_config import with_solver
    from sfumato.recipes.samplers import with_evaluations
    from sfumato.recipes.tuned import Tuned, load_tuned, save_tuned

    out = usable(options.out or model.run / "tuning")
    for nfe in options.nfe:
        with_evaluations(with_solver(sampler, "heun"), nfe)
    settings = Settings(
        ("fd",), n=options.n, features=options.features, seed=options.seed, repeats=options.repeats
    )
    task = of_run(
        model, settings, Places(options.out, options.cache), test=options.data, device=device
    )
    reference = task.real_images()
    cache = Cache(options.cache or model.run / "evaluation" / "cache")
    for nfe in dict.fromkeys(options.nfe):
        verdict = churn.search(
            model, sampler, nfe, options.trials, reference, settings, cache,
            device=device, say=print,
        )  # fmt: skip
        print(f"\n{nfe} calls, the best settings of {options.trials}:")
        print("\n".join(churn.in_lines(verdict)))
        path = out / f"churn-{nfe:03d}.json"
        churn.write_search(path, verdict, nfe)
        print(f"all settings: {path}")
        known, _ = load_tuned(model)
        if verdict.won and nfe in known and known[nfe].sampler.solver == "tuned":
            print(
                f"not kept: {nfe} calls have a sampler tuned already, which sfumato compare "
                "--solvers tuned heun can be asked about; its file is in the checkpoint's folder"
            )
        elif verdict.won:
            about = {
                "found": "churn",
                "trials": options.trials,
                "n": options.n,
                "frechet": verdict.best.frechet,
                "frechet_without": verdict.without.frechet,
            }
            print(f"kept: {save_tuned(model, Tuned(nfe, verdict.sampler, about))}")
    return 0


def _in_words(tuned: Tuned) -> str:
    about = tuned.about
    if "held_out_error" not in about:
        return str(about["found"])
    return (
        f"{about['found']}, error {about['held_out_error']:.4f} on held-out trajectories, "
        f"in {duration(about['seconds'])}"
    )
