"""What to do about losses that are not finite: skip, roll back, give up, and say so."""

from __future__ import annotations

import math

from sfumato.errors import SfumatoError
from sfumato.training.state import Snapshot, TrainState


class TrainingError(SfumatoError):
    """Training that cannot go on."""


class Guard:
    """Keeps the last good state and returns to it after `patience` bad steps in a row.

    A good state is kept every snapshot_steps steps. After max_rollbacks to the same state it is
    restored once more and TrainingError raised: what a caller saves then is good.
    """

    def __init__(
        self, state: TrainState, *, patience: int, snapshot_steps: int, max_rollbacks: int
    ) -> None:
        self.state, self.patience = state, patience
        self.snapshot_steps, self.max_rollbacks = snapshot_steps, max_rollbacks
        self.bad = self.rollbacks = 0
        self.snapshot = Snapshot.of(state)

    def after(self, loss: float, norm: float) -> str | None:
        """Note a step's loss and gradient norm; return what is to be said about it, or None."""
        if math.isfinite(loss) and math.isfinite(norm):
            self.bad = 0
            self._keep()
            return None
        self.bad += 1
        what = f"loss {loss:.4g}" if not math.isfinite(loss) else f"gradient norm {norm:.4g}"
        said = f"step {self.state.step}: {what}, weights left alone ({self.bad} in a row)"
        return said if self.bad < self.patience else f"{said}; {self._roll_back()}"

    def _keep(self) -> None:
        if self.state.step < self.snapshot.step + self.snapshot_steps:
            return
        # A finite loss says nothing about the update that followed it.
        if self.state.finite:
            self.snapshot, self.rollbacks = Snapshot.of(self.state), 0

    def _roll_back(self) -> str:
        state, failed = self.state, self.state.step
        self.snapshot.restore(state)
        state.retry += 1
        self.bad = 0
        self.rollbacks += 1
        if self.rollbacks > self.max_rollbacks:
            raise TrainingError(
                f"step {failed}: loss or gradients are not finite, and rolling back to step "
                f"{self.snapshot.step} did not help {self.max_rollbacks} times; use a lower "
                f"learning rate, clip gradients, or train in float32"
            )
        return f"rolled back from step {failed} to step {state.step}, going on with other noise"
