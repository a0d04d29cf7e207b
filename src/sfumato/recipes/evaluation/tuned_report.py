"""Whether tuning paid: every fixed solver's trajectory and the best ones' images beside the tuned.

Beside them stands the run's usual sampler with many calls, which few calls are to come near.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError
from sfumato.files import usable
from sfumato.processes import Processes
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
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.evaluation.sets import ImageSet, check_alike
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.task import Places, of_run
from sfumato.recipes.evaluation.trials import Trial, fixed_trials
from sfumato.recipes.evaluation.trials import trials as named_trials
from sfumato.recipes.evaluation.workbench import Workbench
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import SamplerConfig, plain

MANY = 18
"""Steps of Heun's method that the few calls are held against: 35 calls."""


@dataclass(frozen=True)
class Judging:
    """What is compared, and how: `latents` trajectories, the images of the `best` fixed solvers."""

    nfes: tuple[int, ...]
    n: int
    repeats: int
    best: int
    latents: int
    data: str
    features: str


class Judge:
    """Real images and features, opened and checked before any long work."""

    def __init__(
        self, model: Model, judging: Judging, out: Path | None, cache: Path | None, device: str
    ) -> None:
        """Without -n there are no real images, nor where none are named and the run's are gone.

        Raises ConfigError or DataError for images or features that cannot be had.
        """
        self.model, self.judging, self.device = model, judging, device
        self.out = usable(out or model.run / "tuning")
        self.cache = Cache(cache or model.run / "evaluation" / "cache")
        self.settings = Settings(
            ("fd",), n=max(judging.n, 2), features=judging.features, repeats=judging.repeats
        )
        self.reference: ImageSet | None = None
        self.missing = ""
        if not judging.n:
            return
        try:
            task = of_run(
                model, self.settings, Places(out, cache), test=judging.data, device=device
            )
        except ConfigError as error:
            if judging.data:
                raise
            self.missing = f"no Fréchet distances: {error}"
            return
        self.reference = task.real_images()
        check_alike(Drawn(model, 2, self.cache), self.reference)
        bench = Workbench(self.settings, self.cache, Processes(), None, self.reference, device)
        bench.try_out(self.reference, judging.features)

    def judge(
        self,
        sampler: SamplerConfig,
        tuned: Mapping[int, SamplerConfig],
        say: Callable[[str], None],
    ) -> dict[str, Path]:
        """Compare, print both tables and who won, and return the files written."""
        if self.missing:
            say(self.missing)
        judging, model = self.judging, self.model
        trials, left_out = named_trials(model, sampler, ["tuned"], judging.nfes, tuned)
        fixed, impossible = fixed_trials(model, sampler, judging.nfes)
        left_out += impossible
        many = _many(model, sampler)
        teacher = teacher_of(sampler)
        misses = screen(model, [*trials, *fixed, many], teacher, judging.latents, self.cache)
        few = {trial: miss for trial, miss in misses.items() if trial != many}
        drawn: list[tuple[Result, Drawn]] = []
        if self.reference is not None:
            chosen = [*best_of(few, judging.best, always=("tuned",)), many]
            drawn = list(
                compare(
                    model, chosen, self.reference, self.settings, self.cache,
                    device=self.device, say=say, misses=misses,
                )
            )  # fmt: skip
        results = [result for result, _ in drawn]
        seen = {(result.name, result.nfe) for result in results}
        results += [unmeasured(t, m) for t, m in misses.items() if (t.name, t.nfe) not in seen]
        say("\n" + table_of(results, "trajectory error"))
        if drawn:
            say("\n" + table_of(results, "Fréchet distance"))
        won = verdicts(results)
        say("\n" + "\n".join(won) + "\n")
        facts = self._facts(sampler, teacher)
        title = f"{model.run.name}: the best sampler for so many calls"
        return write_comparison(
            self.out, title, facts, results, drawn, [*won, *left_out], name="tuning"
        )

    def _facts(self, sampler: SamplerConfig, teacher: SamplerConfig) -> dict[str, Any]:
        judging, reference = self.judging, self.reference
        return {
            "run": str(self.model.run),
            "weights": self.model.fingerprint,
            "trajectories": f"{judging.latents} latents; teacher multistep 3, "
            f"{teacher.steps} steps",
            "images": "none" if reference is None else f"{judging.n} x {judging.repeats}",
            "reference": "" if reference is None else f"{reference.name}, {len(reference):,}",
            "features": judging.features,
            "grid of the fixed solvers": sampler.grid,
            "guidance": sampler.guidance,
        }


def verdicts(results: Sequence[Result]) -> list[str]:
    """Return, for each number of calls, the tuned sampler against the best fixed one."""
    lines: list[str] = []
    for tuned in (result for result in results if result.name == "tuned"):
        fixed = [r for r in results if r.nfe == tuned.nfe and r.name != "tuned"]
        near = [r for r in fixed if r.miss is not None]
        if not near or tuned.miss is None:
            continue
        best = min(near, key=lambda r: r.miss or 0.0)
        assert best.miss is not None
        text = f"{tuned.nfe} calls, tuned: {tuned.miss / best.miss:.2f} of the trajectory error of "
        text += f"the best fixed solver ({best.name})"
        measured = [r for r in fixed if r.frechet is not None]
        if measured and tuned.frechet is not None:
            best = min(measured, key=lambda r: r.frechet or 0.0)
            assert best.frechet is not None
            text += f", {tuned.frechet / best.frechet:.3f} of the least Fréchet distance "
            text += f"({best.name})"
        lines.append(text)
    return lines


def _many(model: Model, sampler: SamplerConfig) -> Trial:
    """The sampler of many calls: Heun's method, of as many steps as the model's levels allow."""
    many = replace(plain(sampler, "heun"), steps=MANY, grid="karras")
    walked = len(model.grid(many)) - 1
    return Trial("heun", 2 * walked - 1, many)
