"""Butcher tableaus: a Runge-Kutta method as data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method (Hairer, Norsett & Wanner, Solving ODEs I, section II.1).

    `a[i]` weighs the slopes of the stages before stage i, `b` those of the step; stage i sits at
    the fraction c[i], the sum of a[i], of the step. `error`, where there is one, is b minus the
    weights of an embedded method, its last entry belonging to the slope at the step's end.
    Raises ValueError for rows of the wrong length, weights that do not sum to 1 and stages outside
    the step.
    """

    name: str
    order: int
    a: tuple[tuple[float, ...], ...] = field(repr=False)
    b: tuple[float, ...] = field(repr=False)
    error: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if [len(row) for row in self.a] != list(range(len(self.b))):
            raise ValueError(f"row i of the tableau {self.name} needs i weights, as it is explicit")
        if not math.isclose(sum(self.b), 1, abs_tol=1e-12):
            raise ValueError(f"the weights of the tableau {self.name} sum to {sum(self.b):.6g}")
        if not all(0 < c < 1 + 1e-12 for c in self.c[1:]):
            raise ValueError(f"the stages of the tableau {self.name} lie in (0, 1], not {self.c}")
        if self.error and len(self.error) != len(self.b) + 1:
            raise ValueError(f"the tableau {self.name} needs one error weight more than weights")

    def __hash__(self) -> int:
        """By the name: weights are looked up by tableau at every step."""
        return hash(self.name)

    @cached_property
    def c(self) -> tuple[float, ...]:
        """Where in the step each stage evaluates the slope; within rounding of 1 it is 1."""
        sums = [math.fsum(row) for row in self.a]
        return tuple(1.0 if abs(c - 1) < 1e-12 else c for c in sums)

    @property
    def stages(self) -> int:
        """Evaluations a step."""
        return len(self.b)


@lru_cache
def two_stage(fraction: float) -> Tableau:
    """Return EDM's family of second order with its second stage at `fraction` (EDM Algorithm 3).

    1 is Heun's method, 1/2 the midpoint method, 2/3 Ralston's.
    """
    second = 1 / (2 * fraction)
    return Tableau(f"two_stage({fraction:g})", 2, ((), (fraction,)), (1 - second, second))


EULER = Tableau("euler", 1, ((),), (1.0,))
HEUN = Tableau("heun", 2, ((), (1.0,)), (1 / 2, 1 / 2))
MIDPOINT = Tableau("midpoint", 2, ((), (1 / 2,)), (0.0, 1.0))
RALSTON = Tableau("ralston", 2, ((), (2 / 3,)), (1 / 4, 3 / 4))
# Kutta 1901: his third-order method, and the classic one of fourth order.
KUTTA3 = Tableau("kutta3", 3, ((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6))
CLASSIC4 = Tableau(
    "classic4", 4, ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
)
# Dormand & Prince 1980, RK5(4)7M. The seventh stage is the next step's first.
DORMAND_PRINCE = Tableau(
    "dormand_prince",
    5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
TABLEAUS = (EULER, HEUN, MIDPOINT, RALSTON, KUTTA3, CLASSIC4, DORMAND_PRINCE)
