"""CUDA graphs of training: small networks spend most of a step on launching their kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sfumato.placement import fork_rng_of


class _ByPosition(nn.Module):
    """A network whose conditions come by position, as torch's graphs want them."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, x: Tensor, noise_label: Tensor, *condition: Tensor) -> Tensor:
        return self.network(x, noise_label, **dict(zip(self.names, condition, strict=True)))


def replay_training(
    network: nn.Module, x: Tensor, noise_label: Tensor, condition: Mapping[str, Tensor]
) -> None:
    """Have forward and backward passes of a network in training replayed as CUDA graphs.

    For calls network(x, noise_label, **condition) with the names and shapes of these examples, once
    before each optimizer step; all others stay as they are. Weights may change, being read in
    place; hooks and the network's arithmetic may not. Raises ValueError off a GPU.
    """
    if not x.is_cuda:
        raise ValueError(f"CUDA graphs need the network on a CUDA device, it is on {x.device}")
    own, names = network.forward, tuple(condition)
    # Weights meet their gradients on the stream that recorded them, which a replay need not know.
    quiet = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if quiet is not None:
        quiet(False)
    given = (x, noise_label, *condition.values())
    shapes = tuple(t.shape for t in given)
    inner = _ByPosition(network.train(), names)
    with fork_rng_of(x.device), torch.cuda.device(x.device):
        replayed: Callable[..., Tensor] = torch.cuda.make_graphed_callables(inner, given)  # pyright: ignore

    def forward(x: Tensor, noise_label: Tensor, **condition: Tensor) -> Tensor:
        same = network.training and torch.is_grad_enabled() and condition.keys() == set(names)
        if same:
            given = (x, noise_label, *(condition[name] for name in names))
            if tuple(t.shape for t in given) == shapes:
                return replayed(*given)
        return own(x, noise_label, **condition)

    network.forward = forward
