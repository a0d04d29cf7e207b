"""A training state as tensors by name, as checkpoints hold them, and back into a state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import CheckpointError
from sfumato.training.loss_aware import LossHistory
from sfumato.training.sharded import fill, moments_of, start_moments
from sfumato.training.state import TrainState
from sfumato.training.statistics import LevelStatistics

SMALL = ("statistics.", "history.")
"""How names begin that every process reads whole: the losses by level."""
_LATER = "direct."


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into a network; CheckpointError where names or shapes differ, naming them."""
    own = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    # Networks of pairs had no such map at first, which is the same as one of zeros.
    tensors = {
        **{n: torch.zeros(s) for n, s in own.items() if n.startswith(_LATER) and n not in tensors},
        **tensors,
    }
    saved = {name: tuple(t.shape) for name, t in tensors.items()}
    if own == saved:
        for name, tensor in network.state_dict().items():
            fill(tensor, tensors[name])
        return
    wrong = [n for n in own if saved.get(n) != own[n]] + [n for n in saved if n not in own]
    name = wrong[0]
    raise CheckpointError(
        f"{path} belongs to another network: {len(wrong)} tensors differ, for example '{name}' is "
        f"{saved.get(name, 'absent')} in the checkpoint and {own.get(name, 'absent')} here; "
        f"build the network from the checkpoint's own description"
    )


def training_tensors(state: TrainState) -> dict[str, Tensor]:
    """What only training needs: the optimizer's state by names, the losses by level."""
    moments = moments_of(state.optimizer, state.network)
    rest = {f"optimizer.{name}": tensor for name, tensor in moments.items()}
    rest["statistics.borders"] = state.statistics.borders
    rest["statistics.sums"] = state.statistics.sums
    if state.history is not None:
        rest["history.values"] = state.history.values
        rest["history.counts"] = state.history.counts
    return rest


def all_tensors(state: TrainState) -> dict[str, Tensor]:
    """Everything, parts where it is sharded, under one set of names."""
    network = {f"network.{name}": t for name, t in state.network.state_dict().items()}
    ema = {f"ema.{name}": t for name, t in state.ema.network.state_dict().items()}
    return {**network, **ema, **training_tensors(state)}


def statistics_of(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> LevelStatistics:
    """The losses by level among a checkpoint's tensors; the rest of them is in its description."""
    return LevelStatistics(
        tensors["statistics.borders"],
        tensors["statistics.sums"],
        about["sigma_data"],
        about["memory_images"],
    )


def history_of(tensors: Mapping[str, Tensor]) -> LossHistory | None:
    """The losses that levels are drawn by, where a checkpoint has them."""
    if "history.values" not in tensors:
        return None
    return LossHistory(tensors["history.values"], tensors["history.counts"])


def load_optimizer(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    """Put the optimizer's state back, from whole tensors even where it is sharded."""
    if state.sharded:
        if not tensors:  # Nothing was learned yet.
            return
        start_moments(state.optimizer)
        for name, moment in moments_of(state.optimizer, state.network).items():
            fill(moment, tensors[name])
        return
    place = {name: index for index, name in enumerate(_trained(state.network))}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, what = key.rsplit(".", 1)
        moments.setdefault(place[name], {})[what] = tensor
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return what begins with a prefix, without it."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _trained(network: nn.Module) -> list[str]:
    """Names of the parameters in the optimizer's order."""
    return [name for name, p in network.named_parameters() if p.requires_grad]
