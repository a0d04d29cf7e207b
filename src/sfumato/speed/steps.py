"""The calls that are timed: a network asked once, as in sampling, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


def inputs(
    shape: Sequence[int],
    batch: int,
    device: torch.device | str = "cpu",
    conditions: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return random images [batch, *shape], noise labels [batch] and conditions [batch, ...]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *shape, generator=generator).to(device)
    told = {
        name: torch.randn(batch, *form, generator=generator).to(device)
        for name, form in (conditions or {}).items()
    }
    return x, torch.linspace(-1, 1, batch).to(device), told


def forward_call(
    network: nn.Module, x: Tensor, label: Tensor, told: Mapping[str, Tensor] | None = None
) -> Callable[[], Tensor]:
    """One network call of sampling: in evaluation mode, without gradients."""

    def call() -> Tensor:
        network.eval()
        with torch.no_grad():
            return network(x, label, **(told or {}))

    return call


def gradient_call(
    network: nn.Module, x: Tensor, label: Tensor, told: Mapping[str, Tensor] | None = None
) -> Callable[[], None]:
    """Forward and backward of training, the gradients dropped afterwards."""

    def call() -> None:
        network.train()
        network(x, label, **(told or {})).square().mean().backward()
        network.zero_grad(set_to_none=True)

    return call
