"""Where tensors live: from host to device without waiting for the device."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def to_like(values: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return values on the device of `like`, in its dtype or the given one.

    Small tables of the host, such as noise levels, come to a GPU in the order of its work, whose
    end the host does not wait for.
    """
    there = like.device
    return values.to(device=there, dtype=dtype or like.dtype, non_blocking=there.type == "cuda")


def fork_rng_of(device: torch.device | str) -> AbstractContextManager[None]:
    """Return a context after which torch's default generators, the device's too, are as before."""
    there = torch.device(device)
    if there.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[there], device_type=there.type)
