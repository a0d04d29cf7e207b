"""The search for churn: it finds the optimum of a known function and judges on other seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe_helpers import array_file, open_run, small
from sfumato.cli import main
from sfumato.errors import ConfigError, MissingExtraError
from sfumato.recipes.evaluation import churn
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.compare import Result
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.trials import Trial
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.recipes.tuned import load_tuned
from test_compare import Pooled

Capture = pytest.CaptureFixture[str]
NFE = 17


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    made = open_run(folder / "run", array_file(folder), small(steps=4))
    for _ in made.steps():
        pass
    return folder / "run"


def landscape(sampler: SamplerConfig) -> float:
    """Least at churn 2.2, lowest level 0.1: 10 there, 10 + 4.84 + 0 or so without churn."""
    if not sampler.churn:
        return 16.0
    away = math.log(sampler.churn_low / 0.1) ** 2 + 100 * (sampler.churn_noise - 1.005)
    return 10.0 + (sampler.churn - 2.2) ** 2 + away


class Measured:
    """Stands in for drawing and measuring; later seeds see `worse` where there is churn."""

    def __init__(self, worse: float = 0.0) -> None:
        self.worse = worse
        self.asked: list[tuple[SamplerConfig, int]] = []

    def __call__(
        self, model: Model, trials: Sequence[Trial], reference: Any, settings: Settings,
        cache: Cache, *, device: str, say: Any,
    ) -> Iterator[tuple[Result, None]]:  # fmt: skip
        for trial in trials:
            self.asked.append((trial.sampler, settings.seed))
            value = landscape(trial.sampler)
            if settings.seed and trial.sampler.churn:
                value += self.worse
            each = tuple(value + 0.1 * i for i in range(settings.repeats))
            yield Result(trial.name, trial.nfe, value, 0.1, each, None, 1.0, settings.n), None


def searched(run: Path, folder: Path, count: int) -> churn.Verdict:
    model = load(run)
    settings = Settings(("fd",), n=100)
    return churn.search(
        model, model.recipe.sampler, NFE, count, None, settings, Cache(folder),  # type: ignore[arg-type]
        device="cpu", say=lambda text: None,
    )  # fmt: skip


def test_it_comes_near_the_optimum_and_asks_the_same_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Measured(), Measured()
    monkeypatch.setattr(churn, "compare", first)
    verdict = searched(run, tmp_path, 60)
    monkeypatch.setattr(churn, "compare", second)
    assert searched(run, tmp_path, 60).sampler == verdict.sampler
    assert first.asked == second.asked
    assert first.asked[0][0].churn == 0.0
    first_edm, _ = first.asked[1]
    assert (first_edm.churn_low, first_edm.churn_high, first_edm.churn_noise) == (0.01, 1.0, 1.007)
    assert all(sampler.steps == 9 for sampler, _ in first.asked)
    random = [landscape(sampler) for sampler, _ in first.asked[2:12]]
    late = [landscape(sampler) for sampler, _ in first.asked[40:60]]
    assert sum(late) / 20 < sum(random) / 10
    assert landscape(verdict.sampler) < 10.6
    assert verdict.won
    assert {seed for _, seed in first.asked[:60]} == {0}
    assert {seed for _, seed in first.asked[60:]} == {100}


def test_luck_on_the_seeds_of_the_search_does_not_win(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(churn, "compare", Measured(worse=7.0))
    verdict = searched(run, tmp_path, 12)
    assert not verdict.won
    assert list(churn.in_lines(verdict))[-1].endswith("churn does not win")


def test_what_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--trials must be at least 3"):
        searched(run, tmp_path, 2)
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtraError, match="tune"):
        searched(run, tmp_path, 3)


def test_the_command_searches_and_keeps_what_wins(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = tmp_path / "pooled.pt"
    torch.jit.script(Pooled()).save(str(features))
    words = ["tune", str(run), "--search-churn", "--trials", "3", "-n", "10", "--threads", "1"]
    words += ["--features", str(features), "--out", str(tmp_path), "--nfe"]
    assert main([*words, "5"]) == 0
    assert "on other seeds" in capsys.readouterr().out
    kept = json.loads((tmp_path / "churn-005.json").read_text())
    assert len(kept["tried"]) == 3
    assert main([*words, "6"]) == 2
    assert "cannot spend exactly 6" in capsys.readouterr().err
    monkeypatch.setattr(churn, "compare", Measured())
    assert main([*words, "7"]) == 0
    assert "kept: " in capsys.readouterr().out
    found, _ = load_tuned(load(run))
    assert found[7].sampler.churn > 0
    assert main(["sample", str(run), "-n", "1", "--nfe", "7", "--threads", "1"]) == 0
    assert "with heun, 4 steps" in capsys.readouterr().out
