"""The training loop: a generator of records. Bars, logs, samples and checkpoints are the caller's.

What a step does is a pure function of (weights, optimizer, the batch, run seed, step, retry): every
step derives its own generators, so a resumed run needs no state of a random stream.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from sfumato.training.guard import Guard
from sfumato.training.plan import Plan
from sfumato.training.state import TrainState
from sfumato.training.step import ImageBatch, begin, can_overlap, read, update
from sfumato.training.team import Team


@dataclass(frozen=True)
class Record:
    """What one step did; state is `step` steps and `images` images on, after it.

    loss: mean of the objective, in its unit. seconds: the whole step, `waited` of them for data.
    skipped: weights were left alone because loss or gradient was not finite; message says what was
    done about it. rolled_back: the state is an earlier one again, and `step` is its step. ahead:
    images taken from the batches that no step has used yet.
    """

    step: int
    images: int
    batch: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    waited: float
    skipped: bool = False
    rolled_back: bool = False
    message: str | None = None
    ahead: int = 0

    @property
    def images_per_second(self) -> float:
        """Images over seconds of this step."""
        return self.batch / self.seconds if self.seconds > 0 else math.inf

    @property
    def waited_share(self) -> float:
        """Share of the step's time spent waiting for data, 0 to 1."""
        return self.waited / self.seconds if self.seconds > 0 else 0.0


def train(
    state: TrainState,
    batches: Iterator[ImageBatch],
    plan: Plan,
    images: float = math.inf,
    *,
    overlap: bool | None = None,
    team: Team | None = None,
) -> Generator[Record, None, None]:
    """Train until `images` images were seen, changing `state` in place and yielding every step.

    Between two records the state is whole: save it, sample from state.ema, or stop (after an
    exception, state.whole tells). Every record stands for one batch, a skipped step's too; a
    rollback takes back step and images, not batches. Raises DataError for labels that do not fit
    the plan and TrainingError where loss or gradients stay non-finite through several rollbacks.

    overlap: begin the next batch's gradient before a step's loss is read, so that a device never
    waits for the host; the steps are the same (of a network that keeps no statistics of what it
    sees), and gradients between two records are the loop's. By default on CUDA, where the plan
    allows it. ValueError where it is asked for and does not. In a `team` every process is fed its
    rows of each batch, and all yield the same losses.
    """
    # What an earlier loop had begun when it was closed must not be added to.
    state.optimizer.zero_grad(set_to_none=True)
    try:
        yield from _steps(
            state, batches, plan, images, can_overlap(state, plan, overlap), team or Team()
        )
    finally:
        state.optimizer.zero_grad(set_to_none=True)


def _steps(
    state: TrainState,
    batches: Iterator[ImageBatch],
    plan: Plan,
    images: float,
    overlap: bool,
    team: Team,
) -> Iterator[Record]:
    guard = Guard(
        state,
        patience=plan.patience,
        snapshot_steps=plan.snapshot_steps,
        max_rollbacks=plan.max_rollbacks,
    )
    before, waited, begun = time.perf_counter(), 0.0, None
    while state.images < images:
        asked = time.perf_counter()
        batch = next(batches, None) if begun is None else begun.batch
        if batch is None:
            return
        if begun is None:
            waited = time.perf_counter() - asked
            begun = begin(state, batch, plan, team, state.step)
        count = begun.rows.total
        asked = time.perf_counter()
        following = next(batches, None) if overlap and state.images + count < images else None
        waited += time.perf_counter() - asked if overlap else 0.0
        current, begun = begun, None
        state.whole = False
        rate = plan.learning_rate.at(state.images, count)
        if overlap:
            update(state, plan, rate, current, checked=False)
            if following is not None:
                # What the device found is waited for while it works on the next gradient.
                begun = begin(state, following, plan, team, state.step + 1)
        loss, norm = read(state, plan, team, current)
        good = math.isfinite(loss) and math.isfinite(norm)
        if good:
            if not overlap:
                update(state, plan, rate, current, checked=True)
            state.ema.update(state.network, plan.averaging.decay(count, state.images, state.step))
        elif not overlap:
            state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.images += count
        reached = state.step
        message = guard.after(loss, norm)
        if begun is not None and state.step < reached:
            # These gradients belong to weights that are no longer there.
            state.optimizer.zero_grad(set_to_none=True)
            begun = begin(state, begun.batch, plan, team, state.step)
        state.whole = True
        now = time.perf_counter()
        yield Record(
            step=state.step,
            images=state.images,
            batch=count,
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            seconds=now - before,
            waited=waited,
            skipped=not good,
            rolled_back=state.step < reached,
            message=message,
            ahead=0 if begun is None else begun.rows.total,
        )
        before, waited = time.perf_counter(), 0.0
