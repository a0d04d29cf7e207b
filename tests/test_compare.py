"""Samplers side by side: same seeds, calls as asked, results kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from oracles import F64, GaussianOracle
from recipe_helpers import array_file, open_run, small
from sfumato.cli import main
from sfumato.errors import ConfigError
from sfumato.noise import karras
from sfumato.randomness import Purpose, noise_for
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.compare import best_of
from sfumato.recipes.evaluation.consistency import consistency
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.evaluation.trials import Trial, ddim_trials, fixed_trials, trials
from sfumato.recipes.evaluation.truncation import step_errors
from sfumato.recipes.loading import load
from sfumato.recipes.sampler_config import SamplerConfig

Capture = pytest.CaptureFixture[str]


class Pooled(nn.Module):
    """2 x 2 means of every channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("features") / "pooled.pt"
    torch.jit.script(Pooled()).save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    made = open_run(folder / "run", array_file(folder), small(steps=4))
    for _ in made.steps():
        pass
    return folder / "run"


def command(run: Path, features: str, *more: str) -> list[str]:
    base = ["compare", str(run), "-n", "10", "--features", features, "--threads", "1"]
    return [*base, "--solvers", "euler", "heun", "unipc", "--nfe", "3", "4", *more]


def test_every_solver_is_measured_where_it_can_spend_the_calls(
    capsys: Capture, tmp_path: Path, run: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert main(command(run, features, "--out", str(out))) == 0
    printed = capsys.readouterr().out
    assert "left out: heun at 4" in printed
    kept = json.loads((out / "comparison.json").read_text())
    cells = {(r["name"], r["nfe"]): r["frechet"] for r in kept["results"]}
    assert set(cells) == {("euler", 3), ("euler", 4), ("heun", 3), ("unipc", 3), ("unipc", 4)}
    assert (
        "<svg" in (out / "comparison.html").read_text()
        or "image/svg" in (out / "comparison.html").read_text()
    )

    def never(*arguments: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(Drawn, "_draw", never)
    assert main(command(run, features, "--out", str(out))) == 0
    again = json.loads((out / "comparison.json").read_text())
    assert again["results"] == kept["results"]


def test_the_images_are_those_of_the_sampler_and_the_same_seeds(tmp_path: Path, run: Path) -> None:
    model = load(run)
    made, _ = trials(model, model.recipe.sampler, ["euler", "heun"], [5])
    assert [(t.name, t.nfe, t.sampler.steps) for t in made] == [("euler", 5, 5), ("heun", 5, 3)]
    drawn = Drawn(model, 4, Cache(tmp_path), sampler=made[1].sampler)
    own = model.sample(4, sampler=SamplerConfig(solver="heun", steps=3, batch=4))
    assert (drawn.chunk(0) == own).all()


def test_the_cells_of_ddims_table(run: Path) -> None:
    model = load(run)
    made = ddim_trials(model, model.recipe.sampler, [2, 5])
    assert [(t.sampler.eta, t.sampler.steps) for t in made[:-2]] == [
        (eta, steps) for eta in (0.0, 0.2, 0.5, 1.0) for steps in (2, 5)
    ]
    assert [(t.name, t.sampler.solver, t.sampler.steps) for t in made[-2:]] == [
        ("sigma-hat", "ancestral", 2),
        ("sigma-hat", "ancestral", 5),
    ]


def test_sigma_hat_adds_the_noise_of_the_sub_sequences_betas(run: Path) -> None:
    """DDIM section 5: the mean of eta = 1, and sqrt(beta') of the sub-sequence as the noise's std.

    In x_t's units beta' = 1 - abar_t / abar_s; the state here is x_t sqrt(1 + sigma^2).
    """
    model = load(run)
    hat = ddim_trials(model, model.recipe.sampler, [3])[-1].sampler
    own = replace(hat, variance="zero")
    grid = model.grid(hat)
    sigma, s = grid[0], grid[1]
    x = float(sigma) * noise_for(0, 2).normal((1, 8, 8), 0)
    noise = noise_for(0, 2).at(0)

    def step(config: SamplerConfig) -> torch.Tensor:
        denoise = model.bound(range(2), sampler=config).on(grid)
        with torch.no_grad():
            return model.solver(config).step(denoise, x, sigma, s, None, noise)[0].double()

    drawn = noise.between(x, Purpose.TRANSITION, float(sigma) ** -2, float(s) ** -2).double()
    keep = (s / sigma) ** 2
    small = float(s * (1 - keep).sqrt())
    abar, abar_s = 1 / (1 + float(sigma) ** 2), 1 / (1 + float(s) ** 2)
    large = math.sqrt((1 - abar / abar_s) / abar_s)
    mean = step(own) - small * drawn
    torch.testing.assert_close(step(hat), mean + large * drawn, rtol=1e-5, atol=1e-4)
    assert large > 1.02 * small


def test_what_is_listed_and_what_is_refused(capsys: Capture, run: Path) -> None:
    assert main(["compare", "--list"]) == 0
    assert "dpm++2m" in capsys.readouterr().out
    for arguments, reason in (
        (["compare"], "say which run"),
        (["compare", str(run), "--solvers", "heun", "--nfe", "4"], "cannot spend exactly 4"),
        (["compare", str(run), "-n", "0"], "-n must be at least 2"),
        (["compare", str(run), "--consistency", "--seed", "-1"], "--seed must be 0 or more"),
        (["compare", str(run), "--ddim-table", "--screen", "2"], "--screen cannot judge"),
        (["compare", str(run), "--truncation", "--rhos"], "at least one exponent"),
    ):
        assert main(arguments) == 2
        assert reason in capsys.readouterr().err


def test_the_truncation_error_is_what_a_step_misses_by() -> None:
    """On Gaussian data the flow multiplies x, and Euler's and Heun's steps do too."""
    c, grid = 0.25, karras(9, 0.05, 20.0)[:-1]
    data = GaussianOracle.diagonal([c] * 8)
    z = torch.randn(32, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    errors = step_errors(data, grid, (c + grid[0] ** 2).sqrt() * z, lambda steps: None)
    size = float(z.square().mean().sqrt())
    for i, (sigma, s) in enumerate(pairwise(grid.tolist())):
        x, exact = math.sqrt(c + sigma**2), math.sqrt(c + s**2)
        slope = x * sigma / (c + sigma**2)  # (x - D) / sigma
        euler = x + (s - sigma) * slope
        heun = x + (s - sigma) * (slope + euler * s / (c + s**2)) / 2
        for solver, end in enumerate((euler, heun)):
            assert float(errors[solver, i]) == pytest.approx(abs(end - exact) * size, rel=0.05)


def test_truncation_by_level_for_each_rho(tmp_path: Path, capsys: Capture, run: Path) -> None:
    words = ["compare", str(run), "--truncation", "--steps", "4", "--rhos", "3", "7", "-n", "4"]
    words += ["--threads", "1", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "at sigma" in capsys.readouterr().out
    kept = json.loads((tmp_path / "truncation.json").read_text())
    assert [(one["solver"], one["rho"]) for one in kept] == [
        (solver, rho) for rho in (3, 7) for solver in ("euler", "heun")
    ]
    for one in kept:
        grid = karras(4, rho=one["rho"])
        assert one["sigmas"] == pytest.approx(grid[:3].tolist())
        assert len(one["errors"]) == 3
    assert "svg" in (tmp_path / "truncation.html").read_text()
    assert main(words) == 0  # from the cache
    assert json.loads((tmp_path / "truncation.json").read_text()) == kept


def test_a_consistency_sheet_has_a_column_for_each_number_of_steps(
    tmp_path: Path, capsys: Capture, run: Path
) -> None:
    words = ["compare", str(run), "--consistency", "--threads", "1", "--out", str(tmp_path)]
    assert main([*words, "--nfe", "8", "2", "4", "-n", "3"]) == 0
    rows = json.loads((tmp_path / "consistency.json").read_text())
    assert [row["steps"] for row in rows] == [2, 4, 8]
    assert rows[0]["rmse"] > rows[1]["rmse"] > rows[2]["rmse"] == 0
    model = load(run)
    sheet = consistency(model, model.recipe.sampler, [2, 8], 3, Cache(tmp_path / "cache"))
    own = SamplerConfig(solver="ddim", steps=2, batch=4)
    (drawn,) = model.drawn(range(3), sampler=own)
    assert torch.equal(sheet.images[:, 0], drawn)
    capsys.readouterr()
    assert main([*words, "--nfe", "8"]) == 2
    assert "at least two numbers of steps" in capsys.readouterr().err
    assert main([*words, "--truncation"]) == 2
    assert "one by one" in capsys.readouterr().err


def test_ddims_table_says_who_wins(
    tmp_path: Path, capsys: Capture, run: Path, features: str
) -> None:
    words = ["compare", str(run), "--ddim-table", "--nfe", "2", "3", "-n", "10", "--threads", "1"]
    assert main([*words, "--features", features, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "comparison.json").read_text())["results"]
    last = {r["name"]: r["frechet"] for r in kept if r["nfe"] == 3}
    assert len(last) == 5
    best = min(last, key=lambda name: last[name])
    assert f"at S = 3: {best} is best" in printed
    assert [line.split()[-1] for line in printed.splitlines() if line.startswith("best ")] == [
        best.split()[-1]
    ]


def test_ten_images_are_timed_as_ten_however_many_were_drawn_before(
    tmp_path: Path, run: Path
) -> None:
    """The clock counts what was computed: a set half in the cache is not twice as fast."""
    model, cache = load(run), Cache(tmp_path)
    sampler = replace(model.recipe.sampler, batch=64)
    first = Drawn(model, 64, cache, sampler=sampler)
    first.piece(0)
    alone = first.seconds_per_image
    assert alone is not None
    more = Drawn(model, 128, cache, sampler=sampler)
    assert more.seconds_per_image == alone
    more.piece(1)
    both = more.seconds_per_image
    assert both is not None
    assert both > alone / 20
    assert Drawn(model, 10, Cache(tmp_path / "b")).seconds_per_image is None


def test_a_ladders_solvers_are_those_it_can_walk(tmp_path: Path) -> None:
    made = open_run(tmp_path / "run", array_file(tmp_path), small("ddpm-tiny", steps=2))
    for _ in made.steps():
        pass
    model = load(tmp_path / "run")
    named, left_out = trials(model, model.recipe.sampler, ["euler", "midpoint"], [5])
    assert [trial.name for trial in named] == ["euler"]
    assert "midpoint at 5: midpoint asks between the levels" in left_out[0]
    fixed, impossible = fixed_trials(model, model.recipe.sampler, [5])
    assert {"euler", "heun", "multistep 3"} <= {trial.name for trial in fixed}
    assert any(reason.startswith("midpoint: midpoint asks between") for reason in impossible)
    with pytest.raises(ConfigError, match="1 to 1000 steps, not 2000"):
        ddim_trials(model, model.recipe.sampler, [2000])
    fine = replace(model.recipe.sampler, grid="karras")
    named, left_out = trials(model, fine, ["euler"], [900])
    assert named == []
    assert "fall together" in left_out[0]


def test_fixed_solvers_are_plain_whatever_the_run_samples_by(run: Path) -> None:
    model = load(run)
    churned = SamplerConfig(solver="heun", churn=30.0, alpha=0.5)
    made, _ = fixed_trials(model, churned, [5])
    heun = next(trial for trial in made if trial.name == "heun")
    assert (heun.sampler.churn, heun.sampler.alpha) == (0.0, 1.0)


def test_methods_that_are_one_at_few_steps_count_once() -> None:
    own = SamplerConfig()
    named = [Trial(name, 3, replace(own, points=0, steps=n)) for n, name in enumerate("abcd", 1)]
    misses = dict(zip(named, (0.2, 0.1, 0.1, 0.3), strict=True))
    assert [trial.name for trial in best_of(misses, 2)] == ["b", "a"]
    assert [trial.name for trial in best_of(misses, 1, always=("d",))] == ["b", "d"]
