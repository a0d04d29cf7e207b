"""How to train, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from sfumato.protocols import Conditional, Denoiser
from sfumato.training.augmentation import Augmentation
from sfumato.training.ema import Averaging, HalfLife
from sfumato.training.noise_sampling import Distribution
from sfumato.training.objectives import Objective
from sfumato.training.optimizer import Adam, LearningRate, OptimizerRule


class Adapted(Denoiser, Conditional, Protocol):
    """A denoiser that can be given conditions, as every function of `parameterization` returns."""


@dataclass(frozen=True)
class Plan:
    """How to train: everything but the network and the data.

    adapt: the network's parameterization, the same for the network and its average.
    classes: 0 ignores labels; otherwise the network is given them one-hot as `class_labels`.
    augment: its labels, if it has any, are given as `augment_labels`; the images that pairs start
    from are moved alike, and given as `image`.
    micro_batch: images per forward pass; larger batches are accumulated. clip_norm: largest norm of
    the gradient. patience: non-finite steps in a row before rolling back to the last good state,
    kept every snapshot_steps steps; after max_rollbacks to the same state training gives up.
    """

    adapt: Callable[[nn.Module], Adapted]
    objective: Objective
    noise: Distribution
    learning_rate: LearningRate
    averaging: Averaging = field(default_factory=HalfLife)
    optimizer: OptimizerRule = field(default_factory=Adam)
    seed: int = 0
    sigma_data: float = 0.5
    antithetic: bool = True
    augment: Augmentation | None = None
    classes: int = 0
    micro_batch: int | None = None
    clip_norm: float | None = None
    patience: int = 5
    snapshot_steps: int = 200
    max_rollbacks: int = 3
