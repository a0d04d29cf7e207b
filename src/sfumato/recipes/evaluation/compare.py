"""Samplers side by side: the same seeds, so many network calls, and what comes out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from sfumato.processes import Processes
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.evaluation.of_features import frechet
from sfumato.recipes.evaluation.outcome import number
from sfumato.recipes.evaluation.sets import ImageSet, check_alike
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.trials import Trial as Trial
from sfumato.recipes.evaluation.workbench import Workbench
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import SamplerConfig, plain
from sfumato.recipes.samplers import deterministic

SCREENED = 10**9
"""The seed of the first latent that trajectories are compared on: far from those of images."""


@dataclass(frozen=True)
class Result:
    """What a trial gave."""

    name: str
    nfe: int
    frechet: float | None
    """Mean over the repeats; None where only the trajectory was compared."""
    error: float | None
    """One standard error: from the repeats, or of one from the choice of its seeds."""
    each: tuple[float, ...]
    """Every repeat's Fréchet distance."""
    miss: float | None
    """Per-dimension RMSE to where a solver of many steps takes the same latents, on [-1, 1], the
    mean over latents."""
    milliseconds: float | None
    """Per image, on this machine; as measured when it was drawn, where it was."""
    n: int


def compare(
    model: Model,
    trials: Sequence[Trial],
    reference: ImageSet,
    settings: Settings,
    cache: Cache,
    *,
    device: str,
    say: Callable[[str], None],
    misses: dict[Trial, float] | None = None,
) -> Iterator[tuple[Result, Drawn]]:
    """Yield the Fréchet distance of each trial, and its images; all draw the same seeds.

    With several repeats each draws n images from seeds of its own. What was drawn before is taken
    from the cache, its time too.
    """
    bench = Workbench(settings, cache, Processes(), None, reference, device)
    for trial in trials:
        values: list[float] = []
        errors: list[float | None] = []
        seconds: list[float | None] = []
        shown: Drawn | None = None
        for repeat in range(settings.repeats):
            seed = settings.seed + settings.n * repeat
            drawn = Drawn(model, settings.n, cache, seed=seed, sampler=trial.sampler)
            drawn.name = f"{trial.name}, {trial.nfe} calls"
            check_alike(drawn, reference)
            bench.draw(drawn)
            seconds.append(drawn.seconds_per_image)
            (row,) = frechet(
                "fd",
                bench.table(drawn, settings.features),
                bench.table(reference, settings.features),
                None,
                against=reference.name,
                infinity=False,
                seed=settings.seed,
            )
            values.append(row.value)
            errors.append(row.error)
            shown = shown or drawn
        assert shown is not None
        mean = statistics.fmean(values)
        error = errors[0]
        if len(values) > 1:
            error = statistics.stdev(values) / math.sqrt(len(values))
        result = Result(
            trial.name,
            trial.nfe,
            mean,
            error,
            tuple(values),
            (misses or {}).get(trial),
            1000 * statistics.fmean(known) if (known := [s for s in seconds if s]) else None,
            settings.n,
        )
        spread = "" if error is None else f" ± {error:.2g}"
        say(f"{trial.name}, {trial.nfe} calls: Fréchet distance {number(mean)}{spread}")
        yield result, shown


def screen(
    model: Model,
    trials: Sequence[Trial],
    teacher: SamplerConfig,
    count: int,
    cache: Cache,
) -> dict[Trial, float]:
    """Return how far each trial ends from where `teacher` takes the same latents.

    The mean over latents of the per-dimension RMSE on [-1, 1]. For deterministic samplers; others
    are left out. What was drawn before is in the cache.
    """

    def ends(sampler: SamplerConfig) -> Drawn:
        return Drawn(model, count, cache, seed=SCREENED, sampler=sampler)

    wanted = [trial for trial in trials if deterministic(model.solver(trial.sampler))]
    truth = ends(teacher)
    with tqdm(total=sum(t.nfe for t in wanted) * count, unit="call", unit_scale=True) as bar:
        bar.set_description("teacher's trajectories")
        targets = [truth.piece(number).astype(np.float64) for number in range(truth.pieces)]
        out: dict[Trial, float] = {}
        for trial in wanted:
            bar.set_description(f"trajectories of {trial.name}, {trial.nfe} calls")
            drawn, errors = ends(trial.sampler), list[float]()
            for number, target in enumerate(targets):
                missed = (drawn.piece(number) - target).reshape(len(target), -1)
                errors += np.sqrt((missed**2).mean(1)).tolist()
            out[trial] = statistics.fmean(errors)
            bar.update(trial.nfe * count)
    return out


def unmeasured(trial: Trial, miss: float) -> Result:
    """Return the result of a trial whose trajectory alone was compared."""
    return Result(trial.name, trial.nfe, None, None, (), miss, None, 0)


def best_of(misses: dict[Trial, float], most: int, always: Sequence[str] = ()) -> list[Trial]:
    """Return, for each number of calls, the `most` trials of least error and those always taken.

    Of trials that end at the same images, such as methods of more points than there are steps, the
    first stands for all.
    """
    chosen: list[Trial] = []
    for nfe in sorted({trial.nfe for trial in misses}):
        ranked = sorted((t for t in misses if t.nfe == nfe), key=lambda t: misses[t])
        fixed: list[Trial] = []
        for trial in ranked:
            alike = any(abs(misses[t] - misses[trial]) < 1e-9 for t in fixed)
            if trial.name not in always and not alike:
                fixed.append(trial)
        chosen += [t for t in ranked if t.name in always or t in fixed[:most]]
    return chosen


def teacher_of(sampler: SamplerConfig, steps: int = 40) -> SamplerConfig:
    """Return the sampler of many steps that says where the flow of this one leads.

    Exponential multistep of order 3 on the karras grid, fitted to the model's range or ladder.
    """
    rho = SamplerConfig().rho
    return replace(plain(sampler, "multistep"), points=3, steps=steps, grid="karras", rho=rho)
