"""Drawn images on disk: the grid in any value range, the record, and folders that are in use."""

from __future__ import annotations

import itertools
import os
import signal
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from recipe_helpers import QUIET, in_memory, small
from sfumato.cli import main
from sfumato.data.pixels import pixel_format
from sfumato.errors import ConfigError
from sfumato.networks.base import Network
from sfumato.recipes import build, samples
from sfumato.recipes.config import ProcessConfig, Recipe
from sfumato.recipes.model import Model
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.recipes.samples import SampleWriter


def untrained(
    chosen: Recipe | None = None,
    dtype: Any = "uint8",
    value_range: tuple[float, float] | None = None,
    classes: tuple[str, ...] = (),
) -> Model:
    chosen = chosen or small(process=ProcessConfig(sigma_data=0.5))
    form = pixel_format((1, 8, 8), dtype, value_range)
    network: Network = build.network_of(chosen, form.shape, len(classes))
    return Model(chosen, network.eval().requires_grad_(False), form, classes)


def written(folder: Path, model: Model, images: NDArray[Any], **sampler: Any) -> dict[str, Any]:
    chosen = replace(model.recipe.sampler, **sampler)
    writer = SampleWriter(folder, model, chosen, seed=0, label=None)
    writer.add(images)
    writer.close(1.0)
    return tomllib.loads((folder / "sample.toml").read_text("utf-8"))


@pytest.mark.parametrize(
    ("dtype", "value_range"),
    [
        ("uint8", None),
        ("uint16", None),
        ("float32", (0.0, 1.0)),
        ("float32", (250.0, 310.0)),
        ("uint16", (0.0, 4095.0)),
        ("uint8", (0.0, 1.0)),
    ],
)
def test_the_grid_shows_the_whole_value_range(
    dtype: str, value_range: tuple[float, float] | None, tmp_path: Path
) -> None:
    model = untrained(dtype=dtype, value_range=value_range)
    low, high = model.format.low, model.format.high
    raw = np.full((2, 1, 8, 8), low, dtype)
    raw[1] = high
    written(tmp_path, model, raw)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    # Two images of 64 px (8 px enlarged), 2 px of white around each.
    assert set(grid[2:66, 2:66].ravel()) == {0}
    assert set(grid[2:66, 68:132].ravel()) == {255}


def test_a_grid_on_a_ladder_records_the_steps_that_are_left(tmp_path: Path) -> None:
    chosen = small("ddpm-tiny", process=ProcessConfig(kind="ladder", steps=50, betas="cosine"))
    model = untrained(chosen)
    raw = np.zeros((1, 1, 8, 8), np.uint8)
    record = written(tmp_path / "karras", model, raw, solver="ddim", grid="karras", steps=200)
    # 200 steps cannot be more than the 50 levels there are.
    assert 10 < record["steps"] <= 50
    assert record["sampler"]["steps"] == 200  # what draws them again
    walked = model.grid(replace(chosen.sampler, solver="ddim", grid="karras", steps=200))
    assert record["steps"] == len(walked) - 1
    assert (walked.diff() < 0).all()
    # The whole ladder has its own number of steps, whatever the sampler's field says.
    record = written(tmp_path / "all", model, raw, solver="ancestral", grid="all", steps=1000)
    assert (record["steps"], record["sampler"]["steps"]) == (50, 50)


def test_the_class_of_every_image_is_recorded(tmp_path: Path) -> None:
    names = ("boot", "bag", "shirt")
    model = untrained(classes=names)
    raw = np.zeros((20, 1, 8, 8), np.uint8)
    record = written(tmp_path / "any", model, raw)
    asked = model.labels_for(range(20), None)
    assert asked is not None
    assert record["classes"] == [names[i] for i in asked.argmax(1)]
    assert len(set(record["classes"])) > 1
    writer = SampleWriter(tmp_path / "bags", model, model.recipe.sampler, seed=5, label="bag")
    writer.add(raw[:2])
    writer.close(1.0)
    record = tomllib.loads((tmp_path / "bags/sample.toml").read_text("utf-8"))
    assert (record["class"], record["classes"]) == ("bag", ["bag", "bag"])
    assert written(tmp_path / "none", untrained(), raw)["classes"] == []


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    model = untrained()
    (tmp_path / "old.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="already holds files: choose another --out"):
        SampleWriter(tmp_path, model, SamplerConfig(), 0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    (tmp_path / "empty").mkdir()
    SampleWriter(tmp_path / "empty", model, SamplerConfig(), 0, None)


@pytest.fixture(scope="module")
def ladder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ladder") / "run"
    process = ProcessConfig(kind="ladder", steps=50, betas="cosine")
    chosen = small("ddpm-tiny", process=process)
    chosen = replace(chosen, sampler=SamplerConfig(solver="ancestral", grid="all", steps=1000))
    for _ in Run.open(RunConfig(chosen, DataConfig(), QUIET), folder, images=in_memory()).steps():
        pass
    return folder


def test_the_command_says_how_many_steps_it_walks(
    ladder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--grid", "karras", "--solver", "ddim", "--steps", "200", "--out", str(out)]
    assert main(["sample", str(ladder_run), "-n", "1", *options]) == 0
    walked = tomllib.loads((out / "sample.toml").read_text("utf-8"))["steps"]
    printed = capsys.readouterr().out
    assert f"ddim, {walked} steps (200 were asked for: {200 - walked} levels" in printed
    assert main(["sample", str(ladder_run), "-n", "1", *options]) == 2
    assert "already holds files" in capsys.readouterr().err
    assert main(["sample", str(ladder_run), "-n", "1", "--out", str(tmp_path / "all")]) == 0
    assert "with ancestral, 50 steps, from" in capsys.readouterr().out
    assert main(["info", str(ladder_run)]) == 0
    assert "ancestral, 50 steps, grid all" in capsys.readouterr().out


@pytest.mark.parametrize("while_writing", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_tells_what_there_is_and_how_the_rest_is_drawn(
    ladder_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    while_writing: bool,
) -> None:
    command = ["sample", str(ladder_run), "--batch", "2", "--solver", "ddim", "--steps", "2"]
    assert main([*command, "-n", "6", "-o", str(tmp_path / "whole")]) == 0
    calls, write = itertools.count(), samples.save_images

    def interrupted(*arguments: Any, **options: Any) -> list[Path]:
        if next(calls) == 1 and while_writing:
            os.kill(os.getpid(), number)
        return write(*arguments, **options)

    def drawn(*arguments: Any) -> Iterator[Any]:
        for place, images in shared(*arguments):
            if place == 4:
                os.kill(os.getpid(), number)
            yield place, images

    shared = samples.shared
    monkeypatch.setattr(samples, "save_images", interrupted)
    if not while_writing:
        monkeypatch.setattr(samples, "shared", drawn)
    capsys.readouterr()
    assert main([*command, "-n", "6", "-o", str(tmp_path / "part")]) == 130
    monkeypatch.undo()
    told = capsys.readouterr().err
    assert f"4 of 6 images are in {tmp_path / 'part'}" in told
    assert "--seed 4 -n 2 and another --out" in told
    assert tomllib.loads((tmp_path / "part/sample.toml").read_text("utf-8"))["images"] == 4
    assert main([*command, "--seed", "4", "-n", "2", "-o", str(tmp_path / "rest")]) == 0
    found = {p.name: p.read_bytes() for f in ("part", "rest") for p in (tmp_path / f).glob("0*")}
    assert found == {p.name: p.read_bytes() for p in (tmp_path / "whole").glob("0*")}
    assert len(found) == 6
