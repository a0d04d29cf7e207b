"""A training run: its folder, log, checkpoints and resumption, around the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from sfumato.data.images import Images
from sfumato.data.loader import Batches
from sfumato.errors import FinishedError
from sfumato.networks.base import Network
from sfumato.processes import Processes, meeting, own_device
from sfumato.recipes.environment import pick_device, set_threads, tune_device
from sfumato.recipes.model import Model
from sfumato.recipes.plan import decay_of, plan_of
from sfumato.recipes.preview import check_samplers
from sfumato.recipes.progress import FittedDecay, Progress
from sfumato.recipes.run_config import Arithmetic, RunConfig
from sfumato.recipes.run_data import (
    check_sets,
    open_data,
    open_to_measure,
    remark,
    sigma_data_of,
    stream_of,
)
from sfumato.recipes.run_log import RunLog, Unwritten
from sfumato.recipes.run_network import NetworkMaker
from sfumato.recipes.run_saving import CONFIG, Begun, Saver, Say, read_begun, refuse_taken
from sfumato.recipes.run_team import Average, agreed, check_same, team_of, voice
from sfumato.recipes.run_watching import Watching
from sfumato.recipes.toml import to_toml
from sfumato.training.checkpoint import Checkpoint, expect_same, restore
from sfumato.training.guard import TrainingError
from sfumato.training.loop import Record
from sfumato.training.loop import train as train_steps
from sfumato.training.state import TrainState

REPORT = "report.html"


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
        self.say = voice(processes, say)
        self.images_set, self.test_set = images, test
        self.unreadable = images.skipped
        self._skipped, self._unnoted = len(images.skipped), images.skipped
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
        self._average = Average(
            self.state, self.team, processes, lambda: self._maker.network(self.device),
            self.precision,
        )  # fmt: skip

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
        told, say = say, voice(processes, say)
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
            images = processes.one_a_machine_first(lambda: open_data(config.data, config.data.data))
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
            **self.progress.describe(),
            "window": self.log.window,
        }

    def model(self) -> Model:
        """Return the model as it is now, with the averaged weights."""
        return Model(
            self.recipe,
            self._average.network,
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
        watching = Watching(
            self.folder, self.config, self.images_set, self.test_set, self.log, self.progress,
            self.say, processes,
        )  # fmt: skip
        saver.best = watching.best_step
        steps = train_steps(self.state, batches, self.plan, self.recipe.images, team=self.team)
        together = True  # whether all processes leave alike
        several = meeting(several=processes.count > 1)
        with batches, self.log.opened(tensorboard=run.tensorboard), several:
            try:
                for step in steps:
                    skipped = batches.skipped
                    news, self._skipped = skipped[self._skipped :], len(skipped)
                    record, self.interrupted, news = agreed(processes, step, self._wished, news)
                    self._note(record, batches, news)
                    saver.note(self.position)
                    # Measuring may take longer than is left to a job that is told to end.
                    saver.before(record, watching.measures(record))
                    watching.after(record, self.model, self._average)
                    saver.best = watching.best_step
                    yield record
                    saver.after(record)
                    if self.finished or (self.interrupted and not record.skipped):
                        break
            except TrainingError:
                # The guard put the last good state back: that is what is kept.
                self.position = batches.position - self._ahead
                self.log.go_back(self.state.step)
                saver.note(self.position)
                watching.forget_after(self.state.step)
                saver.best = watching.best_step
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
        self._average.gather()
        if not self.processes.first:
            return self.folder / REPORT
        from sfumato.recipes.page import write_page

        return write_page(self, say or self.say)

    def _go_on(self, checkpoint: Checkpoint) -> None:
        """Put everything where the checkpoint was."""
        expect_same(checkpoint, self.describe()["data"], "data")
        restore(self.state, checkpoint)
        self.position = checkpoint.position
        self.progress.go_on(checkpoint.images, checkpoint.describe)
        lacks_report = self.config.run.report and not (self.folder / REPORT).exists()
        batch = self.recipe.batch
        # One that was asked for less than it has seen was stopped: its report would be no end.
        if self.finished and (not lacks_report or self.progress.past(batch)):
            raise FinishedError(f"{self.folder} {self.progress.end(batch)}")
        self.log.resume(checkpoint.step, checkpoint.describe["window"])
        if not self.finished:
            self.say(f"resuming at step {checkpoint.step:,}, image {checkpoint.images:,}")

    def _note(self, record: Record, batches: Batches, news: Sequence[str]) -> None:
        """Write down what a step did, and what data all processes found broken in it."""
        self.position = batches.position - record.ahead
        self._ahead = record.ahead
        self.progress.add(record)
        self.log.add(record, self.progress.seconds, last=self.finished)
        for complaint in self._unnoted:
            self.log.note(record, f"left out from the start: {complaint}")
        self._unnoted = ()
        for complaint in dict.fromkeys(one for one in news if one not in self.unreadable):
            message = f"unreadable, replaced by another image: {complaint}"
            self.say(f"warning: {message}")
            self.log.note(record, message)
            self.unreadable = (*self.unreadable, complaint)
