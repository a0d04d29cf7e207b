"""How far a run is, and a learning rate that ends with it."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.training.optimizer import Decay


@dataclass
class Progress:
    """How far a run is: by images, or by the clock where it has a time limit."""

    total_images: int
    limit_seconds: float
    images: int = 0
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """0 at the start, 1 at the end."""
        clock = self.seconds / self.limit_seconds if self.limit_seconds else 0.0
        return min(max(self.images / self.total_images, clock), 1.0)

    @property
    def expected_images(self) -> int:
        """Estimate of the images seen at the end."""
        return round(self.images / self.share) if self.share else self.total_images


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
