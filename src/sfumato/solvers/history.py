"""The memory of multistep solvers, as a value."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class History(NamedTuple):
    """Past levels and what was found there, newest last; `left` counts the steps still to take.

    `values` [B, *data] are slopes (x - D) / sigma for the linear methods, means D for the
    exponential ones. Building one from an exact past starts a solver without its start-up error.
    """

    left: int
    sigmas: tuple[float, ...] = ()
    values: tuple[Tensor, ...] = ()

    @classmethod
    def empty(cls, sigmas: Tensor) -> History:
        """Return the memory before the first step on a grid."""
        return cls(len(sigmas) - 1)

    def seen(self, sigma: float, value: Tensor, keep: int) -> History:
        """Return the memory after an evaluation at sigma, of at most `keep` of them.

        Raises ValueError where the levels are not monotone.
        """
        past = (*self.sigmas[1 - keep :], sigma) if keep > 1 else (sigma,)
        if len(past) > 1 and (past[-1] - past[-2]) * (past[1] - past[0]) <= 0:
            raise ValueError(
                f"a multistep solver came from sigma {past[-2]:.6g} to {sigma:.6g} against the "
                "direction of its walk: it needs monotone levels, so wrap a one-step solver "
                "(Heun, Euler) in what raises them again"
            )
        values = (*self.values[1 - keep :], value) if keep > 1 else (value,)
        return History(self.left, past, values)

    def newest(self, count: int) -> History:
        """Return the part of the memory that a step of so many points uses."""
        return History(self.left, self.sigmas[-count:], self.values[-count:])

    def stepped(self) -> History:
        """Return the memory with one step less to take."""
        return History(self.left - 1, self.sigmas, self.values)

    def usable(self, points: int, *, lower_at_end: bool = False) -> int:
        """Return how many points the step may use: those there are; at the end fewer, if asked."""
        known = min(points, len(self.values))
        return max(min(known, self.left), 1) if lower_at_end else known


def check_points(name: str, points: int) -> None:
    """Raise ValueError unless points is 1 to 4."""
    if points not in (1, 2, 3, 4):
        raise ValueError(f"{name} uses 1 to 4 points, not {points}")
