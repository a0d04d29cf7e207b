"""A training run: its folder, log, sample grids, checkpoints and resumption, around the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sfumato.data.images import Images
from sfumato.data.loader import Batches
from sfumato.errors import ConfigError
from sfumato.networks.base import Network
from sfumato.processes import Processes, joined, meeting, own_device
from sfumato.recipes.config import Recipe
from sfumato.recipes.environment import pick_device, set_threads, tune_device
from sfumato.recipes.model import Model
from sfumato.recipes.plan import decay_of, plan_of
from sfumato.recipes.preview import Preview, Watcher, check_samplers
from sfumato.recipes.progress import Every, FittedDecay, Progress
from sfumato.recipes.run_config import Arithmetic, Bookkeeping, RunConfig
from sfumato.recipes.run_data import (
    check_sets,
    data_config,
    open_data,
    open_to_measure,
    remark,
    sigma_data_of,
    stream_of,
)
from sfumato.recipes.run_log import RunLog, Unwritten
from sfumato.recipes.run_network import NetworkMaker
from sfumato.recipes.run_saving import CONFIG, Begun, Saver, read_begun, refuse_taken
from sfumato.recipes.run_team import agreed, check_same, gathered, team_of, voices
from sfumato.recipes.toml import to_toml
from sfumato.report.words import duration
from sfumato.training.checkpoint import Checkpoint, expect_same, restore
from sfumato.training.guard import TrainingError
from sfumato.training.loop import Record
from sfumato.training.loop import train as train_steps
from sfumato.training.state import TrainState

if TYPE_CHECKING:
    from sfumato.recipes.evaluation.during import Evaluation

_PREVIEWS = 5
REPORT = "report.html"

Say = Callable[[str], None]


def train(
    recipe: Recipe,
    images: Images,
    folder: str | Path,
    *,
    minutes: float = 0.0,
    test: Images | None = None,
    resume: bool = False,
    report: bool = True,
    say: Say | None = None,
) -> Iterator[Record]:
    """Train on images to a run folder, yielding a record a step; classes are learned if labelled.

    Ends after recipe.images images, or `minutes` minutes if that comes first, and then writes
    report.html. Closing the iterator saves a checkpoint, from which resume=True goes on, as
    `sfumato train --resume` does for images of `open_images`. `say` is told what is worth knowing,
    such as print. In a script that torchrun started, all its processes train together. Raises
    ConfigError where the folder is taken.
    """
    bookkeeping = Bookkeeping(minutes=minutes, report=report)
    config = RunConfig(recipe, data_config(images, test), bookkeeping)
    with joined(device=pick_device(bookkeeping.device)) as processes:
        run = Run.open(
            config,
            Path(folder),
            resume=resume,
            images=images,
            test=test,
            say=say,
            processes=processes,
        )
        yield from run.steps()
        if report:
            run.write_report()


class Run:
    """One run folder being trained: open it, iterate `steps`, then write the report.

    `unreadable`: files that could not be read so far, and were left out or replaced by others.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        images: Images,
        test: Images | None,
        begun: Begun,
        say: Say | None,
        processes: Processes,
    ) -> None:
        self.folder, self.processes = folder, processes
        self.say, self._complain = voices(processes, say)
        self.images_set, self.test_set = images, test
        self.unreadable = images.skipped
        self.device = own_device(pick_device(config.run.device))
        tune_device(self.device)
        self.progress = Progress(config.recipe.images, config.run.minutes * 60)
        self.interrupted = self._wished = False
        if config.recipe.process.sigma_data is None:
            measured = processes.from_first(lambda: sigma_data_of(images, self.say))
            process = replace(config.recipe.process, sigma_data=measured)
            config = replace(config, recipe=replace(config.recipe, process=process))
        self.recipe = config.recipe
        self.team = team_of(processes, config, self.device)
        self.classes = images.classes if config.data.classes else ()
        levels = images.format.levels
        self.condition = None if images.inputs is None else images.inputs.format
        self._maker = NetworkMaker(
            self.recipe, images.format, len(self.classes), self.condition, self.device, self.team,
            self.say,
        )  # fmt: skip
        # What one device cannot hold is made on the host, and moved part by part.
        network = self._maker.network("cpu" if self.team.sharded else self.device)
        check_samplers(
            Model(self.recipe, network, images.format, self.classes, condition=self.condition)
        )
        self.plan = plan_of(
            self.recipe,
            half_bin=1 / (levels - 1) if levels else 1 / 255,
            classes=len(self.classes),
            decay=FittedDecay(decay_of(self.recipe), self.progress),
        )
        if begun.checkpoint is None:
            self._maker.measure(network, images, processes)
        self.precision = begun.precision or processes.from_first(
            lambda: self._maker.precision(network)
        )
        if self.recipe.precision == "auto":
            chosen = Arithmetic(self.precision.dtype, self.precision.channels_last)
            config = replace(config, arithmetic=chosen)
        self.config = config
        self.precision.apply(network)
        self.state = TrainState.start(network, self.plan, self.team.take(network))
        self.precision.apply(cast(Network, self.state.ema.network))
        self._maker.quicken(network, config.run)
        log = RunLog if processes.first else Unwritten
        self.log = log(folder, config.run.log_every, self.say)
        self.position = self._ahead = 0
        self._gathered: Network | None = None

    @classmethod
    def open(
        cls,
        config: RunConfig,
        folder: Path,
        *,
        resume: bool = False,
        images: Images | None = None,
        test: Images | None = None,
        say: Say | None = None,
        processes: Processes | None = None,
    ) -> Run:
        """Open a new run folder, or an old one to go on with (or to write the report it lacks).

        All of several `processes` open it together. Raises DataError, ConfigError and
        CheckpointError for what does not fit.
        """
        processes = processes or Processes()
        told, (say, _) = say, voices(processes, say)
        set_threads(config.run.threads)
        begun = Begun()
        if resume:
            parts = config.run.fsdp and processes.count > 1
            begun = read_begun(folder, say, processes, parts=parts)
        else:
            processes.from_first(lambda: refuse_taken(folder))
        if images is None:
            if note := remark(config.data):
                say(note)
            images = open_data(config.data, config.data.data)
        if test is None and config.data.test:
            test = open_to_measure(config.data, config.data.test)
        check_sets(images, test)
        check_same(processes, config, images)
        say(f"data {images.describe()}")
        run = cls(config, folder, images, test, begun, told, processes)
        if begun.checkpoint is not None:
            run._go_on(begun.checkpoint)
        elif resume:
            run.log.resume(0, {})
        if processes.first:
            folder.mkdir(parents=True, exist_ok=True)
            run.config.write(folder / CONFIG)
        return run

    @property
    def images(self) -> int:
        """Images seen."""
        return self.state.images

    @property
    def seconds(self) -> float:
        """Seconds spent training, over all sessions."""
        return self.progress.seconds

    @property
    def finished(self) -> bool:
        """Whether all images were seen, or the time is up."""
        return self.progress.share >= 1

    def interrupt(self) -> None:
        """Stop after the step at hand (the next good one), keeping a checkpoint.

        Of several processes one may ask: all stop after the step in which they hear of it.
        """
        self._wished = True
        self.interrupted = self.interrupted or self.processes.count == 1

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint says about itself: enough to sample and to resume."""
        return {
            "recipe": to_toml(self.recipe),
            "data": {
                "format": self.images_set.format.to_toml(),
                "classes": list(self.classes),
                "count": len(self.images_set),
                "fingerprint": self.images_set.fingerprint,
                **({"condition": self.condition.to_toml()} if self.condition else {}),
            },
            "precision": asdict(self.precision),
            "seconds": self.progress.seconds,
            "waited": self.progress.waited,
            "window": self.log.window,
        }

    def model(self) -> Model:
        """Return the model as it is now, with the averaged weights."""
        return Model(
            self.recipe,
            self._gathered or cast(Network, self.state.ema.network),
            self.images_set.format,
            self.classes,
            self.folder / "checkpoints" / f"{self.state.step:08d}",
            self.state.images,
            precision=str(self.precision),
            condition=self.condition,
        )

    def steps(self) -> Iterator[Record]:
        """Train to the end, yielding every step; closing the iterator saves a checkpoint."""
        if self.finished:
            return
        batches = stream_of(
            self.images_set,
            self.recipe.batch,
            self.recipe.seed,
            position=self.position,
            flip=self.recipe.flip and not self.recipe.augment,
            labels=bool(self.classes),
            pinned=self.device.startswith("cuda"),
            processes=self.processes,
        )
        run, processes = self.config.run, self.processes
        saver = Saver(
            self.folder, self.state, run, self.describe, self.say, self.position, processes
        )
        measuring = self._measuring() if processes.first else None
        watchers = [*self._watchers(), *([measuring] if measuring else [])]
        steps = train_steps(self.state, batches, self.plan, self.recipe.images, team=self.team)
        together = True  # whether all processes leave alike
        several = meeting(several=processes.count > 1)
        with batches, self.log.opened(tensorboard=run.tensorboard), several:
            try:
                for step in steps:
                    record, self.interrupted = agreed(processes, step, self._wished)
                    self._note(record, batches)
                    saver.note(self.position)
                    if record.rolled_back and measuring:
                        measuring.forget_after(record.step)
                    self._watch(watchers, record)
                    saver.best = measuring.best_step if measuring else None
                    yield record
                    saver.after(record)
                    if self.finished or (self.interrupted and not record.skipped):
                        break
            except TrainingError:
                # The guard put the last good state back: that is what is kept.
                self.position = batches.position - self._ahead
                self.log.go_back(self.state.step)
                saver.note(self.position)
                if measuring:
                    measuring.forget_after(self.state.step)
                    saver.best = measuring.best_step
                raise
            except BaseException as error:
                together = isinstance(error, GeneratorExit)
                raise
            finally:
                if together or not self.team.sharded:
                    saver.finish()

    def write_report(self, say: Say | None = None) -> Path:
        """Draw samples, measure them, and write report.html; return its path.

        The first process does it; the others return when they are not needed any more.
        """
        self._gather()
        if not self.processes.first:
            return self.folder / REPORT
        from sfumato.recipes.page import write_page

        return write_page(self, say or self.say)

    def _go_on(self, checkpoint: Checkpoint) -> None:
        """Put everything where the checkpoint was."""
        expect_same(checkpoint, self.describe()["data"], "data")
        restore(self.state, checkpoint)
        self.position = checkpoint.position
        self.progress.images = checkpoint.images
        self.progress.seconds = checkpoint.describe["seconds"]
        self.progress.waited = checkpoint.describe.get("waited", 0.0)
        lacks_report = self.config.run.report and not (self.folder / REPORT).exists()
        if self.finished and not lacks_report:
            raise ConfigError(f"{self.folder} {self._done()}")
        self.log.resume(checkpoint.step, checkpoint.describe["window"])
        if not self.finished:
            self.say(f"resuming at step {checkpoint.step:,}, image {checkpoint.images:,}")

    def _done(self) -> str:
        """What to say where nothing is left to train."""
        if self.images >= self.recipe.images:
            return f"is finished ({self.images:,} images): to train on, give a larger --images"
        return (
            f"was already trained for {duration(self.seconds)}: nothing to do, for --minutes "
            f"{self.config.run.minutes:g} is the total over all sessions; give a larger one"
        )

    def _watchers(self) -> list[Watcher]:
        """What looks at the model from time to time, in the first process."""
        if not self.processes.first:
            return []
        previews = Every(self.config.run.sample_every, _PREVIEWS, self.progress.share)
        source = self.test_set or self.images_set
        return [Preview(self.folder, self.recipe, self.log, previews, source)]

    def _measuring(self) -> Evaluation | None:
        """What measures the Fréchet distance while training, where that is asked for."""
        run = self.config.run
        if not run.eval_every:
            return None
        from sfumato.recipes.evaluation.during import Evaluation

        return Evaluation.of_run(
            self.folder, run, self.images_set, self.test_set, self.log, self.progress, self.say
        )

    def _watch(self, watchers: list[Watcher], record: Record) -> None:
        if record.skipped or record.rolled_back:
            return  # Weights of an earlier step: nothing new to see, and nothing that is saved.
        due = [w for w in watchers if w.every.due(record.step, self.progress.share)]
        if self.team.sharded and self.processes.from_first(lambda: bool(due)):
            self._gather()
        for watcher in due:
            try:
                watcher.look(self.model(), record.step)
            except (OSError, ValueError, FloatingPointError) as error:
                name = type(watcher).__name__.lower()
                self.say(f"warning: no {name} at image {record.images:,}: {error}")
        self._gathered = None

    def _gather(self) -> None:
        """Bring the average together in the first process, where each holds a part of it."""
        if not self.team.sharded:
            return
        average = self.state.ema.network
        whole = gathered(average, self.processes, lambda: self._maker.network(self.device))
        if whole is not None:
            self.precision.apply(whole)
        self._gathered = whole

    def _note(self, record: Record, batches: Batches) -> None:
        """Write down what a step did."""
        self.position = batches.position - record.ahead
        self._ahead = record.ahead
        self.progress.add(record)
        self.log.add(record, self.progress.seconds, last=self.finished)
        found = batches.skipped
        if len(found) > len(self.unreadable):
            for complaint in found[len(self.unreadable) :]:
                message = f"unreadable, replaced by another image: {complaint}"
                self._complain(f"warning: {message}")
                self.log.note(record, message)
            self.unreadable = found
