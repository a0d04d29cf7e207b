"""Which arithmetic is fastest for a network on this machine: measured, because it is not obvious.

Processors with AMX gain a factor of two or more from bfloat16 in channels_last; those with AVX-512
alone lose a factor of two.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.networks.base import Network


@dataclass(frozen=True)
class Compute:
    """An arithmetic for `Network.set_compute`, and the training speed measured with it."""

    dtype: torch.dtype
    channels_last: bool
    images_per_second: float

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "channels_first"
        name = str(self.dtype).removeprefix("torch.")
        return f"{name}, {layout}: {self.images_per_second:.0f} images/s"


CANDIDATES = (
    (torch.float32, False),
    (torch.float32, True),
    (torch.bfloat16, True),
)


def measure_compute(network: Network, x: Tensor, *, repeats: int = 2) -> list[Compute]:
    """Time training steps (forward and backward of the batch x) in every arithmetic, fastest first.

    Each is timed `repeats` times after one warm-up and its best counts. Parameters, gradients,
    mode, the chosen arithmetic and the random state of torch are as before afterwards.
    """
    before = network.compute_dtype, network.channels_last, network.training
    results: list[Compute] = []
    cuda = [x.device] if x.device.type == "cuda" else []
    try:
        network.train()
        for dtype, channels_last in CANDIDATES:
            network.set_compute(dtype, channels_last=channels_last)
            with torch.random.fork_rng(devices=cuda):
                seconds = min([_step(network, x) for _ in range(1 + repeats)][1:])
            results.append(Compute(dtype, channels_last, len(x) / seconds))
    finally:
        network.set_compute(before[0], channels_last=before[1])
        network.train(before[2])
    return sorted(results, key=lambda c: -c.images_per_second)


def _step(network: Network, x: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    loss = network(x, x.new_zeros(len(x))).square().mean()
    torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start
