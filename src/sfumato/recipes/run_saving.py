"""The checkpoints of a run: where it goes on from, when it saves, and what is not worth saving."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfumato.errors import CheckpointError, ConfigError
from sfumato.files import usable
from sfumato.processes import Processes
from sfumato.recipes.run_config import Bookkeeping, RunConfig
from sfumato.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sfumato.training.history import checkpoints, drop_after, latest_checkpoint, prune
from sfumato.training.loop import Record
from sfumato.training.precision import Precision
from sfumato.training.state import TrainState

CONFIG = "config.toml"
_SAVE_SECONDS = 300.0

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Begun:
    """What an interrupted run left: its newest good checkpoint, if any, and its arithmetic."""

    checkpoint: Checkpoint | None = None
    precision: Precision | None = None


def refuse_taken(folder: Path) -> None:
    """Raise ConfigError where a folder already holds a run, or cannot be written."""
    if (folder / CONFIG).exists() or checkpoints(folder):
        raise ConfigError(
            f"{folder} already holds a run: choose another --out, "
            f"or continue it with --resume {folder}"
        )
    usable(folder)


def read_begun(folder: Path, say: Say, processes: Processes, *, parts: bool = False) -> Begun:
    """Read where a run stopped; CheckpointError where there is none, or none that is good.

    `parts`: every process will read only its own of a checkpoint that was written in parts.
    """
    if processes.from_first(lambda: (folder / CONFIG).is_file() and not checkpoints(folder)):
        say(f"{folder} has no checkpoint yet: starting from its beginning")
        chosen = RunConfig.read(folder / CONFIG).arithmetic
        return Begun(precision=None if chosen is None else Precision(**asdict(chosen)))
    latest = processes.from_first(lambda: latest_checkpoint(folder))
    for message in latest.skipped:
        say(message)
    checkpoint = load_checkpoint(latest.path, training=True, parts=parts)
    return Begun(checkpoint, Precision(**checkpoint.describe["precision"]))


class Saver:
    """Saves one session's checkpoints: regularly, after a rollback, and at the end.

    Only states between two steps are saved, and only finite ones. `position`: images handed out by
    the data. Of several `processes` the first saves, or each its parts. `best`: the step that
    measures best so far, if any was measured; it is saved and kept.
    """

    def __init__(
        self,
        folder: Path,
        state: TrainState,
        config: Bookkeeping,
        describe: Callable[[], dict[str, Any]],
        say: Say,
        position: int,
        processes: Processes,
    ) -> None:
        self.folder, self.state, self.config = folder, state, config
        self.describe, self.say, self.processes = describe, say, processes
        self._saved = (state.step, state.retry)
        self._noted = (state.step, state.retry, position)
        self._time = time.monotonic()
        self.best: int | None = None

    def note(self, position: int) -> None:
        """Note that everything, the position too, is as it was after a step."""
        self._noted = (self.state.step, self.state.retry, position)

    def before(self, record: Record, long: bool) -> None:
        """Save before what takes long, of which the first process knows; a failure is only told."""
        if self.config.eval_every:
            self._keep(record, due=long)

    def after(self, record: Record) -> None:
        """Save where it is due; a failure is only told."""
        self._keep(record, due=self._due() or self.best == self.state.step)

    def _keep(self, record: Record, *, due: bool) -> None:
        if not (self.state.sharded or self.processes.first):
            return
        if self.state.sharded:  # all write their parts, when the first says so
            due = self.processes.from_first(lambda: due)
        if not (record.rolled_back or (due and not record.skipped)):
            return
        self._time = time.monotonic()
        try:
            self._save()
        except CheckpointError as error:
            self.say(f"warning: {error}")

    def finish(self) -> None:
        """Save what is not saved yet; CheckpointError where that fails."""
        self._save()

    def _due(self) -> bool:
        if self.config.save_every:
            return self.state.step % self.config.save_every == 0
        return time.monotonic() - self._time > _SAVE_SECONDS

    def _save(self) -> None:
        if not (self.state.sharded or self.processes.first):
            return
        current = (self.state.step, self.state.retry)
        step, retry, position = self._noted
        between_steps = self.state.whole and current == (step, retry)
        if not between_steps or current == self._saved:
            return
        if not self.state.finite:
            self.say(f"warning: the weights of step {self.state.step} are not finite: not saved")
            return
        save_checkpoint(
            self.folder,
            self.state,
            self.describe(),
            position=position,
            processes=self.processes,
        )
        self._saved = current
        if not self.processes.first:
            return
        # What a rollback abandoned would pass for newer.
        drop_after(self.folder, self.state.step)
        prune(self.folder, self.config.keep, () if self.best is None else (self.best,))
