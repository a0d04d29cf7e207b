"""What looks at a run's model while it trains: sample grids, and a distance if asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sfumato.data.images import Images
from sfumato.processes import Processes
from sfumato.recipes.model import Model
from sfumato.recipes.preview import Preview, Watcher
from sfumato.recipes.progress import Every, Progress
from sfumato.recipes.run_config import RunConfig
from sfumato.recipes.run_log import RunLog
from sfumato.recipes.run_team import Average
from sfumato.training.loop import Record

if TYPE_CHECKING:
    from sfumato.recipes.evaluation.during import Evaluation

_PREVIEWS = 5


class Watching:
    """The watchers of one session of a run; they look in the first of its processes."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        images: Images,
        test: Images | None,
        log: RunLog,
        progress: Progress,
        say: Callable[[str], None],
        processes: Processes,
    ) -> None:
        self._progress, self._say, self._processes = progress, say, processes
        self._measuring: Evaluation | None = None
        self._watchers: list[Watcher] = []
        if not processes.first:
            return
        previews = Every(config.run.sample_every, _PREVIEWS, progress.share)
        self._watchers = [Preview(folder, config.recipe, log, previews, test or images)]
        if config.run.eval_every:
            from sfumato.recipes.evaluation.during import Evaluation

            self._measuring = Evaluation.of_run(
                folder, config.run, images, test, log, progress, say
            )
            self._watchers.append(self._measuring)

    @property
    def best_step(self) -> int | None:
        """The step that measures best so far, if any was measured."""
        return self._measuring.best_step if self._measuring else None

    def forget_after(self, step: int) -> None:
        """Forget what was measured after a step to which the run went back."""
        if self._measuring:
            self._measuring.forget_after(step)

    def measures(self, record: Record) -> bool:
        """Whether this process will measure what a step made, which may take long."""
        if self._measuring is None or record.skipped or record.rolled_back:
            return False
        return self._measuring.every.due(record.step, self._progress.share)

    def after(self, record: Record, model: Callable[[], Model], average: Average) -> None:
        """Look at what a step made, where that is due; a failure is only told.

        All processes call it, as they all bring `average` together where they hold its parts.
        """
        if record.rolled_back:
            self.forget_after(record.step)
        if record.skipped or record.rolled_back:
            return  # Weights of an earlier step: nothing new to see, and nothing that is saved.
        due = [w for w in self._watchers if w.every.due(record.step, self._progress.share)]
        if average.parted and self._processes.from_first(lambda: bool(due)):
            average.gather()
        for watcher in due:
            try:
                watcher.look(model(), record.step)
            except (OSError, ValueError, FloatingPointError, torch.OutOfMemoryError) as error:
                name = type(watcher).__name__.lower()
                self._say(f"warning: no {name} at image {record.images:,}: {error}")
                if isinstance(error, torch.OutOfMemoryError):
                    torch.cuda.empty_cache()
        average.release()
