"""Adam, the learning rate over the images seen, and the norm of the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from sfumato.training.sharded import full


class Decay(Protocol):
    """What the learning rate is multiplied by as training goes on."""

    def factor(self, images: float) -> float:
        """Return a factor in [0, 1] after `images` images."""
        ...


@dataclass(frozen=True)
class NoDecay:
    """The peak all the way (DDPM, EDM)."""

    def factor(self, images: float) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class CosineDecay:
    """Half a cosine from 1 down to `final` at `total` images, then `final`."""

    total: float
    final: float = 0.0

    def factor(self, images: float) -> float:
        """Return final + (1 - final) (1 + cos(pi images / total)) / 2."""
        progress = min(images / self.total, 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class LinearDecay:
    """A straight line from 1 down to `final` at `total` images, then `final`."""

    total: float
    final: float = 0.0

    def factor(self, images: float) -> float:
        """Return 1 - (1 - final) images / total."""
        return 1 - (1 - self.final) * min(images / self.total, 1.0)


@dataclass(frozen=True)
class InverseSquareRoot:
    """1 up to `reference` images, then sqrt(reference / images) (EDM2, appendix)."""

    reference: float

    def factor(self, images: float) -> float:
        """Return 1 / sqrt(max(images / reference, 1))."""
        return max(images / self.reference, 1.0) ** -0.5


@dataclass(frozen=True)
class LearningRate:
    """A linear ramp to `peak` over ramp_images images, times a decay.

    The ramp counts the images including the batch at hand, so the first step learns at
    batch / ramp_images of the peak and not at zero.
    """

    peak: float
    ramp_images: float = 0.0
    decay: Decay = field(default_factory=NoDecay)

    def at(self, images: int, batch: int) -> float:
        """Return the rate of the step that takes `batch` images after `images` were seen."""
        ramp = min((images + batch) / self.ramp_images, 1.0) if self.ramp_images > 0 else 1.0
        return self.peak * ramp * self.decay.factor(images)


class OptimizerRule(Protocol):
    """Which optimizer trains a network; its rate is set by the training loop at every step."""

    def over(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return it, over the trainable parameters in the network's order."""
        ...


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015); weight_decay is decoupled (AdamW).

    The fused form: one pass over memory, a fifth of the plain form's time on CPUs, deterministic.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def over(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return torch's Adam over the trainable parameters."""
        return torch.optim.Adam(
            trained(network),
            lr=0.0,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            decoupled_weight_decay=True,
            fused=True,
        )


def trained(network: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters in the network's order."""
    return [p for p in network.parameters() if p.requires_grad]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the 2-norm of all gradients together, a scalar."""
    return norm_of(p.grad for p in parameters if p.grad is not None)


def norm_of(tensors: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm of all tensors together, a scalar; of parts, of what all processes hold."""
    return full(nn.utils.get_total_norm([t.detach() for t in tensors]))


def clip_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, largest: float) -> None:
    """Scale all gradients so that their norm, now `norm`, is at most `largest`."""
    nn.utils.clip_grads_with_norm_(parameters, largest, norm)
