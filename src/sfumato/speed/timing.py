"""Timing calls in turns, so that whatever else the machine does weighs on all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch


@dataclass
class Timing:
    """Seconds that one call took, in each round."""

    seconds: list[float] = field(default_factory=list[float])

    @property
    def median(self) -> float:
        """The median of all rounds, in seconds."""
        return statistics.median(self.seconds)

    def rate(self, amount: float) -> float:
        """`amount` (images, FLOP, bytes) a call over the median: a second's worth."""
        return amount / self.median


def synchronize(device: torch.device | str) -> None:
    """Wait until a device has done what it was given; a CPU has already."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device | str, repeat: int = 1) -> float:
    """Return the seconds of one of `repeat` calls in a row, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeat


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    device: torch.device | str = "cpu",
    rounds: int = 3,
    least: float = 0.005,
    told: Callable[[str, float], None] | None = None,
) -> dict[str, Timing]:
    """Time every call once a round until `seconds` are over, and at least `rounds` rounds.

    A call is made twice beforehand, untimed: to warm up, and to see how often it has to be repeated
    in a round to last `least` seconds. `told` hears each call's name and seconds. Raises
    ValueError for less than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    repeat: dict[str, int] = {}
    for name, call in calls.items():
        timed(call, device)
        once = timed(call, device)
        repeat[name] = max(1, math.ceil(least / max(once, 1e-9)))
    times = {name: Timing() for name in calls}
    end, done = time.perf_counter() + seconds, 0
    while done < rounds or time.perf_counter() < end:
        for name, call in calls.items():
            took = timed(call, device, repeat[name])
            times[name].seconds.append(took)
            if told is not None:
                told(name, took)
        done += 1
    return times
