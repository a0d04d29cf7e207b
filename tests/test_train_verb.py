"""Training as it is asked for: `sfumato train`, `sfumato.train`, and one after the other."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sfumato
from recipe_helpers import (
    OPTIONS,
    array_file,
    in_memory,
    open_run,
    options_for,
    pixels,
    small,
)
from sfumato.cli import main
from sfumato.data.images import Subset
from sfumato.errors import CheckpointError, ConfigError, DataError
from sfumato.recipes import run as run_module
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from sfumato.training.checkpoint import load_checkpoint
from sfumato.training.history import checkpoints, latest_checkpoint
from sfumato.training.loop import Record


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return array_file(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    list(open_run(folder, data).steps())
    return folder


def fake_report(run: Run, say: Any = None) -> Path:
    (run.folder / "report.html").write_text("a page")
    return run.folder / "report.html"


def test_a_finished_run_without_its_report_gets_it(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(run: Run, say: Any = None) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "write_report", failing)
    folder = tmp_path / "run"
    options = [item for item in options_for(12) if item != "--no-report"]
    assert main(["train", "edm-tiny", "--data", str(data), *options, "--out", str(folder)]) == 130
    assert f"to write its report: sfumato train --resume {folder}" in capsys.readouterr().out
    before = {path.name: (path / "ema.safetensors").read_bytes() for path in checkpoints(folder)}
    monkeypatch.setattr(Run, "write_report", fake_report)
    assert main(["train", "--resume", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"report: {folder / 'report.html'}" in printed
    assert "training to" not in printed
    assert before == {p.name: (p / "ema.safetensors").read_bytes() for p in checkpoints(folder)}
    assert main(["train", "--resume", str(folder)]) == 0  # nothing is left to do


def test_a_stopped_run_asked_for_less_gets_no_report(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Run, "write_report", fake_report)
    steps = open_run(tmp_path, data, small(steps=100), report=True).steps()
    next(steps), next(steps)
    steps.close()  # type: ignore[attr-defined]
    before = (tmp_path / "config.toml").read_text()
    assert main(["train", "--resume", str(tmp_path), "--images", "4"]) == 2
    assert "has already seen 8 images, more than --images 4" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "config.toml").read_text() == before


def test_a_run_finished_by_the_clock_takes_no_more_steps(tmp_path: Path, data: Path) -> None:
    timed = {"minutes": 1e-6, "report": True}
    assert len(list(open_run(tmp_path, data, small(steps=100), **timed).steps())) == 1
    run = open_run(tmp_path, data, small(steps=100), resume=True, **timed)
    assert run.finished
    assert list(run.steps()) == []


def test_minutes_that_are_over_are_told_to_be_the_total(tmp_path: Path, data: Path) -> None:
    list(open_run(tmp_path, data, small(steps=100), minutes=1e-6).steps())
    with pytest.raises(
        ConfigError, match=r"already trained for .*: nothing to do.*1e-06 is the total"
    ):
        open_run(tmp_path, data, small(steps=100), resume=True, minutes=1e-6)


def test_pauses_do_not_count_in_the_bars_rate(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Run.steps

    def paused(run: Run) -> Iterator[Record]:
        for record in steps(run):
            run.progress.seconds = record.step * 2.0  # four images in two seconds
            yield record

    monkeypatch.setattr(Run, "steps", paused)
    assert main(["train", "edm-tiny", "--data", str(data), *options_for(16),
                 "--out", str(tmp_path / "run")]) == 0  # fmt: skip
    assert re.search(r"0.0. s left, 2 images/s, loss|0 s left, 2 images/s, loss",
                     capsys.readouterr().err)  # fmt: skip


def test_ctrl_c_while_data_are_opened_ends_at_once(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("went on")

    monkeypatch.setattr(run_module, "open_data", slow)
    folder = tmp_path / "run"
    assert main(["train", "edm-tiny", "--data", str(data), *OPTIONS, "--out", str(folder)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not folder.exists()


def test_the_bar_tells_the_share_of_waiting(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*options_for(16), "--out", str(tmp_path / "run")]
    assert main(["train", "edm-tiny", "--data", str(data), *options]) == 0
    assert re.search(r"loss \d+\.\d+, \d+ % waiting for data", capsys.readouterr().err)


def test_a_traceback_can_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(tmp_path / "none")]) == 1
    monkeypatch.setenv("SFUMATO_DEBUG", "1")
    with pytest.raises(DataError):
        main(["info", str(tmp_path / "none")])
    monkeypatch.delenv("SFUMATO_DEBUG")

    def broken(*arguments: Any) -> Any:
        raise ValueError("a bug")

    capsys.readouterr()
    monkeypatch.setattr("sfumato.cli.info._print_run", broken)
    (tmp_path / "config.toml").touch()
    assert main(["info", str(tmp_path)]) == 1
    assert "a bug\n(SFUMATO_DEBUG=1 in the environment shows where)" in capsys.readouterr().err


def test_loading_names_what_is_wrong(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(CheckpointError, match="give the run's folder"):
        sfumato.load(whole / "checkpoints")
    with pytest.raises(CheckpointError, match="is a file"):
        sfumato.load(whole / "config.toml")
    with pytest.raises(ValueError, match=r"weights are .* not 'raw'"):
        sfumato.load(whole, weights="raw")


def test_the_library_trains_from_python_and_writes_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "write_report", fake_report)
    images = in_memory(classes=2)
    steps = sfumato.train(small(steps=3), images, tmp_path / "run")
    assert [next(steps).step for _ in range(3)] == [1, 2, 3]
    assert not (tmp_path / "run/report.html").exists()
    assert list(steps) == []
    assert (tmp_path / "run/report.html").exists()
    assert sfumato.load(tmp_path / "run").classes == images.classes
    list(sfumato.train(small(steps=1), images, tmp_path / "without", report=False))
    assert not (tmp_path / "without/report.html").exists()
    with pytest.raises(ConfigError, match="already holds a run"):
        next(iter(sfumato.train(small(steps=3), images, tmp_path / "run")))


def test_a_run_from_python_resumes_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"train": 0, "test": 1}
    for name, seed in folders.items():
        for number, image in enumerate(pixels((3, 10, 12), seed=seed)):
            where = tmp_path / name / "ab"[number % 2]
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(where / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    images, test = (
        sfumato.open_images(name, size=(8, 8), fit="stretch", channels=1, labels=True)
        for name in folders
    )
    steps = sfumato.train(small(steps=4), images, "run", test=test, report=False)
    next(steps), next(steps)
    steps.close()  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path.parent)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    config = RunConfig.read(tmp_path / "run/config.toml").data
    assert config == DataConfig(
        data=str(tmp_path / "train"),
        test=str(tmp_path / "test"),
        size=(8, 8),
        fit="stretch",
        channels=1,
        classes=True,
    )
    assert load_checkpoint(latest_checkpoint(tmp_path / "run").path, training=False).step == 4


@pytest.mark.parametrize("which", ["training", "test"])
def test_a_run_on_images_in_memory_says_that_only_python_can_resume_it(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    images = in_memory() if which == "training" else sfumato.open_images(data, layout="NHWC")
    test = in_memory(seed=1) if which == "test" else None

    def opened(*, resume: bool) -> Iterator[Any]:
        return sfumato.train(
            small(steps=3), images, tmp_path / "run", test=test, resume=resume, report=False
        )

    steps = opened(resume=False)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert "go on from Python, with sfumato.train(..., resume=True)" in capsys.readouterr().err
    assert [record.step for record in opened(resume=True)] == [2, 3]


@pytest.mark.parametrize(
    "options", [{}, {"size": (9, 9), "fit": "stretch", "labels": True, "value_range": (0, 300)}]
)
def test_a_set_knows_how_to_open_it_again(tmp_path: Path, options: dict[str, Any]) -> None:
    np.savez(tmp_path / "a.npz", x=pixels(dtype="uint8").astype(np.uint16), y=np.arange(12) % 2)
    images = sfumato.open_images(tmp_path / "a.npz", layout="NHWC", **options)
    assert images.opened is not None
    again = sfumato.open_images(**images.opened)
    assert (again.fingerprint, again.format) == (images.fingerprint, images.format)
    assert again.classes == images.classes
    builtin = sfumato.open_images("fashion-mnist:test")
    assert builtin.opened is not None
    assert builtin.opened["path"] == "fashion-mnist:test"
    # Part of a set is opened by nothing.
    assert Subset(images, [0, 1]).opened is None
