"""The training loop: a generator of records. Bars, logs, samples and checkpoints are the caller's.

What a step does is a pure function of (weights, optimizer, the batch, run seed, step, retry): every
step derives its own generators, so a resumed run needs no state of a random stream.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import DataError
from sfumato.placement import to_like
from sfumato.randomness import derive_seed
from sfumato.training.guard import Guard
from sfumato.training.loss_aware import LossAware
from sfumato.training.noise_sampling import draw
from sfumato.training.optimizer import clip_gradients, gradient_norm
from sfumato.training.plan import Plan
from sfumato.training.state import TrainState
from sfumato.training.team import Rows, Team


class ImageBatch(Protocol):
    """What the loop is fed: images [B, C, H, W] in [-1, 1], and what they are learned from."""

    @property
    def x(self) -> Tensor:
        """Images, float32."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """Class indices [B], int64, or None."""
        ...

    @property
    def condition(self) -> Tensor | None:
        """Of pairs the images to start from [B, K, H, W], float32 in [-1, 1], or None."""
        ...


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
            state, batches, plan, images, _overlap(state, plan, overlap), team or Team()
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
            begun = _begin(state, batch, plan, team, state.step)
        count = begun.rows.total
        asked = time.perf_counter()
        following = next(batches, None) if overlap and state.images + count < images else None
        waited += time.perf_counter() - asked if overlap else 0.0
        current, begun = begun, None
        state.whole = False
        rate = plan.learning_rate.at(state.images, count)
        if overlap:
            _update(state, plan, rate, current, checked=False)
            if following is not None:
                # What the device found is waited for while it works on the next gradient.
                begun = _begin(state, following, plan, team, state.step + 1)
        loss, norm = _read(state, plan, team, current)
        good = math.isfinite(loss) and math.isfinite(norm)
        if good:
            if not overlap:
                _update(state, plan, rate, current, checked=True)
            state.ema.update(state.network, plan.averaging.decay(count, state.images, state.step))
        if not overlap:
            state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.images += count
        reached = state.step
        message = guard.after(loss, norm)
        if begun is not None and state.step < reached:
            # These gradients belong to weights that are no longer there.
            state.optimizer.zero_grad(set_to_none=True)
            begun = _begin(state, begun.batch, plan, team, state.step)
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


def one_hot(labels: Tensor | None, classes: int) -> Tensor:
    """Return class indices [B] as [B, classes] float32.

    Raises DataError where there are no labels or one is not below `classes`.
    """
    if labels is None:
        raise DataError(
            f"training with {classes} classes needs labels, but the images have none: "
            f"point --data at a folder with sub-folders, or train without classes"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"labels must be 0 to {classes - 1} for {classes} classes, "
            f"got {low if low < 0 else high}; "
            f"is the data another than the network was made for?"
        )
    return F.one_hot(labels.long(), classes).float()


@dataclass(frozen=True, eq=False)
class _Begun:
    """A batch whose gradient is on its way: what the device will have found, and at what levels.

    Loss and norm, and the levels, are those of the whole batch.
    """

    batch: ImageBatch
    rows: Rows
    sigma: Tensor
    total: Tensor
    norm: Tensor
    found: Tensor
    """Loss, norm, errors [B] and losses [B], on the host once `ready`."""
    ready: torch.cuda.Event | None = None


def _overlap(state: TrainState, plan: Plan, wanted: bool | None) -> bool:
    """Whether the host runs ahead of the device, where the device can leave out a bad update."""
    adam = isinstance(state.optimizer, torch.optim.Adam) and state.optimizer.defaults["fused"]
    possible = adam and not isinstance(plan.noise, LossAware)
    if wanted and not possible:
        raise ValueError(
            "overlap needs a fused optimizer, such as Adam, and noise levels that do not depend on "
            "the losses before: leave overlap out"
        )
    return possible and (state.device.type == "cuda" if wanted is None else wanted)


def _update(state: TrainState, plan: Plan, rate: float, begun: _Begun, *, checked: bool) -> None:
    """Take a step along the gradient; unless that is `checked`, none where it is not finite."""
    optimizer = state.optimizer
    if plan.clip_norm is not None:
        clip_gradients(state.network.parameters(), begun.norm, plan.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    if not checked:
        # torch's fused optimizers ask this of the device, as they do for its GradScaler.
        bad = begun.total + begun.norm
        optimizer.found_inf = (~bad.isfinite()).float()  # pyright: ignore
    optimizer.step()
    if not checked:
        del optimizer.found_inf  # pyright: ignore
    optimizer.zero_grad(set_to_none=True)


def _begin(state: TrainState, batch: ImageBatch, plan: Plan, team: Team, step: int) -> _Begun:
    """Leave the gradient of the batch's mean loss in the parameters, without waiting for it."""
    if not state.network.training:
        state.network.train()
    device, rows = state.device, team.rows(len(batch.x))
    host = torch.Generator().manual_seed(_seed(state, plan, "levels", step))
    there = torch.Generator(device).manual_seed(_seed(state, plan, "noise", step))

    x0 = batch.x.to(device, non_blocking=True)
    condition: dict[str, Tensor] = {}
    if plan.classes:
        condition["class_labels"] = to_like(one_hot(batch.labels, plan.classes), x0)
    channels = x0.shape[1]
    if batch.condition is not None:  # A pair moves as one image.
        x0 = torch.cat([x0, batch.condition.to(device, non_blocking=True)], 1)
    if plan.augment is not None:
        x0, told = plan.augment(x0, host) if rows.whole else plan.augment(x0, host, rows)
        if told is not None:
            condition["augment_labels"] = to_like(told, x0)
    if batch.condition is not None:
        x0, condition["image"] = x0[:, :channels], x0[:, channels:]
    if isinstance(plan.noise, LossAware) and state.history is not None:
        sigma, importance = plan.noise.draw(state.history, rows.total, host)
    else:
        sigma, importance = draw(plan.noise, rows.total, host, antithetic=plan.antithetic)
    shape = (rows.total, *x0.shape[1:])
    noise = rows.cut(torch.randn(shape, dtype=x0.dtype, device=device, generator=there))
    levels, sigma, importance = sigma, rows.cut(sigma), rows.cut(importance)

    total = torch.zeros((), device=device)
    errors: list[Tensor] = []
    each: list[Tensor] = []
    size = plan.micro_batch or rows.count
    module, divisor = team.module(state.network), team.divisor(rows)
    with _seeded(_seed(state, plan, "dropout", step, team.rank), device):
        for first in range(0, rows.count, size):
            part = slice(first, first + size)
            denoise = plan.adapt(module)
            if condition:
                denoise = denoise.given(**{name: c[part] for name, c in condition.items()})
            with team.passing(last=first + size >= rows.count):
                losses = plan.objective.loss(denoise, x0[part], sigma[part], noise[part])
                weighted = to_like(importance[part], losses.value) * losses.value
                loss = weighted.sum() / divisor
                loss.backward()
            total = total + loss.detach()
            errors.append(losses.error)
            each.append(losses.value.detach())
    norm, total = gradient_norm(state.network.parameters()), team.mean(total)
    found = torch.cat([total.reshape(1), norm.reshape(1), *errors, *each])
    if device.type != "cuda":
        return _Begun(batch, rows, levels, total, norm, found)
    told = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
    told.copy_(found, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(device))
    return _Begun(batch, rows, levels, total, norm, told, ready)


def _read(state: TrainState, plan: Plan, team: Team, begun: _Begun) -> tuple[float, float]:
    """Wait for what the device found, note it, and return loss and norm."""
    if begun.ready is not None:
        begun.ready.synchronize()
    sigma, count = begun.sigma, begun.rows.count
    values = begun.found.tolist()
    mine = torch.tensor([values[2 : 2 + count], values[-count:]], dtype=sigma.dtype)
    error, value = team.joint(mine)
    state.statistics = state.statistics.seen(sigma, error)
    if isinstance(plan.noise, LossAware) and state.history is not None:
        state.history = state.history.seen(plan.noise.index(sigma), value)
    return values[0], values[1]


def _seed(state: TrainState, plan: Plan, purpose: str, step: int, rank: int = 0) -> int:
    others = (rank,) if rank else ()
    return derive_seed(plan.seed, "train", purpose, step, state.retry, *others)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Generator[None]:
    """Seed torch's default generators, which dropout draws from, and put them back afterwards."""
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices, device_type=kind):
        torch.manual_seed(seed)
        yield
