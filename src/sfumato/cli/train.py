"""`sfumato train RECIPE --data FOLDER`: train, with progress, to a run folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sfumato.cli.parse import OutPath, duration, free_folder, parse
from sfumato.errors import ConfigError, DataError, FinishedError
from sfumato.recipes.config import Recipe
from sfumato.recipes.presets import SUMMARIES, names, recipe
from sfumato.recipes.run_config import Bookkeeping, DataConfig, RunConfig
from sfumato.recipes.toml import difference

if TYPE_CHECKING:
    from sfumato.recipes.run import Run

_BAR = "{percentage:3.0f}%|{bar}| {n:,}/{total:,} images [{desc}]"


@dataclass(frozen=True)
class TrainOptions:
    """Options of `sfumato train RECIPE`."""

    data: Annotated[DataConfig, tyro.conf.arg(name="")] = field(default_factory=DataConfig)
    """Images."""
    run: Annotated[Bookkeeping, tyro.conf.arg(name="")] = field(default_factory=Bookkeeping)
    """Bookkeeping."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    """Recipe."""
    out: OutPath = None
    """The run's folder; runs/RECIPE (runs/RECIPE-2, ...) if not given."""


@dataclass(frozen=True)
class ResumeOptions:
    """Options of `sfumato train --resume RUN`: the rest is as the run was started.

    A finished run without its report gets that.
    """

    resume: Path
    """The run's folder."""
    images: int | None = None
    """Train on, up to so many images in all."""
    minutes: float | None = None
    """Train on, up to so many minutes in all, those of earlier sessions included."""
    threads: int | None = None
    """CPU threads; as before if not given (another number changes the last bits)."""
    compile: Literal["auto", "on", "graphs", "off"] | None = None
    """As for a new run; as before if not given."""
    fsdp: bool | None = None
    """Split the weights over the processes, or not; as before if not given."""


def run(arguments: Sequence[str]) -> int:
    """Parse the arguments, train, and say where the run is."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if any(item == "--resume" or item.startswith("--resume=") for item in arguments):
        return _resume(arguments)
    name, rest = arguments[0], arguments[1:]
    if name.startswith("-"):
        raise ConfigError(
            f"name a recipe first, for example: sfumato train edm-tiny {' '.join(arguments)}\n"
            f"Recipes: {', '.join(names())}"
        )
    preset = recipe(name)
    options = parse(
        TrainOptions,
        rest,
        f"train {name}",
        f"{SUMMARIES[name.removesuffix('-tiny')]}. Every field of the recipe is an option.",
        default=TrainOptions(recipe=preset),
    )
    if not options.data.data:
        raise ConfigError(
            "say what to train on: --data FOLDER (a folder or zip of images, .npy, .npz, IDX), "
            "or --data fashion-mnist:train for the built-in images"
        )
    changed = difference(options.recipe, preset)
    data = replace(options.data, data=findable(options.data.data), test=findable(options.data.test))
    return train(
        RunConfig(options.recipe, data, options.run),
        options.out or (lambda: free_folder(Path("runs") / name)),
        resume=False,
        remark=f"recipe {name}" + (f" with {_pairs(changed)}" if changed else ""),
    )


def findable(path: str) -> str:
    """Return the path so that --resume finds it from any working directory."""
    from sfumato.data.shards.places import absolute, holds_shards

    if path and Path(path).exists():
        return str(Path(path).resolve())
    return absolute(path) if path and holds_shards(path) else path


def _resume(arguments: Sequence[str]) -> int:
    if not arguments[0].startswith("-"):
        raise ConfigError("--resume takes the recipe from the run: leave out the recipe's name")
    _refuse_own(arguments)
    options = parse(ResumeOptions, arguments, "train", "Continue a run where it stopped.")
    config = RunConfig.read(options.resume / "config.toml")
    if options.images is not None:
        config = replace(config, recipe=replace(config.recipe, images=options.images))
    if options.minutes is not None:
        config = replace(config, run=replace(config.run, minutes=options.minutes))
    if options.compile is not None:
        config = replace(config, run=replace(config.run, compile=options.compile))
    if options.threads is not None:
        config = replace(config, run=replace(config.run, threads=options.threads))
    if options.fsdp is not None:
        config = replace(config, run=replace(config.run, fsdp=options.fsdp))
    try:
        return train(config, options.resume, resume=True)
    except FinishedError as error:
        if (options.images, options.minutes) != (None, None):
            raise
        if os.environ.get("RANK", "0") == "0":
            print(error)
        return 0  # A job that is started again until it succeeds has succeeded.


def _refuse_own(arguments: Sequence[str]) -> None:
    """Raise ConfigError for options of a new run: one that goes on has its own recipe and data."""
    known = [f"--{item.name}" for item in fields(ResumeOptions)]
    given = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    other = [
        name for name in given if f"--{name[2:].removeprefix('no-')}" not in (*known, "--help")
    ]
    if other:
        raise ConfigError(
            f"{', '.join(other)}: with --resume the recipe, the data and the rest are the run's "
            f"own; what may be given is {', '.join(known[1:])}"
        )


def train(
    config: RunConfig, folder: Path | Callable[[], Path], *, resume: bool, remark: str = ""
) -> int:
    """Run the training with a progress bar; Ctrl-C and SIGTERM stop it after the current step.

    Where torchrun started several processes, all train together and the first speaks.
    """
    from tqdm import tqdm

    from sfumato.processes import ProcessLostError, joined
    from sfumato.recipes.environment import pick_device
    from sfumato.recipes.run import Run
    from sfumato.training.history import checkpoints

    with joined(device=pick_device(config.run.device)) as processes:
        say = print if processes.first else _silent
        if remark:
            say(remark)
        place = folder if isinstance(folder, Path) else processes.from_first(folder)
        # Until the first step there is nothing to keep: Ctrl-C may end the opening at once.
        run = Run.open(config, place, resume=resume, say=tqdm.write, processes=processes)
        if processes.count == 1 and config.run.fsdp:
            say(
                "note: --fsdp splits a model over processes; there is one, and torchrun starts more"
            )
        if processes.count > 1:
            say(f"{processes.count} processes share each batch of {run.recipe.batch} images")
        onward = (
            "The run is as it was at its newest checkpoint; to continue, with any number of "
            f"processes: sfumato train --resume {quote(str(place))}"
        )
        try:
            signal = None if run.finished else _train(run, say)
        except ProcessLostError as error:
            raise ProcessLostError(f"{error}. {onward}") from error
        except DataError as error:
            if not checkpoints(place):
                raise
            raise DataError(f"{error}. {onward}") from error
        if signal:
            return 130
        say(f"trained on {run.images:,} images in {duration(run.seconds)}")
        if config.run.report:
            _report(run, say)
        from sfumato.recipes.commands import sample_command

        say(f"to sample: {sample_command(place, given=run.images_set.inputs is not None)}")
        say(f"run: {place}")
    return 0


def _silent(text: str) -> None:
    del text


def _train(run: Run, say: Callable[[str], None]) -> str | None:
    """Take all steps; return the signal's name where one stopped them, having said so."""
    from tqdm import tqdm

    from sfumato.training.interruption import Interruption

    say(f"training to {run.folder} (Ctrl-C stops it and keeps what was learned)")
    launched = "LOCAL_RANK" in os.environ  # torchrun passes a signal on that came here already
    expected = run.progress.expected_images()
    images, seconds = run.images, run.seconds
    with (
        Interruption(patient=launched) as interruption,
        tqdm(
            initial=run.images,
            unit="img",
            bar_format=_BAR,
            total=expected,
            disable=not run.processes.first,
        ) as bar,
    ):
        for record in run.steps():
            if record.message and run.processes.first:
                bar.write(record.message)
            # By the seconds of training: previews and measuring would make a bar's own rate jump.
            rate = (record.images - images) / max(run.seconds - seconds, 1e-9)
            bar.total = run.progress.expected_images(rate)
            left = (bar.total - record.images) / rate if rate > 0 else None
            told = _postfix(record.loss, run.progress.waited_share)
            bar.set_description_str(f"{_pace(rate, left)}, {told}", refresh=False)
            bar.update(record.images - bar.n)
            if interruption.requested:
                run.interrupt()
        bar.close()
        stopped = run.interrupted and not run.finished
        signal = (interruption.name or "a signal to another process") if stopped else None
        if signal:
            say(f"stopped by {signal} at image {run.images:,}; to continue: "
                f"sfumato train --resume {quote(str(run.folder))}")  # fmt: skip
            sys.stdout.flush()
        # Whoever leaves first has the launcher end the others: all is saved and said by then.
        run.processes.wait()
    return signal


def _pace(rate: float, left: float | None) -> str:
    """Images a second, and the seconds left where they can be told."""
    return ("" if left is None else f"{duration(max(left, 0))} left, ") + f"{rate:.4g} images/s"


def _postfix(loss: float, waited: float) -> str:
    """What stands behind the bar: the loss, and how much of the time goes into waiting for data."""
    return f"loss {loss:.4f}, {100 * waited:.0f} % waiting for data"


def _report(run: Run, say: Callable[[str], None]) -> None:
    """Write the report; where that fails, say how to get it without training again."""
    try:
        say(f"report: {run.write_report(say)}")
    except BaseException:
        again = f"sfumato train --resume {quote(str(run.folder))}"
        say(f"the model is saved; to write its report: {again}")
        raise


def _pairs(changed: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in changed.items())


def _overview() -> str:
    width = max(len(name) for name in SUMMARIES) + 2
    return "\n".join(
        [
            "usage: sfumato train RECIPE --data FOLDER [OPTIONS]",
            "       sfumato train --resume RUN",
            "       sfumato train RECIPE --help       (all options, with the recipe's values)",
            "",
            "Recipes (add -tiny for a version that trains in minutes on a CPU):",
            *(f"  {name:<{width}}{text}" for name, text in SUMMARIES.items()),
            "",
            "For example:",
            "  sfumato train edm-tiny --data photos/ --size 32 32 --minutes 10",
            "  sfumato train edm-tiny --data fashion-mnist:train --classes --minutes 5",
        ]
    )
