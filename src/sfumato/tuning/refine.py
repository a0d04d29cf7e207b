"""Levels and weights refined together by gradients through the denoiser.

Bespoke non-stationary solvers (Shaul et al. 2024) and S4S (Frankel et al. 2025) for D: the error of
the last state is followed back through every call of the network to all levels and weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.noise import F64
from sfumato.solvers.non_stationary import NonStationary
from sfumato.tuning.fit import miss
from sfumato.tuning.teacher import Lesson

WEIGHT_RATE = 0.1
"""An update moves the end by about this share of the error that is left at the start ..."""
LEVEL_RATE = 10.0
"""... and levels in log sigma by so many times as much as a weight, in the units of `_Student`."""
WARM_UP = 10
RETREAT = 1.2
"""From an error that much above the best one, learning goes back to that, half as fast."""
WHITENED = 1e-5
"""Products within this of dependent, relative, are not told apart."""
MOST_BYTES = 2 * 2**30
"""What the network may keep for the way back before it is made to compute twice instead."""


@dataclass(frozen=True)
class Refined:
    """After `iteration` updates: the best solver so far, by its error `held_out` on other latents.

    `loss` is the last batch's error: means over images of per-dimension RMSE.
    """

    iteration: int
    loss: float
    solver: NonStationary
    held_out: float


def refine(
    lessons: Sequence[Lesson],
    held_out: Sequence[Lesson],
    solver: NonStationary,
    data_std: float,
    *,
    iterations: int,
    seed: int = 0,
    move_levels: bool = True,
    every: int = 15,
) -> Iterator[Refined]:
    """Improve a solver by Adam on the error of its end, a lesson an update.

    The error is the mean over images of their RMSE, so that the few whose trajectories part do not
    outweigh the rest. Yields after every update; `held_out` lessons are looked at each `every` of
    them and choose the best, to which learning returns where it strays. `move_levels` lets all
    levels but the first and last move (not for a network that knows certain levels only). A solver
    that cannot be improved comes back as it was.
    """
    student = _Student(solver, lessons, data_std, move_levels)
    best, least = solver, _error(held_out, solver)
    peak = WEIGHT_RATE * min(least, 1.0) / sum(map(len, student.rows)) ** 0.5
    adam = torch.optim.Adam(student.groups(peak), betas=(0.9, 0.99))
    frugal = _kept_bytes(lessons[0]) * len(solver.weights) > MOST_BYTES
    order = torch.Generator().manual_seed(seed)
    kept, slower = student.numbers(), 1.0
    turn: list[int] = []
    for iteration in range(1, iterations + 1):
        turn = turn or torch.randperm(len(lessons), generator=order).tolist()
        lesson = lessons[turn.pop()]
        for group in adam.param_groups:
            group["lr"] = slower * group["peak"] * _pace(iteration, iterations)
        end = student.walk(lesson, frugal)
        loss = (end - lesson.target).square().flatten(1).mean(1).add(1e-12).sqrt().mean()
        if loss.isfinite():
            adam.zero_grad()
            loss.backward()
            adam.step()
        if iteration % every == 0 or iteration == iterations:
            made = student.solver()
            error = math.inf if made is None else _error(held_out, made)
            if made is not None and error < least:
                best, least, kept = made, error, student.numbers()
            elif not error < RETREAT * least:
                student.put(kept)
                adam.state.clear()
                slower /= 2
        yield Refined(iteration, float(loss.detach()), best, least)


def _pace(iteration: int, iterations: int) -> float:
    """Up while Adam learns how large gradients are, then down along a cosine."""
    return min(1.0, iteration / WARM_UP) * 0.5 * (1 + math.cos(math.pi * iteration / iterations))


def _error(lessons: Sequence[Lesson], solver: NonStationary) -> float:
    try:
        return float(miss(lessons, solver, torch.tensor(solver.sigmas, dtype=F64)).mean())
    except FloatingPointError:  # the student diverges
        return math.inf


class _Student:
    """The numbers that are learned, in units in which they matter alike.

    Row i of weights moves by a matrix times a vector whose every component changes the next state
    by as much as the data's flow carries to one unit at the end; levels move in log sigma.
    """

    def __init__(
        self,
        solver: NonStationary,
        lessons: Sequence[Lesson],
        data_std: float,
        move_levels: bool,
    ) -> None:
        self.device = lessons[0].start.device
        self.sigmas = torch.tensor(solver.sigmas, dtype=F64)
        self.lowest = float(lessons[0].sigmas[-2])  # the network was not asked below
        self.moves = torch.zeros_like(self.sigmas[1:-1], requires_grad=move_levels)
        rows = zip(solver.start_weights, solver.weights, strict=True)
        self.rows = [torch.tensor([start, *weights], dtype=F64) for start, weights in rows]
        carried = [data_std / (data_std**2 + sigma**2) ** 0.5 for sigma in solver.sigmas[1:]]
        self.units = [
            _whitening(products) / share
            for products, share in zip(_products(lessons[0], solver), carried, strict=True)
        ]
        self.steps = [torch.zeros_like(row, requires_grad=True) for row in self.rows]

    def groups(self, peak: float) -> list[dict[str, Any]]:
        """What Adam moves, and how fast."""
        made: list[dict[str, Any]] = [{"params": self.steps, "peak": peak}]
        if self.moves.requires_grad:
            made.append({"params": [self.moves], "peak": LEVEL_RATE * peak})
        return made

    def numbers(self) -> list[Tensor]:
        """All that is learned, as it stands."""
        return [part.detach().clone() for part in (self.moves, *self.steps)]

    @torch.no_grad()
    def put(self, numbers: list[Tensor]) -> None:
        """Go back to what `numbers` gave."""
        for part, value in zip((self.moves, *self.steps), numbers, strict=True):
            part.copy_(value)

    def levels(self) -> Tensor:
        if not self.moves.requires_grad:
            return self.sigmas
        first, inner, last = self.sigmas[:1], self.sigmas[1:-1], self.sigmas[-1:]
        moved = (inner * self.moves.exp()).clamp(self.lowest, float(first))
        return torch.cat([first, moved, last])

    def table(self) -> list[Tensor]:
        moved = zip(self.rows, self.units, self.steps, strict=True)
        return [row + unit @ step for row, unit, step in moved]

    def solver(self) -> NonStationary | None:
        """The solver as it stands; None where levels crossed or numbers left all bounds."""
        with torch.no_grad():
            rows = [row.tolist() for row in self.table()]
            levels = tuple(self.levels().tolist())
        try:
            return NonStationary(
                levels, tuple(row[0] for row in rows), tuple(tuple(row[1:]) for row in rows)
            )
        except ValueError:
            return None

    def walk(self, lesson: Lesson, frugal: bool) -> Tensor:
        """The end [B, *data] of a lesson's latents, differentiable in all that is learned."""

        def mean(x: Tensor, sigma: Tensor) -> Tensor:
            return lesson.denoise(x, sigma).mean

        x = lesson.start
        seen = [x]
        for sigma, row in zip(self.levels()[:-1], self.table(), strict=True):
            d = checkpoint(mean, x, sigma, use_reentrant=False) if frugal else mean(x, sigma)
            seen.append(d)
            weights = row.to(x)
            x = weights[0] * seen[0]
            for weight, value in zip(weights[1:], seen[1:], strict=True):
                x = x + weight * value
        return x


@torch.no_grad()
def _products(lesson: Lesson, solver: NonStationary) -> list[Tensor]:
    """For each step, mean products of what it combines, as the solver walks: [i + 2, i + 2]."""
    out: list[Tensor] = []
    seen, x = [lesson.start], lesson.start
    rows = zip(solver.sigmas, solver.start_weights, solver.weights, strict=False)
    for sigma, start, weights in rows:
        seen.append(lesson.denoise(x, torch.tensor(sigma, dtype=F64)).mean)
        a = torch.stack(seen).flatten(1).to(F64)
        out.append((a @ a.T / a.shape[1]).cpu())
        x = torch.tensordot(torch.tensor([start, *weights]).to(x), torch.stack(seen), 1)
    return out


def _whitening(products: Tensor) -> Tensor:
    """W with W^T products W = 1, nearly: weights changed by W z change the sum by |z| in RMS."""
    factor = torch.linalg.cholesky(products + WHITENED * torch.diag(products.diag()))
    return torch.linalg.inv(factor).T


def _kept_bytes(lesson: Lesson) -> int:
    """What one call of the network keeps for the way back."""
    total = 0

    def count(kept: Tensor) -> Tensor:
        nonlocal total
        total += kept.nbytes
        return kept

    x = lesson.start.detach().clone().requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda kept: kept):
        lesson.denoise(x, lesson.sigmas[0])
    return total
