"""sfumato tune: what it finds follows the teacher best, is stored, and is what --nfe then means."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recipe_helpers import QUIET, array_file, open_run, pixels, small
from sfumato.cli import main
from sfumato.cli.sampler_options import CommonOptions, SamplerOptions
from sfumato.errors import ConfigError
from sfumato.noise import F64
from sfumato.recipes import tuning
from sfumato.recipes.loading import load
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
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
    assert main(command(run, "--nfe", "4")) == 0
    kept = json.loads((run / "tuning" / "tuning.json").read_text())
    assert any("kutta3 asks between" in reason for reason in kept["left_out"])
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
    with pytest.raises(ConfigError, match="clipping, mirror or range would make it another"):
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
    tuned = Tuned(2, SamplerConfig(solver="tuned", steps=2, table=TABLE), {"seed": 3})
    path = save_tuned(model, tuned)
    assert model.path is not None
    assert path == path_of(model.path, 2)
    assert load_tuned(model) == ({2: tuned}, [])
    assert samplers({2: tuned}) == {2: tuned.sampler}
    assert load_tuned(load(run, weights="network")) == ({}, [])
    with pytest.raises(ConfigError, match="a saved model"):
        save_tuned(replace(model, path=None), tuned)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("format = 1", "format = 2"),
        ("nfe = 2", "nfe = ["),
        ("nfe = 2", "nfe = 3"),
        ("    1.0,\n", "    90.0,\n"),
        ("    1.0,\n", ""),
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
        model, Tuned(2, SamplerConfig(solver="tuned", steps=2, table=TABLE), {"seed": 3})
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
        (["--screen", "8", "-n", "20", "--features", "efficentnet"], "efficentnet"),
        (["--screen", "8", "-n", "20", "--data", "/nowhere"], "nowhere"),
        (["--screen", "8", "-n", "20", "--repeats", "0"], "repeats must be 1 or more"),
        (["--nfe", "30"], "30 calls cannot be tuned: the teacher has 20 levels"),
        (["--nfe", "0"], "each at least 1"),
        (["--latents", "0"], "--latents must be at least 1"),
        (["--iterations", "-1"], "--iterations must be 0 or more"),
        (["--guidance", "2"], "guidance 2 needs a model"),
        (["-n", "1"], "-n not 1"),
    ],
)
def test_bad_words_are_refused_before_any_work(
    capsys: Capture, run: Path, more: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: object) -> None:
        raise AssertionError("taught first")

    monkeypatch.setattr(tuning.Tuner, "walk", never)
    assert main(command(run, *more)) in (1, 2)
    assert reason in capsys.readouterr().err


def test_another_search_is_another(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(command(run, "--nfe", "3", "--screen", "0")) == 0

    def never(self: object) -> None:
        raise AssertionError("taught again")

    monkeypatch.setattr(tuning.Tuner, "walk", never)
    assert main(command(run, "--nfe", "3", "--screen", "0", "--batch", "2")) == 0
    for other in (["--held-out", "3"], ["--seed", "1"], ["--clip"]):
        with pytest.raises(AssertionError, match="taught again"):
            main(command(run, "--nfe", "3", "--screen", "0", *other))


def test_levels_stay_where_the_network_was_trained(run: Path) -> None:
    """Nearly as many calls as the teacher has levels: none may move below the lowest."""
    words = ["--nfe", "18", "--screen", "0", "--iterations", "30"]
    assert main(command(run, *words)) == 0
    found, _ = load_tuned(load(run))
    table = found[18].sampler.table
    assert table is not None
    assert min(table.sigmas[:-1]) >= 0.002


def test_the_range_tuned_for_is_known_by_name_and_by_default(run: Path) -> None:
    assert main(command(run, "--nfe", "3", "--screen", "0", "--sigma-max", "40")) == 0
    model = load(run)
    known = samplers(load_tuned(model)[0])
    own = model.recipe.sampler
    for options in (SamplerOptions(nfe=3), SamplerOptions(nfe=3, sigma_max=40.0)):
        assert options.over(own, known).solver == "tuned"
    assert SamplerOptions(nfe=3, sigma_max=50.0).over(own, known).solver == "heun"
    assert float(model.grid(known[3])[0]) == pytest.approx(40.0)


def test_a_tuned_sampler_completes_nothing_and_inverts_nothing(
    capsys: Capture, run: Path, tmp_path: Path
) -> None:
    assert main(command(run, "--nfe", "3", "--screen", "0")) == 0
    sample = ["sample", str(run), "--nfe", "3", "-n", "1", "--threads", "1", "--share-latent", "1"]
    assert main(sample) == 2
    assert "draws no noise" in capsys.readouterr().err


def test_compare_takes_a_tuned_one_for_its_own_denoiser_only(
    capsys: Capture, run: Path, tmp_path: Path
) -> None:
    assert main(command(run, "--nfe", "3", "--screen", "0")) == 0
    words = ["compare", str(run), "--threads", "1", "-n", "20", "--nfe", "3", "--solvers", "euler"]
    assert main([*words, "tuned", "--clip"]) == 0
    assert "left out: tuned at 3: it was tuned for another" in capsys.readouterr().out
    assert main([*words, "tuned", "--batch", "100", "--screen", "1"]) == 0
    assert "tuned" in capsys.readouterr().out.partition("trajectory error")[2]


def test_a_guided_model_of_classes_is_tuned_over_all_of_them(tmp_path: Path) -> None:
    base = small(steps=4)
    recipe = replace(base, network=replace(base.network, label_dropout=0.2))
    folder = tmp_path / "classes"
    np.savez(tmp_path / "images.npz", images=pixels(), labels=np.arange(12) % 3)
    made = Run.open(
        RunConfig(
            recipe,
            DataConfig(data=str(tmp_path / "images.npz"), layout="NHWC", classes=True),
            QUIET,
        ),
        folder,
    )
    for _ in made.steps():
        pass
    assert main(command(folder, "--nfe", "3", "--guidance", "2")) == 0
    kept = json.loads((folder / "tuning" / "tuning.json").read_text())["results"]
    missed = {r["name"]: r["miss"] for r in kept if r["nfe"] == 3}
    assert min(missed, key=lambda name: missed[name]) == "tuned"
    model = load(folder)
    known = samplers(load_tuned(model)[0])
    own = model.recipe.sampler
    assert SamplerOptions(nfe=3, guidance=2.0).over(own, known).solver == "tuned"
    assert SamplerOptions(nfe=3).over(own, known).solver == "heun"
