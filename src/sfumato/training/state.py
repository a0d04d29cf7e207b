"""What training changes, and copies of it to return to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.training.ema import Ema
from sfumato.training.loss_aware import LossAware, LossHistory
from sfumato.training.optimizer import norm_of
from sfumato.training.plan import Plan
from sfumato.training.sharded import is_part, local, moments_of
from sfumato.training.statistics import LevelStatistics


@dataclass
class TrainState:
    """Everything that training changes, apart from the position in the data.

    `images` counts images seen, `retry` rollbacks (it enters the seeds, so that a repeated
    step does not meet the same noise). `whole` is False inside a step: an exception that leaves it
    so has left the parts at different steps, and the state is not worth saving.
    """

    network: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    statistics: LevelStatistics
    step: int = 0
    images: int = 0
    retry: int = 0
    whole: bool = True
    history: LossHistory | None = None
    """Losses by level, where levels are drawn by them."""

    @classmethod
    def start(cls, network: nn.Module, plan: Plan, ema: Ema | None = None) -> TrainState:
        """Return the state before the first step; `ema` where the average is made already."""
        limits, noise = plan.adapt(network).range, plan.noise
        history = None
        if isinstance(noise, LossAware):
            history = LossHistory.empty(len(noise.levels), noise.depth)
        return cls(
            network,
            ema or Ema(network),
            plan.optimizer.over(network),
            LevelStatistics.over(limits, plan.sigma_data),
            history=history,
        )

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.network.parameters()).device

    @property
    def sharded(self) -> bool:
        """Whether this process holds only its part of every weight (FSDP2)."""
        return is_part(next(self.network.parameters()))

    @property
    def finite(self) -> bool:
        """Whether the weights and their average are finite; a finite loss does not tell."""
        weights = (norm_of(net.parameters()) for net in (self.network, self.ema.network))
        return all(math.isfinite(float(norm)) for norm in weights)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A copy of a training state on the host; of a sharded one, of this process's part."""

    network: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    statistics: LevelStatistics
    step: int
    images: int
    history: LossHistory | None

    @classmethod
    def of(cls, state: TrainState) -> Snapshot:
        """Copy a state."""
        return cls(
            _copied(state.network.state_dict()),
            _copied(state.ema.network.state_dict()),
            _copied(moments_of(state.optimizer, state.network))
            if state.sharded
            else _copied_tree(state.optimizer.state_dict()),
            state.statistics,
            state.step,
            state.images,
            state.history,
        )

    def restore(self, state: TrainState) -> None:
        """Put a state back to this one; its retry counter stays."""
        if state.sharded:
            self._restore_parts(state)
        else:
            state.network.load_state_dict(self.network)
            state.ema.network.load_state_dict(self.ema)
            state.optimizer.load_state_dict(_copied_tree(self.optimizer))
        state.statistics, state.step, state.images = self.statistics, self.step, self.images
        state.history = self.history
        state.whole = True

    def _restore_parts(self, state: TrainState) -> None:
        _put_back(state.network.state_dict(), self.network)
        _put_back(state.ema.network.state_dict(), self.ema)
        if self.optimizer:
            _put_back(moments_of(state.optimizer, state.network), self.optimizer)
        else:  # it was taken before the first step
            state.optimizer.state.clear()


def _put_back(tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        local(tensor).copy_(kept[name])


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: local(t).detach().to("cpu", copy=True) for name, t in tensors.items()}


def _copied_tree(tree: Any) -> Any:
    """Copy what an optimizer's state dict holds: tensors in dicts and lists of plain values."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copied_tree(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_copied_tree(value) for value in tree]
    return tree
