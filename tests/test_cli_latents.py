"""Inverting, interpolating, progressive pictures: round trips that close, ends that are right."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipe_helpers import QUIET, array_file, in_memory, open_run, pixels, small
from sfumato.data.pixels import to_model
from sfumato.recipes.inputs import read_inputs
from sfumato.recipes.latent_figures import completions, mixed, progressive
from sfumato.recipes.latents import Flow, deterministic, table
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from sfumato.report.grid import image_grid
from test_cli import Capture, call, refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "run"
    for _ in open_run(folder, array_file(folder.parent)).steps():
        pass
    return folder


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents-ladder") / "run"
    for _ in open_run(folder, array_file(folder.parent), small("ddpm-tiny")).steps():
        pass
    return folder


@pytest.fixture(scope="module")
def by_class(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs with classes: without label dropout, and with it."""
    folder = tmp_path_factory.mktemp("latents-classes")
    chosen = small()
    dropped = replace(chosen, network=replace(chosen.network, label_dropout=0.5))
    for name, each in (("plain", chosen), ("dropped", dropped)):
        images = in_memory(classes=3)
        images.classes = ("Ankle boot", "Bag", "Shirt")
        config = RunConfig(each, DataConfig(classes=True), QUIET)
        for _ in Run.open(config, folder / name, images=images).steps():
            pass
    return folder / "plain", folder / "dropped"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six grey 8-bit images of 8 x 8."""
    folder = tmp_path_factory.mktemp("files")
    for i, image in enumerate(pixels(count=6, seed=5)):
        Image.fromarray(image[:, :, 0]).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return load(run).with_precision("float32")


def flow_of(model: Model, solver: str, steps: int) -> Flow:
    sampler = replace(deterministic(model.recipe.sampler), solver=solver, steps=steps)
    return Flow(model, sampler)


def image(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# --- invert --------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_a_fixed_point_round_trip_closes(model: Model, files: Path, solver: str) -> None:
    x = read_inputs([files], model.format).x
    flow = flow_of(model, solver, 12)
    trip, explicit = flow.round_trip(x, exactly=True), flow.round_trip(x)
    assert float(trip.error.max()) <= 1e-4
    assert float(explicit.error.max()) > 10 * float(trip.error.max())
    assert torch.allclose(flow.decode(trip.latent), trip.image, atol=1e-5)


def test_the_table_falls_with_the_steps_at_the_solvers_order(model: Model, files: Path) -> None:
    x = read_inputs([files], model.format, limit=2).x
    rows = list(table(flow_of(model, "heun", 2), x, (12, 24, 48)))
    assert [row.steps for row in rows] == [12, 24, 48]
    assert rows[0].rmse > 3 * rows[1].rmse > 9 * rows[2].rmse
    for row in rows:
        assert row.mse == pytest.approx(row.rmse**2 / 4)
        assert row.image_mse == pytest.approx(row.image_rmse**2 / 4)


def test_invert_writes_latents_that_sample_their_images(
    run: Path, model: Model, files: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    asked = ("--solver", "heun", "--steps", 12, "--fixed-point", "--out", out)
    assert call("invert", run, files, *asked) == 0
    said = capsys.readouterr().out
    assert said.count(".png") >= 6
    latents = np.load(out / "latents.npy")
    assert (latents.dtype, latents.shape) == (np.float32, (6, 1, 8, 8))
    about = tomllib.loads((out / "latents.toml").read_text())
    assert about["highest"] == pytest.approx(80)
    assert about["lowest"] == pytest.approx(0.002)
    assert max(one["rmse"] for one in about["images"]) <= 1e-4
    decoded = flow_of(model, "heun", 12).decode(torch.from_numpy(latents))
    originals = np.stack([image(path) for path in sorted(files.iterdir())])
    written = np.stack([image(out / f"{i:06d}.png") for i in range(6)])
    expected = ((decoded[:, 0] + 1) * 127.5).round().clamp(0, 255).numpy()
    assert np.abs(written - expected).max() <= 1
    grid = image(out / "grid.png")
    top = image_grid(to_model(originals[:, None], model.format), columns=6)[:, :, 0]
    assert np.array_equal(grid[: len(top)], top)
    assert (grid.shape[0] - 2) == 3 * (len(top) - 2)


def test_invert_writes_a_table(run: Path, files: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "table"
    asked = ("--table", "--table-steps", 5, 10, "--solver", "ddim", "-n", 2, "--out", out)
    assert call("invert", run, files, *asked) == 0
    assert "first 2 of 6" in capsys.readouterr().out
    written = json.loads((out / "round-trip.json").read_text())
    assert [row["steps"] for row in written["rows"]] == [5, 10]
    assert written["rows"][0]["mse"] > written["rows"][1]["mse"] > 0
    assert len(written["images"]) == 2


def test_on_a_ladder_the_runs_noisy_sampler_gives_way(
    ladder: Path, files: Path, tmp_path: Path, capsys: Capture
) -> None:
    single = files / "0.png"
    asked = ("--steps", 10, "--fixed-point", "--out", tmp_path / "out")
    assert call("invert", ladder, single, *asked) == 0
    assert "ddim with eta 0" in capsys.readouterr().out
    about = tomllib.loads((tmp_path / "out" / "latents.toml").read_text())
    assert about["images"][0]["rmse"] <= 1e-4
    left = ("--table", "--table-steps", 5, 2000, "--out", tmp_path / "table")
    assert call("invert", ladder, single, *left) == 0
    assert "left out" in capsys.readouterr().out


def test_what_cannot_be_inverted_is_refused(
    run: Path, files: Path, tmp_path: Path, capsys: Capture
) -> None:
    def said(*arguments: object, status: int = 2) -> str:
        return refused(capsys, status, "invert", run, *arguments)

    assert "fresh noise" in said(files, "--solver", "ancestral")
    assert "with churn" in said(files, "--solver", "heun", "--churn", 10)
    assert "with eta 0.5" in said(files, "--solver", "ddim", "--eta", 0.5)
    assert "--fixed-point does not work" in said(files, "--solver", "unipc", "--fixed-point")
    assert "--steps 2" in said(files, "--steps", 1)
    assert "--table-steps" in said(files, "--table", "--steps", 5)
    assert "without classes" in said(files, "--class", "Bag")
    assert "at least 1" in said(files, "-n", 0)

    def write(name: str, array: np.ndarray) -> Path:
        Image.fromarray(array).save(tmp_path / name)
        return tmp_path / name

    plain = np.zeros((8, 8), np.uint8)
    wide = said(write("wide.png", np.zeros((8, 12), np.uint8)), status=1)
    assert "1 x 8 x 12" in wide
    assert "--size 8 8" in wide
    assert "--channels 1" in said(write("rgb.png", np.stack([plain] * 3, 2)), status=1)
    deep = said(write("deep.png", plain.astype(np.uint16)), status=1)
    assert "uint16" in deep
    assert "bit depths are not converted" in deep
    assert "no such data" in said(tmp_path / "none", status=1)
    assert call("invert", run, tmp_path / "wide.png", "--size", 8, 8, "--out", tmp_path / "o") == 0


def test_a_model_with_classes_wants_the_class(
    by_class: tuple[Path, Path], files: Path, tmp_path: Path, capsys: Capture
) -> None:
    plain, dropped = by_class
    assert "--class, one of Ankle boot, Bag" in refused(capsys, 2, "invert", plain, files)
    assert "wants a class" in refused(capsys, 2, "invert", dropped, files, "--guidance", 2)
    latents: list[np.ndarray] = []
    capsys.readouterr()
    for i, (run, asked) in enumerate(
        [(dropped, ()), (dropped, ("--class", "Bag")), (plain, ("--class", "Bag"))]
    ):
        assert call("invert", run, files, *asked, "--out", tmp_path / str(i)) == 0
        latents.append(np.load(tmp_path / str(i) / "latents.npy"))
    assert np.abs(latents[0] - latents[1]).max() > 1e-4
    assert capsys.readouterr().out.count("heun, 32 levels") == 3
    seeded = ("seed:1", "seed:2", "--class", "Bag", "--steps-between", 0, "--steps", 3)
    assert call("interpolate", plain, *seeded, "--out", tmp_path / "i") == 0
    sampler = replace(load(plain).recipe.sampler, steps=3)
    drawn = load(plain).sample(1, seed=1, label="Bag", sampler=sampler)[0, 0].astype(int)
    assert np.abs(image(tmp_path / "i" / "000000.png") - drawn).max() <= 1


# --- interpolate ---------------------------------------------------------------------------------


def test_the_ends_of_a_strip_are_the_pictures_of_its_seeds(
    run: Path, model: Model, tmp_path: Path
) -> None:
    out = tmp_path / "strip"
    asked = ("--solver", "ddim", "--steps", 7, "--steps-between", 3, "--out", out)
    assert call("interpolate", run, "seed:3", "seed:8", *asked) == 0
    sampler = flow_of(model, "ddim", 7).sampler
    for seed, place in ((3, 0), (8, 4)):
        drawn = model.sample(1, seed=seed, sampler=sampler)[0, 0].astype(int)
        assert np.abs(image(out / f"{place:06d}.png") - drawn).max() <= 1
    flow = flow_of(model, "ddim", 7)
    exact = next(model.drawn([3], sampler=sampler))
    assert torch.allclose(flow.decode(flow.seeded([3])), exact, atol=1e-5)
    with Image.open(out / "strip.gif") as animation:
        assert getattr(animation, "n_frames", 1) >= 5


def test_the_ends_of_a_strip_of_images_are_their_reconstructions(
    run: Path, model: Model, files: Path, tmp_path: Path
) -> None:
    ends = [files / "1.png", files / "4.png"]
    asked = ("--solver", "heun", "--steps", 9, "--fixed-point", "--steps-between", 1)
    assert call("interpolate", run, *ends, *asked, "--out", tmp_path / "s") == 0
    trip = flow_of(model, "heun", 9).round_trip(read_inputs(ends, model.format).x, exactly=True)
    expected = ((trip.image[:, 0] + 1) * 127.5).round().clamp(0, 255).numpy()
    for i, place in enumerate((0, 2)):
        assert np.abs(image(tmp_path / "s" / f"{place:06d}.png") - expected[i]).max() <= 1


def test_four_corners(run: Path, model: Model, tmp_path: Path) -> None:
    corners = ["seed:1", "seed:2", "seed:3", "seed:4"]
    asked = ("--steps-between", 1, "--steps", 4, "--solver", "euler", "--out", tmp_path / "g")
    assert call("interpolate", run, *corners, *asked) == 0
    sampler = flow_of(model, "euler", 4).sampler
    drawn = model.sample(4, seed=1, sampler=sampler)[:, 0].astype(int)
    for seed, place in enumerate((0, 2, 6, 8)):
        assert np.abs(image(tmp_path / "g" / f"{place:06d}.png") - drawn[seed]).max() <= 1
    assert (tmp_path / "g" / "grid.png").is_file()


def test_images_mixed_at_a_level(run: Path, model: Model, files: Path, tmp_path: Path) -> None:
    """At a low level the ends are the images themselves; at the highest, both are the noise's."""
    a, b = read_inputs([files / "1.png", files / "4.png"], model.format).x
    flow = flow_of(model, "heun", 12)
    low, high = mixed(flow, a, b, 0.002, (0, 1), 0), mixed(flow, a, b, 80.0, (0, 1), 0)
    assert float((low - torch.stack([a, b])).abs().max()) < 0.05
    assert float((high[0] - high[1]).abs().max()) < float((low[0] - low[1]).abs().max())
    asked = ("--level", 0.5, 5, "--steps-between", 2, "--out", tmp_path / "m")
    assert call("interpolate", run, files / "1.png", files / "4.png", *asked) == 0
    assert len(list((tmp_path / "m").glob("0*.png"))) == 8


def test_what_cannot_be_interpolated_is_refused(run: Path, files: Path, capsys: Capture) -> None:
    def said(*arguments: object, status: int = 2) -> str:
        return refused(capsys, status, "interpolate", run, *arguments)

    assert "two ends or four" in said("seed:1", "seed:2", "seed:3")
    assert "seed:NUMBER" in said("seed:one", "seed:2")
    assert "fresh noise" in said("seed:1", "seed:2", "--solver", "ancestral")
    assert "holds 6 images" in said(files, "seed:2")
    assert "0.002 to 80" in said("seed:1", "seed:2", "--level", 100)
    assert "give two ends" in said("seed:1", "seed:2", "seed:3", "seed:4", "--level", 1)
    assert f"{files / 'no.png'} does not exist" in said(files / "no.png", "seed:2", status=1)
    broken = files.parent / "broken.png"
    broken.write_bytes(next(files.glob("*.png")).read_bytes()[:60])
    assert f"{broken} cannot be read: broken.png (" in said(broken, "seed:2", status=1)


# --- sample --------------------------------------------------------------------------------------


def test_predictions_along_the_way_end_with_the_image(
    run: Path, model: Model, tmp_path: Path
) -> None:
    sampler = replace(model.recipe.sampler, solver="ancestral", steps=6)
    made = progressive(Flow(model, sampler), [3, 4])
    drawn = torch.cat(list(model.drawn([3, 4], sampler=sampler)))
    assert made.x0.shape == (2, 6, 1, 8, 8)
    assert torch.allclose(made.x0[:, -1], drawn, atol=1e-5)
    assert list(made.sigmas) == sorted(made.sigmas, reverse=True)
    # The first prediction comes from pure noise: the mean of the data, much the same for both.
    first, last = (float((made.x0[0, k] - made.x0[1, k]).abs().mean()) for k in (0, -1))
    assert first < last
    asked = ("--progressive", "-n", 2, "--steps", 6, "--out", tmp_path / "p")
    assert call("sample", run, *asked) == 0
    assert (tmp_path / "p" / "progressive.png").is_file()


def test_completions_share_less_the_higher_their_latent(
    run: Path, model: Model, tmp_path: Path, capsys: Capture
) -> None:
    flow = Flow(model, replace(model.recipe.sampler, solver="ancestral", steps=12))

    def spread(sigma: float) -> float:
        return float(completions(flow, 0, sigma, 6)[0].std(0).mean())

    assert spread(0.05) < spread(1.0) < spread(80.0)
    asked = ("--share-latent", 1, "-n", 3, "--steps", 6)
    assert "draws no noise" in refused(capsys, 2, "sample", run, *asked)
    assert call("sample", run, *asked, "--solver", "ancestral", "--out", tmp_path / "c") == 0
    assert (tmp_path / "c" / "share-latent.png").is_file()
