"""Which arithmetic trains fastest here: measured on the network itself, chosen, and said."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn


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


CANDIDATES = (Precision(), Precision("bfloat16", channels_last=True))


@dataclass(frozen=True)
class Choice:
    """The precision chosen, and a sentence that says what was measured."""

    precision: Precision
    sentence: str


def choose_precision(
    network: nn.Module,
    shape: Sequence[int],
    *,
    conditions: dict[str, Tensor] | None = None,
    candidates: Sequence[Precision] = CANDIDATES,
    budget: float = 4.0,
    margin: float = 1.1,
) -> Choice:
    """Time training steps of a network on random images of `shape` [B, C, H, W], at most 32.

    The network (with `set_compute`) is called as network(x, noise_label [B], **conditions [1, n]).
    The first candidate is kept unless another is `margin` times as fast. About `budget` seconds;
    the network's weights and torch's random state are left as they were, its gradients cleared, and
    its arithmetic set to the choice. Not reproducible, so ask once and record the answer.
    """
    if not hasattr(network, "set_compute"):
        return Choice(candidates[0], f"{candidates[0]} (this network offers no choice)")
    body = cast("Computes", network)
    device = next(network.parameters()).device
    usable = [c for c in candidates if _supported(c, device)]
    batch = min(shape[0], 32)
    rates = dict.fromkeys(usable, 0.0)
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=_kind(device)):
        x = torch.randn(batch, *shape[1:], device=device)
        told = {n: c.expand(batch, -1).to(device) for n, c in (conditions or {}).items()}

        def step() -> None:
            label = torch.zeros(batch, device=device)
            network(x, label, **told).square().mean().backward()
            network.zero_grad(set_to_none=True)

        end = time.perf_counter() + budget
        for _ in range(8):
            # In turns, and the best of each: what else the machine does weighs on all alike.
            for candidate in usable:
                candidate.apply(body)
                rates[candidate] = max(rates[candidate], batch / _timed(step, device))
            if time.perf_counter() > end:
                break
    best = max(usable, key=lambda c: rates[c])
    chosen = best if rates[best] > margin * rates[usable[0]] else usable[0]
    chosen.apply(body)
    measured = ", ".join(f"{c} {rates[c]:.3g} images/s" for c in usable)
    return Choice(chosen, f"{chosen} (measured in training: {measured})")


def _timed(step: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _kind(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type


def _supported(candidate: Precision, device: torch.device) -> bool:
    if candidate.dtype == "bfloat16" and device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return True
