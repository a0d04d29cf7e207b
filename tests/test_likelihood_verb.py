"""sfumato likelihood: the library's numbers, image by image, resumed, and told with their error."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bar_helpers import keep_bars
from flow_helpers import F64
from likelihood_helpers import Known
from recipe_helpers import array_file, open_run, pixels, small
from sfumato.cli import main
from sfumato.data.pixels import to_model
from sfumato.gaussian import Gaussian, tanh_log_mass
from sfumato.likelihood import elbo, fit_decoder_var
from sfumato.parameterization import unit_gaussian
from sfumato.randomness import Noise, derive_seed, noise_for
from sfumato.recipes import likelihood as work
from sfumato.recipes.likelihood_page import per_level
from sfumato.recipes.loading import load

Capture = pytest.CaptureFixture[str]


def trained(folder: Path, name: str) -> Path:
    recipe = small(name, steps=4)
    if recipe.process.kind == "ladder":
        recipe = replace(recipe, process=replace(recipe.process, steps=12, betas="cosine"))
    if recipe.sampler.grid != "karras":
        recipe = replace(recipe, sampler=replace(recipe.sampler, steps=3))
    made = open_run(folder / "run", array_file(folder), recipe)
    for _ in made.steps():
        pass
    return folder / "run"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("edm-tiny", "iddpm-tiny")
    return {name: trained(tmp_path_factory.mktemp(name), name) for name in names}


@pytest.fixture
def run(tmp_path: Path, originals: dict[str, Path]) -> Path:
    return Path(shutil.copytree(originals["iddpm-tiny"], tmp_path / "run"))


def command(run: Path, *more: str) -> list[str]:
    return ["likelihood", str(run), "-n", "12", "--threads", "1", "--flow", "3", *more]


def test_it_says_what_the_bound_says_of_each_image(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command(run, "--all-levels", "--per-image", "--no-gap")) == 0
    printed = capsys.readouterr().out
    model = load(run)
    x0 = to_model(pixels().transpose(0, 3, 1, 2), model.format)
    noise = Noise(tuple(derive_seed(0, "bound", i) for i in range(12)))
    levels = model.denoiser.range.levels
    assert levels is not None
    truth = elbo(model.denoiser, x0, levels.flip(0), noise)
    with (run / "likelihood" / "per-image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["bound"]) for row in rows] == pytest.approx(
        truth.bits_per_dim.tolist(), abs=2e-6
    )
    for row in rows:
        parts = sum(float(row[name]) for name in ("prior", "levels", "decoder"))
        assert parts == pytest.approx(float(row["bound"]), abs=5e-6)
    assert [Path(row["name"]).name for row in rows] == [f"images.npy[{i}]" for i in range(12)]
    assert [bool(row["flow"]) for row in rows] == [True] * 3 + [False] * 9
    kept = json.loads((run / "likelihood" / "likelihood.json").read_text())
    (found,) = kept["sets"]
    bits = truth.bits_per_dim
    assert found["bound"]["bits"] == pytest.approx(float(bits.mean()), abs=1e-9)
    half = 1.96 * float(bits.std()) / math.sqrt(12)
    assert found["bound"]["half_width"] == pytest.approx(half, rel=1e-6)
    assert f"{float(bits.mean()):.4f} ± {half:.4f}" in printed
    curve = kept["rate_distortion"]
    assert curve["bits_per_dim"][-1] + curve["decoder_bits_per_dim"] == pytest.approx(
        found["bound"]["bits"], rel=1e-6
    )

    def never(*arguments: object, **more: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(work, "elbo", never)
    monkeypatch.setattr(work, "flow_log_prob", never)
    assert main(command(run, "--all-levels", "--no-gap", "--force")) == 0
    again = json.loads((run / "likelihood" / "likelihood.json").read_text())
    assert again["sets"] == kept["sets"]


def test_one_image_has_a_number_and_no_interval(run: Path, capsys: Capture) -> None:
    words = ["likelihood", str(run), "-n", "4", "--threads", "1", "--draws", "2", "--per-image"]
    assert main([*words, "--flow", "1", "--no-gap"]) == 0

    def never(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    text = (run / "likelihood" / "likelihood.json").read_text()
    (found,) = json.loads(text, parse_constant=never)["sets"]
    with (run / "likelihood" / "per-image.csv").open() as file:
        first = next(csv.DictReader(file))
    assert found["flow"] == {
        "bits": pytest.approx(float(first["flow"]), abs=1e-6), "half_width": None, "n": 1
    }  # fmt: skip
    assert found["bound"]["half_width"] > 0
    printed = capsys.readouterr().out
    flow = next(line for line in printed.splitlines() if line.split()[:1] == ["flow"])
    assert flow.split() == ["flow", f"{found['flow']['bits']:.4f}", "(1", "image)"]
    assert "nan" not in printed
    assert ">nan<" not in (run / "likelihood" / "likelihood.html").read_text()


def test_the_bar_ends_at_its_total(
    originals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = keep_bars(monkeypatch, "tqdm.tqdm")
    other = tmp_path / "other.npy"
    np.save(other, pixels(seed=5))
    words = ["likelihood", str(originals["iddpm-tiny"]), "-n", "4", "--flow", "1", "--draws", "2"]
    where = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    assert main([*words, "--threads", "1", "--data", str(other), *where]) == 0
    (bar,) = bars  # 4 bounds and a density, then 4 bounds of training images
    assert (bar.n, bar.total) == (9, 9)


def test_drawn_levels_agree_with_all_of_them(run: Path) -> None:
    assert main(command(run, "--all-levels", "--no-gap", "--flow", "0")) == 0
    whole = json.loads((run / "likelihood" / "likelihood.json").read_text())["sets"][0]
    values: list[float] = []
    for seed in range(8):
        words = command(run, "--draws", "6", "--no-gap", "--flow", "0", "--force")
        assert main([*words, "--seed", str(seed)]) == 0
        part = json.loads((run / "likelihood" / "likelihood.json").read_text())["sets"][0]
        values.append(part["levels"]["bits"])
    error = float(np.std(values, ddof=1)) / 8**0.5
    assert np.mean(values) == pytest.approx(whole["levels"]["bits"], abs=5 * error)


def test_a_model_without_a_ladder_has_its_decoder_fitted(
    originals: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "other.npy"
    np.save(other, pixels(seed=5))
    words = command(originals["edm-tiny"], "--data", str(other), "--draws", "4")
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "the decoder's deviation, fitted on training images" in printed
    assert "gap, test images less training images" in printed
    kept = json.loads((tmp_path / "out" / "likelihood.json").read_text())
    assert [found["name"] for found in kept["sets"]] == ["test images", "training images"]
    assert "rate_distortion" not in kept
    assert "svg" in (tmp_path / "out" / "likelihood.html").read_text()


def test_a_sub_sequence_another_variance_and_the_published_decoder(
    tmp_path: Path, capsys: Capture
) -> None:
    recipe = small("ddpm-tiny", steps=2)
    recipe = replace(recipe, process=replace(recipe.process, steps=30), variance="zero")
    made = open_run(tmp_path / "run", array_file(tmp_path), recipe)
    for _ in made.steps():
        pass
    model = load(tmp_path / "run")
    x0 = to_model(pixels().transpose(0, 3, 1, 2), model.format)
    noise = Noise(tuple(derive_seed(0, "bound", i) for i in range(12)))
    levels = model.denoiser.range.levels
    assert levels is not None
    even = torch.linspace(float(levels[0].log()), float(levels[-1].log()), 4, dtype=F64)
    nearest = (levels.log()[:, None] - even).abs().argmin(0)
    assert (nearest.diff() > 0).all()
    grid = levels[nearest].flip(0)
    large = replace(model.denoiser, variance=unit_gaussian)
    truths = {
        (): elbo(model.denoiser, x0, grid, noise),
        ("--variance", "unit-gaussian"): elbo(large, x0, grid, noise),
        ("--tanh",): elbo(model.denoiser, x0, grid, noise, mass=tanh_log_mass),
    }
    for more, truth in truths.items():
        words = command(tmp_path / "run", "--steps", "4", "--all-levels", "--no-gap", "--force")
        assert main([*words, *more]) == 0
        kept = json.loads((tmp_path / "run" / "likelihood" / "likelihood.json").read_text())
        mean = float(truth.bits_per_dim.mean())
        assert kept["sets"][0]["bound"]["bits"] == pytest.approx(mean, rel=1e-6)
        assert f"{mean:.4f}" in capsys.readouterr().out
    assert main(command(tmp_path / "run", "--steps", "31", "--force")) == 2
    assert "ladder has 30 levels, not 31" in capsys.readouterr().err
    assert main(command(tmp_path / "run", "--steps", "1", "--force")) == 2
    assert "needs two levels at least" in capsys.readouterr().err


def test_what_is_in_the_cache_is_of_these_levels_only(tmp_path: Path) -> None:
    """Numbers of levels whose first two and whose count are the same are other levels still."""
    recipe = small("ddpm-tiny", steps=2)
    made = open_run(tmp_path / "run", array_file(tmp_path), recipe)
    for _ in made.steps():
        pass
    out = tmp_path / "run" / "likelihood" / "likelihood.json"
    grids = {count: work.bound_grid(load(tmp_path / "run").denoiser.range, count).tolist()
             for count in (65, 66)}  # fmt: skip
    assert grids[65][:2] == grids[66][:2]
    assert len(grids[65]) == len(grids[66])
    assert grids[65] != grids[66]
    found: list[float] = []
    for count in (65, 66):
        words = command(tmp_path / "run", "--steps", str(count), "--all-levels", "--no-gap")
        assert main([*words, "--flow", "0", "--force"]) == 0
        found.append(json.loads(out.read_text())["sets"][0]["levels"]["bits"])
    assert found[0] != found[1]


def test_a_learned_variance_is_not_replaced(run: Path, capsys: Capture) -> None:
    assert main(command(run, "--variance", "zero")) == 2
    assert "has learned its variance" in capsys.readouterr().err


def test_images_of_16_bits_have_bins_of_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "deep.npy"
    np.save(path, pixels(dtype="uint16"))
    recipe = small("iddpm-tiny", steps=2)
    recipe = replace(recipe, process=replace(recipe.process, steps=8))
    made = open_run(tmp_path / "run", path, recipe)
    for _ in made.steps():
        pass
    assert main(command(tmp_path / "run", "--all-levels", "--no-gap", "--flow", "0")) == 0
    kept = json.loads((tmp_path / "run" / "likelihood" / "likelihood.json").read_text())
    model = load(tmp_path / "run")
    x0 = to_model(pixels(dtype="uint16").transpose(0, 3, 1, 2), model.format)
    noise = Noise(tuple(derive_seed(0, "bound", i) for i in range(12)))
    levels = model.denoiser.range.levels
    assert levels is not None
    truth = elbo(model.denoiser, x0, levels.flip(0), noise, half_bin=1 / 65535)
    bits = float(truth.bits_per_dim.mean())
    assert kept["sets"][0]["bound"]["bits"] == pytest.approx(bits, rel=1e-6)


def test_the_fitted_variance_is_the_mean_squared_error_where_bins_are_fine() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 65536, (4, 4096), generator=generator).double() / 32767.5 - 1
    wrong = 0.02 * torch.randn(4, 4096, dtype=F64, generator=generator)

    def oracle(x: torch.Tensor, sigma: torch.Tensor) -> Gaussian:
        return Gaussian(x0 + wrong, torch.zeros((), dtype=F64))

    known = Known(oracle, 0.001, 80.0, 6400.0)
    fitted = fit_decoder_var(
        known, x0, torch.tensor(0.001, dtype=F64), noise_for(0, 4), half_bin=1 / 65535
    )
    assert fitted == pytest.approx(float(wrong.square().mean()), rel=0.01)


def test_levels_are_shared_out_to_bins_by_their_sum(run: Path) -> None:
    model = load(run)
    levels = model.denoiser.range.levels
    assert levels is not None
    x0 = to_model(pixels().transpose(0, 3, 1, 2), model.format)
    bound = elbo(model.denoiser, x0, levels.flip(0), noise_for(0, 12))
    at, cost = per_level(bound, bins=1)
    width = float((bound.sigmas[0] / bound.sigmas[-1]).log())
    total = float(bound.levels.sum(1).mean()) / (64 * math.log(2))
    assert len(at) == 1
    assert float(cost) * width == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["-n", "1"], "-n must be at least 2"),
        (["--draws", "0"], "--draws must be at least 1"),
        (["--tolerance", "0"], "--tolerance must be above 0"),
        (["--data", "/nowhere"], "nowhere"),
    ],
)
def test_bad_words_are_refused(capsys: Capture, run: Path, more: list[str], reason: str) -> None:
    assert main(command(run, *more)) in (1, 2)
    assert reason in capsys.readouterr().err


def test_bad_images_and_taken_folders_are_refused(
    capsys: Capture, run: Path, tmp_path: Path
) -> None:
    deep = tmp_path / "deep.npy"
    np.save(deep, pixels(dtype="uint16"))
    assert main(command(run, "--data", str(deep))) == 1
    assert "bit depths are not converted" in capsys.readouterr().err
    wide = tmp_path / "wide.npy"
    np.save(wide, pixels((1, 8, 12)))
    assert main(command(run, "--data", str(wide), "--flow", "0", "--draws", "2")) == 1
    assert "bring them there with --size" in capsys.readouterr().err
    words = command(run, "--data", str(wide), "--flow", "0", "--draws", "2", "--size", "8", "8")
    assert main([*words, "--out", str(tmp_path / "cropped")]) == 0
    capsys.readouterr()
    (run / "likelihood").mkdir()
    (run / "likelihood" / "likelihood.json").write_text("{}")
    assert main(command(run)) == 2
    assert "--force replaces them" in capsys.readouterr().err


def test_floating_point_images_have_no_bits_per_dimension(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "floats.npy"
    np.save(path, pixels(dtype="float32"))
    recipe = small(steps=2)
    from recipe_helpers import QUIET
    from sfumato.recipes.run import Run
    from sfumato.recipes.run_config import DataConfig, RunConfig

    data = DataConfig(data=str(path), layout="NHWC", value_range=(0.0, 1.0))
    made = Run.open(RunConfig(recipe, data, QUIET), tmp_path / "run")
    for _ in made.steps():
        pass
    assert main(command(tmp_path / "run")) == 2
    assert "no bins to give probabilities to" in capsys.readouterr().err
