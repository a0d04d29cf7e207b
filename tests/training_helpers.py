"""Small networks, data and plans that the training tests share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.parameterization import edm_preconditioned
from sfumato.training.augmentation import Augment
from sfumato.training.ema import HalfLife
from sfumato.training.noise_sampling import LogNormal
from sfumato.training.objectives import EDM
from sfumato.training.optimizer import LearningRate
from sfumato.training.plan import Plan

CLASSES = 3


class TinyNet(nn.Module):
    """A convolutional network with dropout, class and augmentation labels, and a buffer."""

    def __init__(self, channels: int = 1, width: int = 6, dropout: float = 0.2) -> None:
        super().__init__()
        self.into = nn.Conv2d(channels, width, 3, padding=1)
        self.told = nn.Linear(1 + CLASSES + 9, width)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        if self.training:
            self.seen += len(x)  # type: ignore[operator]
        none = x.new_zeros(len(x), CLASSES + 9)
        classes = none[:, :CLASSES] if class_labels is None else class_labels
        augment = none[:, CLASSES:] if augment_labels is None else augment_labels
        told = self.told(torch.cat([noise_label[:, None], classes, augment], 1))
        return self.out(self.drop(torch.tanh(self.into(x) + told[:, :, None, None])))


@dataclass(frozen=True)
class Batch:
    x: Tensor
    labels: Tensor | None
    condition: Tensor | None = None


class Data(Iterator[Batch]):
    """Endless batches as a pure function of the position."""

    def __init__(self, batch: int = 8, position: int = 0, size: int = 8) -> None:
        self.batch, self.position, self.size = batch, position, size

    def __next__(self) -> Batch:
        generator = torch.Generator().manual_seed(self.position)
        x = torch.rand(self.batch, 1, self.size, self.size, generator=generator) * 2 - 1
        labels = torch.randint(0, CLASSES, (self.batch,), generator=generator)
        self.position += self.batch
        return Batch(x.cumsum(3).clamp(-1, 1), labels)


def plan(**changes: Any) -> Plan:
    base = Plan(
        adapt=edm_preconditioned,
        objective=EDM(0.5),
        noise=LogNormal(),
        learning_rate=LearningRate(3e-3, ramp_images=40),
        averaging=HalfLife(100),
        augment=Augment(0.3),
        classes=CLASSES,
    )
    return replace(base, **changes)


def tiny(seed: int = 0, **options: Any) -> TinyNet:
    torch.manual_seed(seed)
    return TinyNet(**options)
