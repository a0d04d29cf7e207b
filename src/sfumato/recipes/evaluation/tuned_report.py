"""Whether tuning paid: every fixed solver's trajectory and the best ones' images beside the tuned.

Beside them stands the run's usual sampler with many calls, which few calls are to come near.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sfumato.errors import ConfigError
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.compare import (
    Result,
    best_of,
    compare,
    screen,
    teacher_of,
    unmeasured,
)
from sfumato.recipes.evaluation.comparison import table_of, write_comparison
from sfumato.recipes.evaluation.job import Places, of_run
from sfumato.recipes.evaluation.sets import Drawn, ImageSet
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.trials import Trial, fixed_trials
from sfumato.recipes.model import Model, load
from sfumato.recipes.sampler_config import SamplerConfig

MANY = 18
"""Steps of Heun's method that the few calls are held against: 35 calls."""


@dataclass(frozen=True)
class Judging:
    """What is compared, and how."""

    nfes: tuple[int, ...]
    n: int
    repeats: int
    best: int
    latents: int
    data: str
    features: str


def judge(
    path: str,
    sampler: SamplerConfig,
    tuned: Mapping[int, SamplerConfig],
    judging: Judging,
    out: Path | None,
    cache: Path | None,
    device: str,
    say: Callable[[str], None],
) -> dict[str, Path]:
    """Compare, print both tables, and return the files written.

    Without real images to compare with, or with n = 0, trajectories alone are compared.
    """
    settings = Settings(
        ("fd",), n=max(judging.n, 2), features=judging.features, repeats=judging.repeats
    )
    reference: ImageSet | None = None
    if judging.n:
        try:
            task = of_run(
                path, settings, Places(out, cache), test=judging.data, device=device,
                sampler=lambda default, known: sampler,
            )  # fmt: skip
            reference = next((r.images for r in task.references if r.images is not None), None)
        except ConfigError as error:
            say(f"no Fréchet distances: {error}")
    model = load(path, device=device)
    run = model.run
    shelf = Cache(cache or run / "evaluation" / "cache")
    trials = [Trial("tuned", nfe, tuned[nfe]) for nfe in judging.nfes if nfe in tuned]
    trials += fixed_trials(sampler, judging.nfes)
    many = _many(model, sampler)
    misses = screen(model, [*trials, many], teacher_of(sampler), judging.latents, shelf)
    results: list[Result] = []
    drawn: list[tuple[Result, Drawn]] = []
    few = {trial: miss for trial, miss in misses.items() if trial != many}
    if reference is not None:
        chosen = [*best_of(few, judging.best, always=("tuned",)), many]
        for result, images in compare(
            model, chosen, reference, settings, shelf, device=device, say=say, misses=misses
        ):
            drawn.append((result, images))
        results = [result for result, _ in drawn]
    seen = {(result.name, result.nfe) for result in results}
    results += [unmeasured(t, m) for t, m in misses.items() if (t.name, t.nfe) not in seen]
    say("\n" + table_of(results, "trajectory error"))
    if reference is not None:
        say("\n" + table_of(results, "Fréchet distance") + "\n")
    facts = {
        "run": str(run),
        "weights": model.fingerprint,
        "trajectories": f"{judging.latents} latents; teacher multistep 3, "
        f"{teacher_of(sampler).steps} steps",
        "images": f"{judging.n} x {judging.repeats}" if reference is not None else "none",
        "reference": "" if reference is None else f"{reference.name}, {len(reference):,}",
        "features": judging.features,
        "grid of the fixed solvers": sampler.grid,
        "guidance": sampler.guidance,
    }
    title = f"{run.name}: the best sampler for so many calls"
    where = out or run / "tuning"
    return write_comparison(where, title, facts, results, drawn, [], name="tuning")


def _many(model: Model, sampler: SamplerConfig) -> Trial:
    """The sampler of many calls: Heun's method, of as many steps as the model's levels allow."""
    plain = SamplerConfig()
    many = replace(
        sampler, solver="heun", steps=MANY, grid="karras", alpha=plain.alpha, eta=0.0, points=0,
        churn=0.0, restarts=0, variance=None, table=None,
    )  # fmt: skip
    walked = len(model.grid(many)) - 1
    return Trial("heun", 2 * walked - 1, many)
