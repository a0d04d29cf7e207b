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
from sfumato.randomness import derive_seed
from sfumato.training.guard import Guard
from sfumato.training.loss_aware import LossAware, of_all_processes
from sfumato.training.noise_sampling import draw
from sfumato.training.optimizer import clip_gradients, gradient_norm
from sfumato.training.plan import Plan
from sfumato.training.state import TrainState


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
    done about it. rolled_back: the state is an earlier one again, and `step` is its step.
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

    @property
    def images_per_second(self) -> float:
        """Images over seconds of this step."""
        return self.batch / self.seconds if self.seconds > 0 else math.inf

    @property
    def waited_share(self) -> float:
        """Share of the step's time spent waiting for data, 0 to 1."""
        return self.waited / self.seconds if self.seconds > 0 else 0.0


def train(
    state: TrainState, batches: Iterator[ImageBatch], plan: Plan, images: float = math.inf
) -> Iterator[Record]:
    """Train until `images` images were seen, changing `state` in place and yielding every step.

    Between two records the state is whole: save it, sample from state.ema, or stop (after an
    exception, state.whole tells). Every record stands for one batch, a skipped step's too; a
    rollback takes back step and images, not batches. Raises DataError for labels that do not fit
    the plan and TrainingError where loss or gradients stay non-finite through several rollbacks.
    """
    guard = Guard(
        state,
        patience=plan.patience,
        snapshot_steps=plan.snapshot_steps,
        max_rollbacks=plan.max_rollbacks,
    )
    before = time.perf_counter()
    while state.images < images:
        batch = next(batches, None)
        if batch is None:
            return
        arrived, count = time.perf_counter(), len(batch.x)
        state.whole = False
        rate = plan.learning_rate.at(state.images, count)
        loss, norm = _gradients(state, batch, plan)
        good = math.isfinite(loss) and math.isfinite(norm)
        if good:
            _update(state, plan, rate, norm, count)
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.images += count
        reached = state.step
        message = guard.after(loss, norm)
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
            waited=arrived - before,
            skipped=not good,
            rolled_back=state.step < reached,
            message=message,
        )
        before = time.perf_counter()


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


def _update(state: TrainState, plan: Plan, rate: float, norm: float, count: int) -> None:
    if plan.clip_norm is not None and norm > plan.clip_norm:
        clip_gradients(state.network.parameters(), torch.tensor(norm), plan.clip_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.ema.update(state.network, plan.averaging.decay(count, state.images, state.step))


def _gradients(state: TrainState, batch: ImageBatch, plan: Plan) -> tuple[float, float]:
    """Leave the gradient of the batch's mean loss in the parameters; return loss and norm."""
    if not state.network.training:
        state.network.train()
    device, count = state.device, len(batch.x)
    host = torch.Generator().manual_seed(_seed(state, plan, "levels"))
    there = torch.Generator(device).manual_seed(_seed(state, plan, "noise"))

    x0 = batch.x.to(device, non_blocking=True)
    condition: dict[str, Tensor] = {}
    if plan.classes:
        condition["class_labels"] = one_hot(batch.labels, plan.classes).to(x0)
    channels = x0.shape[1]
    if batch.condition is not None:  # A pair moves as one image.
        x0 = torch.cat([x0, batch.condition.to(device, non_blocking=True)], 1)
    if plan.augment is not None:
        x0, told = plan.augment(x0, host)
        if told is not None:
            condition["augment_labels"] = told.to(x0)
    if batch.condition is not None:
        x0, condition["image"] = x0[:, :channels], x0[:, channels:]
    if isinstance(plan.noise, LossAware) and state.history is not None:
        sigma, importance = plan.noise.draw(state.history, count, host)
    else:
        sigma, importance = draw(plan.noise, count, host, antithetic=plan.antithetic)
    noise = torch.randn(x0.shape, dtype=x0.dtype, device=device, generator=there)

    total = torch.zeros((), device=device)
    errors: list[Tensor] = []
    each: list[Tensor] = []
    size = plan.micro_batch or count
    with _seeded(_seed(state, plan, "dropout"), device):
        for first in range(0, count, size):
            part = slice(first, first + size)
            denoise = plan.adapt(state.network)
            if condition:
                denoise = denoise.given(**{name: c[part] for name, c in condition.items()})
            losses = plan.objective.loss(denoise, x0[part], sigma[part], noise[part])
            loss = (importance[part].to(losses.value) * losses.value).sum() / count
            loss.backward()
            total = total + loss.detach()
            errors.append(losses.error)
            each.append(losses.value.detach())
    norm = gradient_norm(state.network.parameters())
    # One transfer, so that a device is waited for once a step.
    values = torch.cat([total.reshape(1), norm.reshape(1), *errors, *each]).tolist()
    loss_value, norm_value, error, value = (
        values[0],
        values[1],
        values[2 : 2 + count],
        values[-count:],
    )
    state.statistics = state.statistics.seen(sigma, torch.tensor(error, dtype=sigma.dtype))
    if isinstance(plan.noise, LossAware) and state.history is not None:
        found = of_all_processes(plan.noise.index(sigma), torch.tensor(value, dtype=sigma.dtype))
        state.history = state.history.seen(*found)
    return loss_value, norm_value


def _seed(state: TrainState, plan: Plan, purpose: str) -> int:
    return derive_seed(plan.seed, "train", purpose, state.step, state.retry)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Generator[None]:
    """Seed torch's default generators, which dropout draws from, and put them back afterwards."""
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices, device_type=kind):
        torch.manual_seed(seed)
        yield
