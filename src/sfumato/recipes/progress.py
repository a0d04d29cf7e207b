"""How far a run is, what is due at which point of it, and a learning rate that ends with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.report.words import duration
from sfumato.training.loop import Record
from sfumato.training.optimizer import Decay


@dataclass
class Progress:
    """How far a run is: by images, or by the clock where it has a time limit.

    `seconds` of training over all sessions, `waited` of them for data.
    """

    total_images: int
    limit_seconds: float
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, record: Record) -> None:
        """Note one step."""
        self.images = record.images
        self.seconds += record.seconds
        self.waited += record.waited

    def describe(self) -> dict[str, float]:
        """Return what a checkpoint says of it, beside its images."""
        return {"seconds": self.seconds, "waited": self.waited}

    def go_on(self, images: int, described: Mapping[str, Any]) -> None:
        """Put it where a checkpoint of so many images says it was."""
        self.images = images
        self.seconds, self.waited = described["seconds"], described.get("waited", 0.0)

    @property
    def share(self) -> float:
        """0 at the start, 1 at the end."""
        clock = self.seconds / self.limit_seconds if self.limit_seconds else 0.0
        return min(max(self.images / self.total_images, clock), 1.0)

    def expected_images(self, rate: float | None = None) -> int:
        """Return an estimate of the images seen at the end, at `rate` images a second from here.

        Without one they go on at the pace of all sessions so far.
        """
        if not self.limit_seconds or not self.share:
            return max(self.total_images, self.images)  # The last batch is a whole one.
        if rate is None:
            return round(self.images / self.share)
        coming = rate * max(self.limit_seconds - self.seconds, 0.0)
        return min(self.images + round(coming), max(self.total_images, self.images))

    @property
    def waited_share(self) -> float:
        """Share of the time that training waited for data, 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0

    def past(self, batch: int) -> bool:
        """Whether more images were seen than a run of so many in all, in such batches, sees."""
        return self.images >= self.total_images + batch

    def end(self, batch: int) -> str:
        """What to say of a run with nothing left to train: why, and what trains it on."""
        if self.past(batch):
            return (
                f"has already seen {self.images:,} images, more than --images "
                f"{self.total_images:,}: to train on, give a larger one"
            )
        if self.images >= self.total_images:
            return f"is finished ({self.images:,} images): to train on, give a larger --images"
        return (
            f"was already trained for {duration(self.seconds)}: nothing to do, for --minutes "
            f"{self.limit_seconds / 60:g} is the total over all sessions; give a larger one"
        )


class Every:
    """When something is due: every `steps` steps or, where that is 0, at `marks` of the progress.

    Marks lie evenly, the last at the end; those before `share`, where a session starts, are past.
    """

    def __init__(self, steps: int, marks: int, share: float) -> None:
        self.steps, self.marks = steps, marks
        self._passed = self._marks_at(share)

    def due(self, step: int, share: float) -> bool:
        """Whether it is due after this step, at this share of the run; ask after every step."""
        if self.steps:
            return step % self.steps == 0
        before, self._passed = self._passed, max(self._passed, self._marks_at(share))
        return self._passed > before

    def _marks_at(self, share: float) -> int:
        return int(share * self.marks + 1e-9)


@dataclass(frozen=True)
class FittedDecay:
    """A decay that ends with the run, whether images or the clock end it."""

    decay: Decay
    progress: Progress

    def factor(self, images: float) -> float:
        """Return the decay's factor at the run's progress (at `images` without a time limit)."""
        if not self.progress.limit_seconds:
            return self.decay.factor(images)
        return self.decay.factor(self.progress.share * self.progress.total_images)
