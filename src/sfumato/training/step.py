"""One step of training in pieces: begin a batch's gradient, follow it, read what was found.

Between the first and the last a device may work on, and the host elsewhere. `loop` puts them in
order.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import DataError
from sfumato.placement import fork_rng_of, to_like
from sfumato.randomness import derive_seed
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


def one_hot(labels: Tensor | None, classes: int, like: Tensor) -> Tensor:
    """Return class indices [B] on the host as [B, classes], with the device and dtype of `like`.

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
    return F.one_hot(to_like(labels, like, torch.int64), classes).to(like.dtype)


@dataclass(frozen=True, eq=False)
class Begun:
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


def can_overlap(state: TrainState, plan: Plan, wanted: bool | None) -> bool:
    """Whether the host runs ahead of the device, where the device can leave out a bad update."""
    adam = isinstance(state.optimizer, torch.optim.Adam) and state.optimizer.defaults["fused"]
    possible = adam and not isinstance(plan.noise, LossAware)
    if wanted and not possible:
        raise ValueError(
            "overlap needs a fused optimizer, such as Adam, and noise levels that do not depend on "
            "the losses before: leave overlap out"
        )
    return possible and (state.device.type == "cuda" if wanted is None else wanted)


def update(state: TrainState, plan: Plan, rate: float, begun: Begun, *, checked: bool) -> None:
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


def begin(state: TrainState, batch: ImageBatch, plan: Plan, team: Team, step: int) -> Begun:
    """Leave the gradient of the batch's mean loss in the parameters, without waiting for it."""
    if not state.network.training:
        state.network.train()
    device, rows = state.device, team.rows(len(batch.x))
    host = torch.Generator().manual_seed(_seed(state, plan, "levels", step))
    there = torch.Generator(device).manual_seed(_seed(state, plan, "noise", step))

    x0 = batch.x.to(device, non_blocking=True)
    condition: dict[str, Tensor] = {}
    if plan.classes:
        condition["class_labels"] = one_hot(batch.labels, plan.classes, x0)
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
        return Begun(batch, rows, levels, total, norm, found)
    told = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
    told.copy_(found, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(device))
    return Begun(batch, rows, levels, total, norm, told, ready)


def read(state: TrainState, plan: Plan, team: Team, begun: Begun) -> tuple[float, float]:
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
    with fork_rng_of(device):
        torch.manual_seed(seed)
        yield
