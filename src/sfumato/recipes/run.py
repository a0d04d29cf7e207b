"""A training run: its folder, log, sample grids, checkpoints and resumption, around the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch

from sfumato.data.images import Images, Subset
from sfumato.data.loader import Batches, one_pass
from sfumato.data.sources import open_images
from sfumato.errors import CheckpointError, ConfigError
from sfumato.networks.base import Network
from sfumato.recipes import build, run_log
from sfumato.recipes.config import Recipe
from sfumato.recipes.environment import pick_device, set_threads
from sfumato.recipes.model import Model
from sfumato.recipes.preview import Preview
from sfumato.recipes.progress import FittedDecay, Progress
from sfumato.recipes.run_config import Bookkeeping, DataConfig, RunConfig
from sfumato.recipes.run_log import RunLog
from sfumato.recipes.toml import to_toml
from sfumato.training.checkpoint import expect_same, load_checkpoint, restore, save_checkpoint
from sfumato.training.history import checkpoints, latest_checkpoint, prune
from sfumato.training.loop import Record
from sfumato.training.loop import train as train_steps
from sfumato.training.precision import Choice, Precision, choose_precision
from sfumato.training.state import TrainState
from sfumato.training.statistics import measure_sigma_data

_SIGMA_DATA_IMAGES = 10_000
_SAVE_SECONDS = 300.0
_PREVIEWS = 5

Say = Callable[[str], None]


def open_data(config: DataConfig, path: str) -> Images:
    """Open images as a run is told to."""
    return open_images(
        path,
        size=config.size,
        fit=config.fit,
        alpha=config.alpha,
        value_range=config.value_range,
        layout=config.layout,
        labels=config.classes,
        channels=config.channels,
    )


def train(
    recipe: Recipe,
    images: Images,
    folder: str | Path,
    *,
    minutes: float = 0.0,
    test: Images | None = None,
    resume: bool = False,
) -> Iterator[Record]:
    """Train on images to a run folder, yielding a record a step; classes are learned if labelled.

    Ends after recipe.images images, or `minutes` minutes if that comes first. Closing the
    iterator saves a checkpoint, from which resume=True goes on. Raises ConfigError where the folder
    is taken.
    """
    data = DataConfig(data=images.source, classes=images.labels is not None)
    config = RunConfig(recipe, data, Bookkeeping(minutes=minutes))
    run = Run.open(config, Path(folder), resume=resume, images=images, test=test)
    yield from run.steps()


class Run:
    """One run folder being trained: open it, iterate `steps`, then write the report."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        images: Images,
        test: Images | None,
        precision: Precision | None,
        say: Say,
    ) -> None:
        self.folder, self.say = folder, say
        self.images_set, self.test_set = images, test
        self.device = pick_device(config.run.device)
        self.progress = Progress(config.recipe.images, config.run.minutes * 60)
        self.interrupted = False
        if config.recipe.process.kind == "edm" and config.recipe.process.sigma_data is None:
            measured = _sigma_data(images, say)
            process = replace(config.recipe.process, sigma_data=measured)
            config = replace(config, recipe=replace(config.recipe, process=process))
        self.config = config
        self.recipe = config.recipe
        self.classes = images.classes if config.data.classes else ()
        network = build.network_of(
            self.recipe, images.format.shape, len(self.classes), device=self.device
        )
        levels = images.format.levels
        plan = build.plan_of(
            self.recipe,
            half_bin=1 / (levels - 1) if levels else 1 / 255,
            classes=len(self.classes),
            decay=FittedDecay(build.decay_of(self.recipe), self.progress),
        )
        self.plan = plan
        self.precision = precision or self._choose(network)
        self.precision.apply(network)
        self.state = TrainState.start(network, plan)
        self.precision.apply(cast(Network, self.state.ema.network))
        self.log = RunLog(folder, config.run.log_every)
        self.position = 0

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
    ) -> Run:
        """Open a new run folder, or an old one to go on with.

        Raises DataError, ConfigError and CheckpointError for what does not fit.
        """
        say = say or (lambda text: None)
        set_threads(config.run.threads)
        if not resume and ((folder / "config.toml").exists() or checkpoints(folder)):
            raise ConfigError(
                f"{folder} already holds a run: choose another --out, "
                f"or continue it with --resume {folder}"
            )
        checkpoint = None
        precision = None
        if resume and (folder / "config.toml").is_file() and not checkpoints(folder):
            say(f"{folder} has no checkpoint yet: starting from its beginning")
            run_log.path_of(folder).unlink(missing_ok=True)
        elif resume:
            latest = latest_checkpoint(folder)
            for message in latest.skipped:
                say(message)
            checkpoint = load_checkpoint(latest.path, training=True)
            precision = Precision(**checkpoint.describe["precision"])
        images = images or open_data(config.data, config.data.data)
        if test is None and config.data.test:
            test = open_data(config.data, config.data.test)
        _same_format(images, test)
        say(f"data {images.describe()}")
        run = cls(config, folder, images, test, precision, say)
        if checkpoint is not None:
            expect_same(checkpoint, run.describe()["data"], "data")
            restore(run.state, checkpoint)
            run.position = checkpoint.position
            run.progress.images = checkpoint.images
            run.progress.seconds = checkpoint.describe["seconds"]
            if run.progress.share >= 1:
                raise ConfigError(
                    f"{folder} is finished ({checkpoint.images:,} images): to train on, give a "
                    f"larger --images or --minutes"
                )
            run.log.resume(checkpoint.step, checkpoint.describe["window"])
            say(f"resuming at step {checkpoint.step:,}, image {checkpoint.images:,}")
        else:
            folder.mkdir(parents=True, exist_ok=True)
        run.config.write(folder / "config.toml")
        return run

    @property
    def images(self) -> int:
        """Images seen."""
        return self.state.images

    @property
    def seconds(self) -> float:
        """Seconds spent training, over all sessions."""
        return self.progress.seconds

    def interrupt(self) -> None:
        """Stop after the step at hand, keeping a checkpoint."""
        self.interrupted = True

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint says about itself: enough to sample and to resume."""
        return {
            "recipe": to_toml(self.recipe),
            "data": {
                "format": self.images_set.format.to_toml(),
                "classes": list(self.classes),
                "count": len(self.images_set),
                "fingerprint": self.images_set.fingerprint,
            },
            "precision": asdict(self.precision),
            "seconds": self.progress.seconds,
            "window": self.log.window,
        }

    def model(self) -> Model:
        """Return the model as it is now, with the averaged weights."""
        return Model(
            self.recipe,
            cast(Network, self.state.ema.network),
            self.images_set.format,
            self.classes,
            self.folder / "checkpoints" / f"{self.state.step:08d}",
            self.state.images,
            precision=str(self.precision),
        )

    def steps(self) -> Iterator[Record]:
        """Train to the end, yielding every step; closing the iterator saves a checkpoint."""
        flip = self.recipe.flip and not self.recipe.augment
        batches = Batches(
            self.images_set,
            self.recipe.batch,
            self.recipe.seed,
            position=self.position,
            flip=flip,
            labels=bool(self.classes),
        )
        preview = Preview(self.folder, self.recipe, every=self._preview_every())
        saved_at, saved_step = time.monotonic(), self.state.step
        with batches, self.log.opened(tensorboard=self.config.run.tensorboard):
            try:
                for record in train_steps(self.state, batches, self.plan, self.recipe.images):
                    self.position = batches.position
                    self.progress.images = self.state.images
                    self.progress.seconds += record.seconds
                    self.log.add(record, self.progress.seconds)
                    if preview.due(self.progress.share):
                        self.log.picture(preview.draw(self.model(), self.state.images), record.step)
                    yield record
                    if self._save_due(saved_at):
                        saved_at = time.monotonic()
                        if self._save(final=False):
                            saved_step = self.state.step
                    if self.interrupted or self.progress.share >= 1:
                        break
            finally:
                if self.state.step > saved_step:
                    self._save(final=True)

    def write_report(self, say: Say | None = None) -> Path:
        """Draw samples, measure them, and write report.html; return its path."""
        from sfumato.recipes.page import write_page

        return write_page(self, say or self.say)

    def _save(self, *, final: bool) -> bool:
        """Save a checkpoint; where that fails, only the final one is an error."""
        try:
            save_checkpoint(self.folder, self.state, self.describe(), position=self.position)
        except CheckpointError as error:
            if final:
                raise
            self.say(f"warning: {error}")
            return False
        prune(self.folder, self.config.run.keep)
        return True

    def _save_due(self, saved_at: float) -> bool:
        every = self.config.run.save_every
        if every:
            return self.state.step % every == 0
        return time.monotonic() - saved_at > _SAVE_SECONDS

    def _preview_every(self) -> float:
        every = self.config.run.sample_every
        return every * self.recipe.batch / self.recipe.images if every else 1 / _PREVIEWS

    def _choose(self, network: Network) -> Precision:
        if self.recipe.precision != "auto":
            return Precision(self.recipe.precision, channels_last=True)
        shape = (min(self.recipe.batch, 32), *self.images_set.format.shape)
        told = {"class_labels": torch.zeros(1, len(self.classes))} if self.classes else None
        choice: Choice = choose_precision(network, shape, conditions=told)
        self.say(f"arithmetic: {choice.sentence}")
        return choice.precision


def _sigma_data(images: Images, say: Say) -> float:
    step = -(-len(images) // _SIGMA_DATA_IMAGES)
    chosen = images if step == 1 else Subset(images, range(0, len(images), step))
    value = round(measure_sigma_data(batch.x for batch in one_pass(chosen, 256)), 4)
    of = "" if step == 1 else f" of {len(chosen):,} images"
    say(f"sigma_data {value:g}: the standard deviation{of} in [-1, 1]")
    return value


def _same_format(images: Images, test: Images | None) -> None:
    if test is not None and test.format != images.format:
        raise ConfigError(
            f"the test images are {test.format.describe()}, "
            f"the training images {images.format.describe()}: they must agree"
        )
