"""EDM's four numbers of churn, found for one model and number of calls by a proper optimizer.

The Tree-structured Parzen Estimator of Optuna asks for the Fréchet distance of one setting after
another. What wins is measured once more, on other seeds, against no churn at all: the least of many
noisy numbers is too good to be true.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError, MissingExtraError
from sfumato.files import write_json
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.compare import Result, compare
from sfumato.recipes.evaluation.sets import ImageSet
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.trials import Trial
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import SamplerConfig, plain
from sfumato.recipes.samplers import with_evaluations

_JUDGED = 5
"""Repeats, each of seeds of its own, by which the best is judged."""
NOISE = (0.995, 1.015)
"""Where S_noise is looked for; EDM's own lie between 1 and 1.007."""
EDM_CIFAR10 = {"churn": 30.0, "churn_low": 0.01, "churn_high": 1.0, "churn_noise": 1.007}
"""EDM Table 5, CIFAR-10 VP, for 256 steps or less: tried first."""


@dataclass(frozen=True)
class Tried:
    """One setting and its Fréchet distance."""

    churn: float
    churn_low: float
    churn_high: float
    churn_noise: float
    frechet: float


@dataclass(frozen=True)
class Verdict:
    """The best setting found, and both it and no churn on seeds that had no part in finding it."""

    sampler: SamplerConfig
    best: Result
    without: Result
    tried: tuple[Tried, ...]

    @property
    def won(self) -> bool:
        """Whether churn is better than none on the same seeds, by more than two standard errors."""
        pairs = zip(self.best.each, self.without.each, strict=True)
        gains = [without - best for best, without in pairs]
        error = statistics.stdev(gains) / math.sqrt(len(gains))
        return statistics.fmean(gains) > 2 * error


def search(
    model: Model,
    sampler: SamplerConfig,
    nfe: int,
    count: int,
    reference: ImageSet,
    settings: Settings,
    cache: Cache,
    *,
    device: str,
    say: Callable[[str], None],
) -> Verdict:
    """Try `count` settings of Heun's method with churn, of so many calls; then judge the best.

    The same search asks for the same settings in the same order, so that an interrupted one goes
    on from what is in the cache. Raises ConfigError for calls that Heun's method cannot spend, and
    for less than three settings, MissingExtraError without Optuna.
    """
    if count < 3:
        raise ConfigError(f"--trials must be at least 3, not {count}")
    without = with_evaluations(plain(sampler, "heun"), nfe)
    limits = model.denoiser.range
    most = without.steps * (math.sqrt(2) - 1)
    study = _study(settings.seed)
    study.enqueue_trial({"churn": 0.0, "churn_low": limits.low, "churn_high": limits.high,
                         "churn_noise": 1.0})  # fmt: skip
    middle = math.sqrt(limits.low * limits.high)
    study.enqueue_trial(
        {
            "churn": min(EDM_CIFAR10["churn"], most),
            "churn_low": min(max(EDM_CIFAR10["churn_low"], limits.low), middle),
            "churn_high": min(max(EDM_CIFAR10["churn_high"], middle), limits.high),
            "churn_noise": EDM_CIFAR10["churn_noise"],
        }
    )
    tried: list[Tried] = []
    for number in range(1, count + 1):
        trial = study.ask()
        numbers = {
            "churn": trial.suggest_float("churn", 0.0, most),
            "churn_low": trial.suggest_float("churn_low", limits.low, middle, log=True),
            "churn_high": trial.suggest_float("churn_high", middle, limits.high, log=True),
            "churn_noise": trial.suggest_float("churn_noise", *NOISE),
        }
        named = Trial(f"setting {number} of {count}", nfe, replace(without, **numbers))
        ((result, _),) = compare(
            model, [named], reference, replace(settings, repeats=1), cache, device=device, say=say
        )
        assert result.frechet is not None
        study.tell(trial, result.frechet)
        tried.append(Tried(**numbers, frechet=result.frechet))
    best = min(tried, key=lambda one: one.frechet)
    chosen = replace(without, **{k: v for k, v in asdict(best).items() if k != "frechet"})
    repeats = max(settings.repeats, _JUDGED)
    others = replace(settings, seed=settings.seed + settings.n, repeats=repeats)
    judged = [Trial("best churn", nfe, chosen), Trial("no churn", nfe, without)]
    results = [
        result
        for result, _ in compare(model, judged, reference, others, cache, device=device, say=say)
    ]
    return Verdict(chosen, results[0], results[1], tuple(tried))


def _study(seed: int) -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "tune", "searching churn") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))


def in_lines(verdict: Verdict, most: int = 5) -> Iterator[str]:
    """Yield the best settings as lines of a terminal, and who won."""
    yield f"{'churn':>8}{'low':>10}{'high':>10}{'noise':>8}{'Fréchet':>10}"
    for one in sorted(verdict.tried, key=lambda one: one.frechet)[:most]:
        yield (
            f"{one.churn:>8.2f}{one.churn_low:>10.4g}{one.churn_high:>10.4g}"
            f"{one.churn_noise:>8.4f}{one.frechet:>10.4g}"
        )
    best, without = verdict.best, verdict.without
    yield (
        f"on other seeds: {best.frechet:.4g} ± {best.error or 0:.2g} with the best, "
        f"{without.frechet:.4g} ± {without.error or 0:.2g} without churn: "
        + ("churn wins" if verdict.won else "churn does not win")
    )


def write_search(path: Path, verdict: Verdict, nfe: int) -> None:
    """Write all settings and the verdict as JSON."""
    kept = {
        "nfe": nfe,
        "won": verdict.won,
        "best": asdict(verdict.best),
        "without": asdict(verdict.without),
        "tried": [asdict(one) for one in verdict.tried],
    }
    write_json(path, kept)
