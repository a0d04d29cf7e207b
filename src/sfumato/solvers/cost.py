"""How many network evaluations (NFE) a solver spends on N steps to sigma = 0, and the inverse.

A solver says so by `stages`, the evaluations of each step but the last, which takes one; or, where
steps differ, by a method `evaluations(steps)`. A wrapper with neither costs what its `solver` does.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

from sfumato.protocols import Solver

State = TypeVar("State")


@runtime_checkable
class Staged(Protocol):
    """A solver whose steps all cost the same, but for the last."""

    @property
    def stages(self) -> int:
        """Evaluations a step."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A solver that knows what it costs."""

    def evaluations(self, steps: int) -> int:
        """Return how many evaluations so many steps to 0 take."""
        ...


def evaluations(solver: Solver[State], steps: int) -> int:
    """Return how many evaluations `steps` steps of a grid that ends with 0 take.

    Raises ValueError for less than one step, and for a solver that chooses its own steps.
    """
    if steps < 1:
        raise ValueError(f"a walk has at least one step, not {steps}")
    if isinstance(solver, Counting):
        return solver.evaluations(steps)
    if isinstance(solver, Staged):
        return solver.stages * (steps - 1) + 1
    inner: Solver[object] | None = getattr(solver, "solver", None)
    if inner is not None:
        return evaluations(inner, steps)
    raise ValueError(
        f"{type(solver).__name__} chooses its steps itself, so its evaluations are not known "
        "beforehand: use a solver of fixed steps, or count them (Step.evaluations)"
    )


def steps_for(solver: Solver[State], nfe: int) -> int:
    """Return the number of steps to 0 that spends exactly `nfe` evaluations.

    Raises ValueError, naming those that are possible, where there is none.
    """
    spent = 0
    steps = 0
    while spent < nfe:
        steps += 1
        before, spent = spent, evaluations(solver, steps)
        if spent > nfe:
            possible = [evaluations(solver, n) for n in range(1, 5)]
            near = f"{before} or {spent}" if before else f"{spent}"
            raise ValueError(
                f"{type(solver).__name__} cannot spend exactly {nfe} evaluations: it spends "
                f"{', '.join(map(str, possible))}, ... for 1, 2, 3, 4, ... steps; the nearest is "
                f"{near}"
            )
    if not steps:
        raise ValueError(f"at least one evaluation is needed, not {nfe}")
    return steps
