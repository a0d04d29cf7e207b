"""The smallest value of a function of one number."""

from __future__ import annotations

import math
from collections.abc import Callable

_RATIO = (math.sqrt(5) - 1) / 2


def golden_section(
    cost: Callable[[float], float], low: float, high: float, rounds: int = 60
) -> float:
    """Return where a function with one valley in low..high is least, to 0.618^rounds of that."""
    for _ in range(rounds):
        a, b = high - _RATIO * (high - low), low + _RATIO * (high - low)
        low, high = (low, b) if cost(a) < cost(b) else (a, high)
    return (low + high) / 2
