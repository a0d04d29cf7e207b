"""A model's few-step samplers, learned from its own trajectories."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sfumato.errors import ConfigError
from sfumato.noise import F64
from sfumato.randomness import Noise, derive_seed
from sfumato.recipes import build
from sfumato.recipes.evaluation.compare import teacher_of
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import (
    HISTORY,
    SamplerConfig,
    SolverName,
    SolverTable,
    plain,
)
from sfumato.recipes.samplers import solver_of
from sfumato.recipes.tuned import Tuned
from sfumato.sampling import start_from_prior
from sfumato.solvers.non_stationary import NonStationary, linear_form
from sfumato.tuning import Lesson, Moments, fit, miss, refine, shortest_path, step_costs, teach

_BATCH = 32
_MOST_BYTES = 4 * 2**30
_ONE_CALL: tuple[SolverName, ...] = (
    "euler", "ab", "deis", "ipndm", "multistep", "dpm++2m", "dpm++3m", "unipc",
)  # fmt: skip


@dataclass(frozen=True)
class Search:
    """How a sampler is looked for."""

    latents: int = 256
    """Trajectories to learn from."""
    held_out: int = 64
    """Others, by which the best is chosen."""
    teacher_steps: int = 40
    """Steps of the teacher, exponential multistep of order 3."""
    iterations: int = 150
    """Updates by gradients, of a batch of 32 trajectories each; 0 leaves out the gradients."""
    levels_only: bool = False
    """Choose levels alone, and the fixed solver that does best on them."""
    seed: int = 0
    """Seed of the latents, which are none that `sample` draws."""


@dataclass(frozen=True)
class Progress:
    """How far the search for one sampler is: `error` is its RMSE on held-out trajectories,
    the mean over images."""

    done: int
    total: int
    error: float


class Tuner:
    """The trajectories of one model and sampler, and the search for few steps that follow them."""

    def __init__(self, model: Model, sampler: SamplerConfig, search: Search) -> None:
        """Raises ConfigError for counts that make no sense or guidance the model cannot have."""
        for name, least in (("latents", 1), ("held_out", 1), ("teacher_steps", 4)):
            if getattr(search, name) < least:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} must be at least {least}")
        if search.iterations < 0:
            raise ConfigError(f"--iterations must be 0 or more, not {search.iterations}")
        self.model, self.search = model, search
        self.teacher = teacher_of(sampler, search.teacher_steps)
        self.levels = model.grid(self.teacher)
        self.learned: list[Lesson] = []
        self.held_out: list[Lesson] = []
        self.teacher_error = 0.0
        numbers = (2 * len(self.levels) - 1) * torch.Size(model.format.shape).numel()
        self.count = min(search.latents, max(_BATCH, _MOST_BYTES // (4 * numbers)))
        """Trajectories that memory has room for."""
        self.limits = model.bound([0], sampler=sampler).range

    def check(self, nfes: Sequence[int]) -> None:
        """Raise ConfigError for numbers of calls that cannot be tuned."""
        for nfe in nfes:
            if not 1 <= nfe < len(self.levels) - 1:
                raise ConfigError(
                    f"{nfe} calls cannot be tuned: the teacher has {len(self.levels) - 1} levels, "
                    f"and fewer are chosen of them: 1 to {len(self.levels) - 2} (--teacher-steps)"
                )

    def made(self, tuned: Tuned) -> bool:
        """Whether a sampler came from the same search for the same denoiser."""
        own = plain(self.teacher, "euler")
        alike = replace(plain(tuned.sampler, "euler"), steps=own.steps, batch=own.batch)
        return alike == own and tuned.about.get("search") == asdict(self.search)

    @property
    def total(self) -> int:
        """How many trajectories `walk` makes."""
        return self.count + self.search.held_out

    def walk(self) -> Iterator[int]:
        """Let the teacher walk; yields how many more trajectories there are, batch by batch."""
        yield from self._lessons("held-out", self.search.held_out, self.held_out)
        self.teacher_error = self._own_error()
        yield from self._lessons("learned", self.count, self.learned)
        self.moments = Moments.of(self.learned)
        self.costs = step_costs(self.moments)

    def tune(self, nfe: int) -> Iterator[Progress | Tuned]:
        """Yield progress, and the sampler of so many calls last; after `walk`.

        Raises ConfigError as `check` does.
        """
        start = time.perf_counter()
        self.check([nfe])
        path = shortest_path(self.costs, nfe)
        if self.search.levels_only:
            solver, found = self._best_fixed(path)
        else:
            solver, found = fit(self.learned, path), "levels and weights"
        error = self._error(solver)
        total = 0 if self.search.levels_only else self.search.iterations
        yield Progress(0, total, error)
        if total:
            for state in refine(
                self.learned,
                self.held_out,
                solver,
                self.moments.data_std,
                iterations=total,
                seed=self.search.seed,
                move_levels=self.limits.levels is None,
            ):
                solver, error = state.solver, state.held_out
                yield Progress(state.iteration, total, error)
        yield Tuned(nfe, self._config(solver), self._about(found, error, start))

    def _best_fixed(self, path: Sequence[int]) -> tuple[NonStationary, str]:
        """The fixed solver that does best on a path of levels."""
        grid = self.levels[list(path)]
        made: dict[str, NonStationary] = {}
        for name in _ONE_CALL:
            for points in range(2, HISTORY[name] + 1) if name in HISTORY else (0,):
                config = replace(plain(self.teacher, name), points=points)
                made[f"{name} {points or ''}".strip()] = linear_form(solver_of(config), grid)
        best = min(made, key=lambda name: self._error(made[name]))
        return made[best], f"levels of {best}"

    def _config(self, solver: NonStationary) -> SamplerConfig:
        table = SolverTable(solver.sigmas, solver.start_weights, solver.weights)
        own = plain(self.teacher, "euler")
        return replace(own, solver="tuned", steps=len(solver.weights), table=table)

    def _about(self, found: str, error: float, start: float) -> dict[str, Any]:
        return {
            "found": found,
            "held_out_error": error,
            "teacher": f"{self.teacher.solver} {self.teacher.points}, {len(self.levels) - 1} steps",
            "teacher_error": self.teacher_error,
            "trajectories": sum(map(len, self.learned)),
            "held_out_trajectories": sum(map(len, self.held_out)),
            "search": asdict(self.search),
            "seconds": round(time.perf_counter() - start, 1),
        }

    def _error(self, solver: NonStationary) -> float:
        grid = torch.tensor(solver.sigmas, dtype=F64)
        return float(miss(self.held_out, solver, grid).mean())

    def _lessons(self, purpose: str, count: int, into: list[Lesson]) -> Iterator[int]:
        solver = solver_of(self.teacher)
        for first in range(0, count, _BATCH):
            numbers = range(first, min(first + _BATCH, count))
            seeds = [derive_seed(self.search.seed, "tune", purpose, i) for i in numbers]
            bound = self.model.bound(seeds, sampler=self.teacher)
            denoise = build.sampler_denoiser(self.teacher, bound)
            x = start_from_prior(
                denoise,
                self.levels[0],
                self.model.format.shape,
                Noise(tuple(seeds)),
                device=self.model.device,
            )
            into.append(teach(denoise, solver, self.levels, x))
            yield len(seeds)

    def _own_error(self) -> float:
        """How far the teacher is from one of twice as many steps, on the first held-out batch."""
        finer = replace(self.teacher, steps=2 * self.teacher.steps)
        ladder = self.limits.levels
        if ladder is not None:
            finer = replace(finer, steps=min(finer.steps, len(ladder)))
        first = self.held_out[:1]
        grid = self.model.grid(finer)
        return float(miss(first, solver_of(finer), grid).mean())
