"""Tensors of which each process holds a part, as FSDP2 leaves them; ordinary ones pass through.

A part is a DTensor. Importing this imports nothing of torch.distributed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is only this process's part of one."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """Return the memory of this process: its part, or the tensor itself."""
    parted: Any = tensor
    return parted.to_local() if is_part(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """Return all of a tensor; of parts all processes must ask at the same time."""
    parted: Any = tensor
    return parted.full_tensor() if is_part(tensor) else tensor


@torch.no_grad()
def fill(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be this process's part; no process waits for others."""
    if not is_part(target):
        target.copy_(whole)
        return
    from torch.distributed.tensor import distribute_tensor

    parted: Any = target
    place = local(target)
    given: Any = distribute_tensor(
        whole.to(place), parted.device_mesh, parted.placements, src_data_rank=None
    )
    place.copy_(given.to_local())


def moments_of(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Return an optimizer's state by names: <parameter>.<what>, as far as there is any yet."""
    return {
        f"{name}.{what}": tensor
        for name, parameter in network.named_parameters()
        if parameter in optimizer.state
        for what, tensor in optimizer.state[parameter].items()
    }


def start_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer make its state, as zeros, without moving a weight."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
