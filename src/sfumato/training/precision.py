"""Which arithmetic trains fastest here: measured on the network itself, chosen, and said."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from sfumato.placement import fork_rng_of


class Computes(Protocol):
    """A network whose arithmetic can be chosen, as those of sfumato.networks."""

    def set_compute(self, dtype: torch.dtype = ..., *, channels_last: bool = ...) -> None:
        """Choose dtype and memory layout of the body."""
        ...


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a network's body: "float32", "bfloat16" or "float16", and its layout.

    Plain values, so that a checkpoint can record them: a resumed run uses what was chosen.
    """

    dtype: str = "float32"
    channels_last: bool = False

    def apply(self, network: Computes) -> None:
        """Set a network to it."""
        network.set_compute(getattr(torch, self.dtype), channels_last=self.channels_last)

    def __str__(self) -> str:
        return self.dtype + (" with channels last" if self.channels_last else "")


CANDIDATES = (
    Precision(),
    Precision(channels_last=True),
    Precision("bfloat16", channels_last=True),
)


@dataclass(frozen=True)
class Choice:
    """The precision chosen, and a sentence that says what was measured."""

    precision: Precision
    sentence: str


def choose_precision(
    network: nn.Module,
    shape: Sequence[int],
    *,
    conditions: Mapping[str, Tensor] | None = None,
    candidates: Sequence[Precision] = CANDIDATES,
    budget: float = 5.0,
    margin: float = 1.1,
) -> Choice:
    """Time training steps of a network on random images of `shape` [B, C, H, W] and choose.

    The network (with `set_compute`) is called as network(x, noise_label [B], **conditions), these
    [1, ...] each, with at most B images and as few as fit the budget of seconds. The first
    candidate is kept unless another is `margin` times as fast. Weights and torch's random state are
    left as they were, gradients cleared, and the network's arithmetic set to the choice. Not
    reproducible, so ask once and record the answer.
    """
    if not hasattr(network, "set_compute"):
        return Choice(candidates[0], f"{candidates[0]} (this network offers no choice)")
    body = cast("Computes", network)
    device = next(network.parameters()).device
    usable = [c for c in candidates if _supported(c, device)]
    rates = dict.fromkeys(usable, 0.0)

    def rate(candidate: Precision, batch: int) -> float:
        """Images a second of one forward and backward pass."""
        candidate.apply(body)
        x, label = torch.randn(batch, *shape[1:], device=device), torch.zeros(batch, device=device)
        told = {n: c.expand(batch, *c.shape[1:]).to(device) for n, c in (conditions or {}).items()}
        start = _now(device)
        network(x, label, **told).square().mean().backward()
        seconds = _now(device) - start
        network.zero_grad(set_to_none=True)
        return batch / seconds

    end = time.perf_counter() + budget
    with fork_rng_of(device):
        first = max(rate(c, min(shape[0], 4)) for c in usable)
        # A warm-up and about four rounds in the budget.
        batch = max(min(int(first * budget / (5 * len(usable))), shape[0], 64), min(shape[0], 4))
        for c in usable:
            rate(c, batch)
        for number in range(10):
            # In turns, and the best of each: what else the machine does weighs on all alike.
            for c in usable:
                rates[c] = max(rates[c], rate(c, batch))
            if number and time.perf_counter() > end:
                break
    best = max(usable, key=lambda c: rates[c])
    chosen = best if rates[best] > margin * rates[usable[0]] else usable[0]
    chosen.apply(body)
    measured = ", ".join(f"{c} {rates[c]:.3g}" for c in usable)
    return Choice(chosen, f"{chosen} (images/s measured in training: {measured})")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _supported(candidate: Precision, device: torch.device) -> bool:
    if candidate.dtype == "bfloat16" and device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return True
