"""One number of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher", "nearer to real", ""]


@dataclass(frozen=True)
class Row:
    """One number, with what is needed to compare it."""

    metric: str
    """Short name, as in --metrics."""
    name: str
    value: float
    against: str = ""
    """The reference; "" where none is needed."""
    error: float | None = None
    """One standard error."""
    real: float | None = None
    """The same number for as many real images."""
    better: Better = "lower"
    n: int = 0
    n_reference: int = 0
    features: str = ""
    note: str = ""
