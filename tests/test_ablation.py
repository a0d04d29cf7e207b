"""Ablations of the papers: what their cells are, and that they are trained, measured, resumed."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from recipe_helpers import array_file
from sfumato.cli import main
from sfumato.errors import ConfigError
from sfumato.networks.config import UNetConfig
from sfumato.noise import VP
from sfumato.recipes import run as running
from sfumato.recipes.ablations import ddpm_ablation, edm_ablation, scaling
from sfumato.recipes.ablations.edm import EDM_ROWS
from sfumato.recipes.config import Recipe
from sfumato.recipes.evaluation.outcome import number
from sfumato.recipes.plan import distribution_of
from test_compare import Pooled

Capture = pytest.CaptureFixture[str]
LENGTH = 20_000


def column(name: str) -> dict[str, Recipe]:
    return {cell.row: cell.recipe for cell in edm_ablation(LENGTH, columns=[name]).cells}


def changed(a: Recipe, b: Recipe) -> set[str]:
    return {f.name for f in fields(a) if getattr(a, f.name) != getattr(b, f.name)} - {"name"}


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_each_row_changes_what_edms_table_says(name: str) -> None:
    rows = column(name)
    assert list(rows) == list(EDM_ROWS)
    assert changed(rows["A"], rows["B"]) == {"optimizer", "ema", "batch", "network"}
    assert changed(rows["B"], rows["C"]) == {"network"}
    assert {"predicts", "process"} <= changed(rows["C"], rows["D"])
    assert changed(rows["C"], rows["D"]) <= {"predicts", "process", "sampler"}
    assert {"objective", "noise"} <= changed(rows["D"], rows["E"])
    assert changed(rows["D"], rows["E"]) <= {"objective", "noise", "process"}
    assert changed(rows["E"], rows["F"]) == {"augment"}
    a, b, c = (rows[row].network for row in "ABC")
    assert isinstance(a, UNetConfig)
    assert isinstance(b, UNetConfig)
    assert isinstance(c, UNetConfig)
    assert (a.multipliers, b.multipliers, c.multipliers) == ((1, 2, 2, 2), (1, 2, 2, 2), (2, 2, 2))
    assert (a.dropout, b.dropout) == (0.1, 0.13)


def test_what_is_counted_in_images_keeps_its_share_of_the_training() -> None:
    rows = column("vp")
    assert rows["B"].optimizer.ramp_images / LENGTH == pytest.approx(10e6 / 200e6)
    assert rows["B"].ema.halflife_images / LENGTH == pytest.approx(0.5 / 200, rel=0.02)
    assert rows["A"].optimizer.ramp_images / LENGTH == pytest.approx(5e3 / 1.3e6, rel=0.02)
    half_life = rows["A"].batch * torch.tensor(0.5).log() / torch.tensor(rows["A"].ema.decay).log()
    published = 128 * torch.tensor(0.5).log() / torch.tensor(0.9999).log()
    assert float(half_life) / LENGTH == pytest.approx(float(published) / (1.3e6 * 128), rel=0.01)


def test_the_fourth_row_keeps_the_noise_levels_of_vp() -> None:
    distribution = distribution_of(column("vp")["D"])
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    epsilon = VP().epsilon
    expected = VP().sigma(epsilon + (1 - epsilon) * u)
    torch.testing.assert_close(distribution.quantile(u), expected)


def test_what_the_table_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown row 'G'; known: A, B"):
        edm_ablation(LENGTH, rows=["G"])
    with pytest.raises(ConfigError, match="unknown column 'edm'"):
        edm_ablation(LENGTH, columns=["edm"])
    with pytest.raises(ConfigError, match="--images must be at least 1"):
        edm_ablation(0)


def test_ddpms_table_has_six_cells_that_differ_as_it_says() -> None:
    cells = {(c.row, c.column): c.recipe for c in ddpm_ablation(LENGTH, levels=50).cells}
    assert len(cells) == 6
    for column in ("mean", "noise"):
        learned, fixed, simple = (
            cells[row, column] for row in ("bound-learned", "bound-fixed", "simple")
        )
        assert changed(learned, fixed) == {"variance"}
        assert changed(fixed, simple) == {"objective"}
        assert (learned.variance, fixed.variance) == ("free", "unit-gaussian")
        assert (fixed.objective, fixed.predicts) == ("bound", column)
    assert changed(cells["bound-fixed", "mean"], cells["bound-fixed", "noise"]) == {"predicts"}
    assert cells["simple", "mean"].objective == "mean"
    assert {c.process.steps for c in cells.values()} == {50}


def test_a_scaling_run_is_looked_at_in_powers_of_two_of_its_training() -> None:
    ablation = scaling(1000, widths=[4, 8])
    assert list(ablation.runs) == ["width-4", "width-8"]
    steps = [cell.step for cell in ablation.cells if cell.column == "width-8"]
    assert steps == [4, 8, 16, 32]  # of 32 images: 1,024, the first whole number from 1,000
    assert all(step is not None and step % ablation.save_every == 0 for step in steps)
    assert {cell.recipe.images for cell in ablation.cells} == {1024}
    assert [c.recipe.network.width for c in ablation.runs.values()] == [4, 8]
    with pytest.raises(ConfigError, match="--widths must be different"):
        scaling(1000, widths=[4, 4])


@pytest.mark.parametrize("which", ["ddpm", "scaling"])
def test_bits_per_dimension_are_measured_too(which: str, tmp_path: Path, capsys: Capture) -> None:
    features = tmp_path / "pooled.pt"
    torch.jit.script(Pooled()).save(str(features))
    out = tmp_path / "out"
    words = ["ablate", which, "--data", str(array_file(tmp_path)), "--layout", "NHWC"]
    words += ["--images", "256", "-n", "20", "--threads", "1", "--levels", "25"]
    words += ["--features", str(features), "--out", str(out), "--width", "8", "--widths", "4"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    cells = json.loads((out / "ablation.json").read_text())["cells"]
    assert len(cells) == (6 if which == "ddpm" else 4)
    for cell in cells:
        bits = f"{cell['bits']['bits']:.4f} ± {cell['bits']['half_width']:.4f}"
        assert bits in printed.partition("Bits per dimension")[2]
    assert len({cell["bits"]["bits"] for cell in cells}) == len(cells)
    page = (out / "ablation.html").read_text()
    assert ("By training time" in page) == (which == "scaling")
    assert [c["images"] for c in cells[:2]] == ([256, 256] if which == "ddpm" else [32, 64])


def test_the_command_trains_measures_and_goes_on(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = tmp_path / "pooled.pt"
    torch.jit.script(Pooled()).save(str(features))
    out = tmp_path / "out"
    words = ["ablate", "edm", "--data", str(array_file(tmp_path)), "--layout", "NHWC"]
    words += ["--images", "64", "--width", "8", "-n", "20", "--threads", "1"]
    words += ["--features", str(features), "--out", str(out), "--columns", "vp", "--rows"]
    assert main([*words, "F"]) == 0
    assert "1 of 1: F-vp" in capsys.readouterr().out
    assert main([*words, "F", "A"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 2: A-vp, baseline" in printed
    assert "F-vp, +" not in printed.partition("Fréchet distance\n")[0]  # trained before
    kept = json.loads((out / "ablation.json").read_text())["cells"]
    assert [(c["row"], c["column"], c["images"]) for c in kept] == [
        ("A", "vp", 64),
        ("F", "vp", 64),
    ]
    assert all(f"{number(c['frechet'])} ± {c['error']:.2g}" in printed for c in kept)
    assert kept[0]["frechet"] != kept[1]["frechet"]
    assert "training configuration" in (out / "ablation.html").read_text()

    def never(*arguments: object, **more: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(running.Run, "open", never)
    assert main([*words, "F", "A"]) == 0
    capsys.readouterr()
    words[words.index("64")] = "128"
    assert main([*words, "A"]) == 2
    assert "another --out" in capsys.readouterr().err
    (out / "B-vp").mkdir()
    assert main([*words, "B"]) == 2
    assert "holds no run: remove it" in capsys.readouterr().err
    assert main([*words, "C", "--features", "bogus"]) == 2
    assert "bogus" in capsys.readouterr().err
    assert not (out / "C-vp").exists()
    assert main(["ablate", "edm"]) == 2
    assert "--data FOLDER" in capsys.readouterr().err
