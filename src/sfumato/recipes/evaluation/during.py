"""Evaluation while a run trains: one number every so many steps, from the same seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfumato.data.images import Images
from sfumato.data.pixels import to_model
from sfumato.metrics.features import extract
from sfumato.metrics.frechet import FeatureStatistics, frechet_distance
from sfumato.processes import Processes
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.extractors import extractor_of, on_device
from sfumato.recipes.evaluation.sets import Stored
from sfumato.recipes.evaluation.table import FeatureTable
from sfumato.recipes.model import Model
from sfumato.recipes.paired import answered
from sfumato.recipes.progress import Every, Progress
from sfumato.recipes.run_config import Bookkeeping
from sfumato.recipes.run_log import RunLog, read
from sfumato.training.history import checkpoints

_REFERENCE = 10_000


class Evaluation:
    """Measures the averaged weights every so many steps, and remembers the best.

    A Watcher. `best_step` is the step of the smallest Fréchet distance so far. A FILE.pt or
    FILE.onnx is fed images at their own size, in [-1, 1]: what else it needs it must do itself.
    """

    def __init__(
        self,
        folder: Path,
        real: Images,
        name: str,
        *,
        n: int,
        features: str,
        every: Every,
        log: RunLog,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        """`real` images, called `name`, are the reference; their features are kept in the run.

        A model that starts from images starts from theirs.
        Raises what `extractor_of` raises, so that missing weights are found before training.
        """
        self.every, self.n = every, n
        self.best_step: int | None = None
        self.seconds = 0.0
        self._measured: list[tuple[float, int]] = []
        self._log, self._progress, self._say = log, progress, say
        real = real.representative()
        self._images, self._real = real, Stored(real, name, _REFERENCE)
        self._extractor = extractor_of(features, real=self._real)
        self._folder, self._cache = folder, Cache(folder / "evaluation" / "cache")
        self._reference: FeatureStatistics | None = None

    @classmethod
    def of_run(
        cls,
        folder: Path,
        run: Bookkeeping,
        images: Images,
        test: Images | None,
        log: RunLog,
        progress: Progress,
        say: Callable[[str], None],
    ) -> Evaluation:
        """Return what a run's options ask for, going on where its log stops."""
        made = cls(
            folder,
            images if test is None else test,
            "training images" if test is None else "test images",
            n=run.eval_n,
            features=run.eval_features,
            every=Every(run.eval_every, 0, 0.0),
            log=log,
            progress=progress,
            say=say,
        )
        for line in read(log.path):
            if "frechet" in line:
                made._remember(line)
        return made

    def look(self, model: Model, step: int) -> None:
        """Draw n images, seeds 0 to n - 1, and write down their Fréchet distance."""
        start = time.perf_counter()
        if self._reference is None:
            self._say(f"features of {len(self._real):,} {self._real.name}, once")
            self._extractor = on_device(self._extractor, model.device)
            table = FeatureTable(self._real, self._extractor, self._cache)
            table.prepare(Processes(), lambda done: None)
            self._reference = table.statistics()
        raw = answered(model, self._images, range(self.n))
        drawn = (to_model(images, model.format) for images in raw)
        distance = frechet_distance(extract(drawn, self._extractor), self._reference)
        line = {
            "step": step,
            "images": model.images_seen,
            "frechet": distance,
            "frechet_n": self.n,
            "frechet_features": f"{self._extractor.name} ({self._extractor.fingerprint})",
            "frechet_against": self._real.name,
            "evaluation_seconds": time.perf_counter() - start,
        }
        self._remember(line)
        self._log.measured(line)
        best = ", the best so far" if self.best_step == step else ""
        self._say(
            f"step {step:,}: Fréchet distance {distance:.1f} of {self.n:,} samples to "
            f"{self._real.name}{best}; measuring takes {100 * self.share:.0f} % of the time"
        )

    def forget_after(self, step: int) -> None:
        """Forget what was measured after `step`, where a rollback took the run back to.

        Of the rest only what still has its checkpoint can be the best.
        """
        kept = {step, *(int(path.name) for path in checkpoints(self._folder))}
        self._measured = [(d, at) for d, at in self._measured if at <= step and at in kept]
        self._choose()

    @property
    def share(self) -> float:
        """Share of the run's time spent measuring, 0 to 1."""
        total = self.seconds + self._progress.seconds
        return self.seconds / total if total else 0.0

    def _remember(self, line: Mapping[str, Any]) -> None:
        self.seconds += line["evaluation_seconds"]
        self._measured.append((line["frechet"], line["step"]))
        self._choose()

    def _choose(self) -> None:
        self.best_step = min(self._measured)[1] if self._measured else None
