"""sfumato tune: what it finds follows the teacher best, is stored, and is what --nfe then means."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recipe_helpers import array_file, open_run, small
from sfumato.cli import main
from sfumato.cli.sampler_options import CommonOptions, SamplerOptions
from sfumato.errors import ConfigError
from sfumato.noise import F64
from sfumato.recipes import tuning
from sfumato.recipes.model import load
from sfumato.recipes.sampler_config import SamplerConfig, SolverTable
from sfumato.recipes.tuned import Tuned, load_tuned, path_of, samplers, save_tuned
from sfumato.sampling import generate
from sfumato.solvers import NonStationary

Capture = pytest.CaptureFixture[str]
TABLE = SolverTable((80.0, 1.0, 0.0), (0.0125, 0.0), ((0.9875,), (0.1, 0.9)))
QUICK = ["--latents", "32", "--held-out", "16", "--iterations", "12", "--teacher-steps", "20"]


def trained(folder: Path, name: str = "edm-tiny") -> Path:
    made = open_run(folder / "run", array_file(folder), small(name, steps=12))
    for _ in made.steps():
        pass
    return folder / "run"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(tmp_path: Path, original: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def command(run: Path, *more: str) -> list[str]:
    return ["tune", str(run), "--threads", "1", *QUICK, "--screen", "16", "-n", "0", *more]


def test_the_tuned_sampler_follows_best_and_is_what_nfe_means(
    capsys: Capture, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command(run, "--nfe", "3", "5")) == 0
    printed = capsys.readouterr().out
    assert "the teacher's own error" in printed
    kept = json.loads((run / "tuning" / "tuning.json").read_text())
    for nfe in (3, 5):
        missed = {r["name"]: r["miss"] for r in kept["results"] if r["nfe"] == nfe}
        assert min(missed, key=lambda name: missed[name]) == "tuned"
        assert {"euler", "heun", "ipndm 3", "unipc 2"} <= missed.keys()
    model = load(run)
    found, notes = load_tuned(model)
    assert (sorted(found), notes) == ([3, 5], [])

    assert main(["sample", str(run), "-n", "3", "--nfe", "3", "--threads", "1"]) == 0
    assert "with tuned, 3 steps" in capsys.readouterr().out
    table = found[3].sampler.table
    assert table is not None
    solver = NonStationary(table.sigmas, table.start_weights, table.weights)
    grid = torch.tensor(table.sigmas, dtype=F64)
    (x,) = generate(model.denoiser, solver, grid, (1, 8, 8), range(3), batch=4)
    (drawn,) = model.drawn(range(3), sampler=replace(found[3].sampler, batch=4))
    assert torch.equal(x, drawn)

    def never(self: object) -> None:
        raise AssertionError("taught again")

    monkeypatch.setattr(tuning.Tuner, "walk", never)
    assert main(command(run, "--nfe", "3", "5")) == 0
    assert "tuned before" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="taught again"):
        main(command(run, "--nfe", "3", "--force"))
    with pytest.raises(AssertionError, match="taught again"):  # another search
        main(command(run, "--nfe", "3", "--levels-only"))


def test_levels_alone_take_the_best_fixed_solver(capsys: Capture, run: Path) -> None:
    assert main(command(run, "--nfe", "4", "--levels-only", "--screen", "0")) == 0
    printed = capsys.readouterr().out
    found, _ = load_tuned(load(run))
    about = found[4].about
    assert about["found"].startswith("levels of ")
    assert f"4 calls: {about['found']}" in printed


def test_a_ladders_levels_stay_its_own(tmp_path: Path) -> None:
    run = trained(tmp_path, "ddpm-tiny")
    assert main(command(run, "--nfe", "4", "--screen", "0")) == 0
    model = load(run)
    found, _ = load_tuned(model)
    table = found[4].sampler.table
    assert table is not None
    levels = model.denoiser.range.levels
    assert levels is not None
    assert all(float((levels - sigma).abs().min()) == 0 for sigma in table.sigmas[:-1])
    assert model.sample(2, sampler=found[4].sampler).shape == (2, 1, 8, 8)


def test_compare_takes_the_tuned_one_and_screens(capsys: Capture, run: Path) -> None:
    assert main(command(run, "--nfe", "3", "--screen", "0")) == 0
    words = ["compare", str(run), "--threads", "1", "-n", "20", "--repeats", "2"]
    words += ["--solvers", "euler", "ipndm", "ancestral", "tuned", "--nfe", "3", "4", "--screen"]
    assert main([*words, "1"]) == 0
    printed = capsys.readouterr().out
    assert "left out: tuned at 4: sfumato tune has not been run for it" in printed
    assert "ancestral draws noise" in printed
    kept = json.loads((run / "comparison" / "comparison.json").read_text())["results"]
    measured = {(r["name"], r["nfe"]): r for r in kept if r["frechet"] is not None}
    missed = {(r["name"], r["nfe"]): r["miss"] for r in kept}
    for nfe in (3, 4):
        fixed = {name: miss for (name, n), miss in missed.items() if n == nfe and name != "tuned"}
        assert {name for name, n in measured if n == nfe} - {"tuned"} == {min(fixed, key=fixed.get)}  # type: ignore[arg-type]
    assert ("tuned", 3) in measured
    for result in measured.values():
        assert len(result["each"]) == 2
        assert result["frechet"] == pytest.approx(np.mean(result["each"]))
        spread = abs(result["each"][0] - result["each"][1]) / 2
        assert result["error"] == pytest.approx(spread)


def test_options_choose_between_tuned_and_fixed() -> None:
    own = SamplerConfig(batch=7)
    known = {6: SamplerConfig(solver="tuned", steps=2, table=TABLE)}

    def chosen(**given: object) -> SamplerConfig:
        return SamplerOptions(**given).over(own, known)  # type: ignore[arg-type]

    assert chosen(nfe=6) == replace(known[6], batch=7)
    assert chosen(nfe=6, batch=3, solver="tuned") == replace(known[6], batch=3)
    assert chosen(nfe=6, solver="euler").solver == "euler"
    assert chosen(nfe=6, solver="euler").table is None
    assert chosen(steps=6) == replace(own, steps=6)
    assert chosen(nfe=5).solver == "heun"
    with pytest.raises(ConfigError, match="cannot spend exactly 6"):  # heun, as guided
        chosen(nfe=6, guidance=2.0)
    with pytest.raises(ConfigError, match="guidance or clipping would make it another"):
        chosen(nfe=6, solver="tuned", guidance=2.0)
    with pytest.raises(ConfigError, match="rho would make it another"):
        chosen(nfe=6, solver="tuned", rho=5.0)
    with pytest.raises(ConfigError, match=r"tuned for 8 calls \(tuned: 6\): sfumato tune"):
        chosen(nfe=8, solver="tuned")
    with pytest.raises(ConfigError, match="unnamed number of calls"):
        chosen(solver="tuned")
    assert CommonOptions(rho=5.0).over(own, known) == replace(own, rho=5.0)
    with pytest.raises(ConfigError, match="what sfumato tune found"):
        SamplerConfig(solver="tuned")
    with pytest.raises(ConfigError, match="of 2 steps cannot take 3"):
        SamplerConfig(solver="tuned", steps=3, table=TABLE)


def test_a_stored_sampler_belongs_to_its_weights(run: Path) -> None:
    model = load(run)
    tuned = Tuned(6, SamplerConfig(solver="tuned", steps=2, table=TABLE), {"seed": 3})
    path = save_tuned(model, tuned)
    assert model.path is not None
    assert path == path_of(model.path, 6)
    assert load_tuned(model) == ({6: tuned}, [])
    assert samplers({6: tuned}) == {6: tuned.sampler}
    assert load_tuned(load(run, weights="network")) == ({}, [])
    with pytest.raises(ConfigError, match="a saved model"):
        save_tuned(replace(model, path=None), tuned)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("format = 1", "format = 2"),
        ("nfe = 6", "nfe = ["),
        ('solver = "tuned"', 'solver = "heun"'),
        ("steps = 2", "steps = 3"),
        ("rho = 7.0", "row = 7.0"),
    ],
)
def test_a_damaged_one_is_passed_over_and_named(
    capsys: Capture, run: Path, old: str, new: str
) -> None:
    model = load(run)
    path = save_tuned(
        model, Tuned(6, SamplerConfig(solver="tuned", steps=2, table=TABLE), {"seed": 3})
    )
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    found, notes = load_tuned(model)
    assert found == {}
    assert len(notes) == 1
    assert str(path) in notes[0]
    assert main(["sample", str(run), "-n", "1", "--threads", "1"]) == 0
    assert "note: passed over" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--nfe", "30"], "30 calls cannot be tuned: the teacher has 20 levels"),
        (["--nfe", "0"], "each at least 1"),
        (["--latents", "0"], "--latents must be at least 1"),
        (["--iterations", "-1"], "--iterations must be 0 or more"),
        (["--guidance", "2"], "guidance 2 needs a model"),
        (["-n", "1"], "-n not 1"),
    ],
)
def test_bad_words_are_refused(capsys: Capture, run: Path, more: list[str], reason: str) -> None:
    assert main(command(run, *more)) == 2
    assert reason in capsys.readouterr().err
