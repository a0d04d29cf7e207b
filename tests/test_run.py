"""Runs: what is on disk, and that resuming gives the bits of an uninterrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sfumato
from recipe_helpers import (
    BATCH,
    LONG,
    OPTIONS,
    QUIET,
    array_file,
    assert_same_run,
    in_memory,
    log_of,
    open_run,
    pixels,
    small,
)
from sfumato.cli import main
from sfumato.data.images import Subset
from sfumato.errors import CheckpointError, ConfigError, DataError
from sfumato.recipes import run as run_module
from sfumato.recipes import run_network
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import Arithmetic, DataConfig, RunConfig
from sfumato.training.history import checkpoints, latest_checkpoint, verify
from sfumato.training.precision import Choice, Precision

STEPS = 8
SOURCE = str(Path(sfumato.__file__).parents[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return array_file(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run of 8 steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert len(list(open_run(folder, data, sample_every=4).steps())) == STEPS
    return folder


def test_a_run_folder_holds_what_is_promised(whole: Path) -> None:
    assert (whole / "config.toml").is_file()
    names = [path.name for path in checkpoints(whole)]
    assert names == ["00000003", "00000006", "00000008"]
    for path in checkpoints(whole):
        verify(path)
    lines = log_of(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["images"] for line in lines] == [BATCH * i for i in range(1, STEPS + 1)]
    assert all(np.isfinite(line["loss"]) for line in lines)
    drawn = sorted(path.name for path in (whole / "samples").iterdir())
    assert drawn == ["training-000000016.png", "training-000000032.png"]
    # Nothing half-written is left.
    assert not [p for p in whole.rglob("*") if "tmp" in p.name]
    saved = RunConfig.read(whole / "config.toml").recipe.process.sigma_data
    x = pixels().astype(float) / 127.5 - 1
    assert saved == pytest.approx(x.std(), abs=1e-3)


def test_a_window_of_the_log_is_the_mean_of_its_steps(tmp_path: Path, data: Path) -> None:
    losses = [record.loss for record in open_run(tmp_path, data, log_every=3).steps()]
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 3, 6, STEPS]
    assert [line["loss"] for line in lines] == pytest.approx(
        [losses[0], np.mean(losses[:3]), np.mean(losses[3:6]), np.mean(losses[6:])], rel=1e-12
    )


@pytest.mark.parametrize("stop", [1, 4, 6, 7])
def test_closing_the_iterator_and_resuming_gives_the_same_bits(
    tmp_path: Path, data: Path, whole: Path, stop: int
) -> None:
    steps = open_run(tmp_path, data).steps()
    for _ in range(stop):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert checkpoints(tmp_path)[-1].name == f"{stop:08d}"
    resumed = open_run(tmp_path, data, resume=True)
    assert len(list(resumed.steps())) == STEPS - stop
    assert_same_run(tmp_path, whole)


def test_interrupting_keeps_windows_of_the_log_whole(tmp_path: Path, data: Path) -> None:
    for _ in open_run(tmp_path / "a", data, log_every=3).steps():
        pass
    run = open_run(tmp_path / "b", data, log_every=3)
    for number, _ in enumerate(run.steps(), 1):
        if number == 4:
            run.interrupt()
    assert run.images == 4 * BATCH
    for _ in open_run(tmp_path / "b", data, log_every=3, resume=True).steps():
        pass
    assert_same_run(tmp_path / "b", tmp_path / "a")


def test_classes_augmentation_and_micro_batches_resume_to_the_bit(tmp_path: Path) -> None:
    chosen = small(steps=4, augment=0.5, micro_batch=2)

    def opened(folder: Path, *, resume: bool = False) -> Run:
        config = RunConfig(chosen, DataConfig(classes=True), QUIET)
        return Run.open(config, folder, images=in_memory(classes=3), resume=resume)

    assert len(list(opened(tmp_path / "whole").steps())) == 4
    steps = opened(tmp_path / "part").steps()
    next(steps), next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert len(list(opened(tmp_path / "part", resume=True).steps())) == 2
    assert_same_run(tmp_path / "part", tmp_path / "whole")


def command(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "sfumato", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("long") / "run"
    assert main(["train", "edm-tiny", "--data", str(data), *OPTIONS, "--out", str(folder)]) == 0
    return folder


def started(folder: Path, data: Path) -> subprocess.Popen[str]:
    """Start the same run in a process of its own and wait for its first checkpoint."""
    process = command(["train", "edm-tiny", "--data", str(data), *OPTIONS, "--out", "run"], folder)
    limit = time.monotonic() + 60
    while not (folder / "run/checkpoints/00000005").is_dir():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_loses_nothing(
    tmp_path: Path,
    data: Path,
    long_run: Path,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    process = started(tmp_path, data)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    folder = tmp_path / "run"
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, err
        assert f"stopped by {number.name}" in out
        assert "sfumato train --resume run" in out
        assert "Traceback" not in err
        # Saved where it stopped, not only at the last regular checkpoint.
        assert f"at image {int(checkpoints(folder)[-1].name) * 4}" in out
    assert 5 <= int(checkpoints(folder)[-1].name) < LONG
    assert main(["train", "--resume", str(folder)]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"run: {folder}")
    assert_same_run(folder, long_run)


def test_a_finished_run_is_refused_and_goes_on_with_more_images(tmp_path: Path, data: Path) -> None:
    for _ in open_run(tmp_path, data, small(steps=3)).steps():
        pass
    before = (tmp_path / "config.toml").read_text()
    with pytest.raises(ConfigError, match=r"finished \(12 images\).*larger --images"):
        open_run(tmp_path, data, small(steps=3), resume=True)
    assert (tmp_path / "config.toml").read_text() == before
    assert len(list(open_run(tmp_path, data, small(steps=5), resume=True).steps())) == 2
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4, 5]


def stopped(folder: Path, data: Path) -> None:
    steps = open_run(folder, data).steps()
    next(steps)
    steps.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("shape", "seed"), [((1, 8, 8), 1), ((3, 8, 8), 0), ((1, 8, 12), 0)])
def test_other_data_are_refused_when_resuming(
    tmp_path: Path, data: Path, shape: tuple[int, int, int], seed: int
) -> None:
    stopped(tmp_path / "run", data)
    before = (tmp_path / "run/config.toml").read_text()
    other = array_file(tmp_path / "other", shape, seed)
    with pytest.raises(CheckpointError, match="other data"):
        open_run(tmp_path / "run", other, resume=True)
    assert (tmp_path / "run/config.toml").read_text() == before


def test_another_network_is_refused_when_resuming(tmp_path: Path, data: Path) -> None:
    stopped(tmp_path, data)
    chosen = small(steps=8)
    wider = replace(chosen, network=replace(chosen.network, width=12))
    with pytest.raises(CheckpointError, match="another network"):
        open_run(tmp_path, data, wider, resume=True)


def test_a_folder_that_holds_a_run_is_refused(data: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume"):
        open_run(whole, data)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_resuming_needs_a_checkpoint(tmp_path: Path, data: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_run(tmp_path / "none", data, resume=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is no training run"):
        open_run(tmp_path / "empty", data, resume=True)


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    tmp_path: Path, data: Path, whole: Path
) -> None:
    open_run(tmp_path, data)  # leaves config.toml, as a kill in the first steps would
    list(open_run(tmp_path, data, resume=True).steps())
    for name in ("network", "ema"):
        file = f"{name}.safetensors"
        again = latest_checkpoint(tmp_path).path / file
        assert again.read_bytes() == (latest_checkpoint(whole).path / file).read_bytes()


@pytest.mark.parametrize(
    ("sampler", "reason"),
    [
        ({"guidance": 3.0}, "guidance 3 needs"),
        ({"sigma_max": 500.0}, "within what the model was trained on"),
        ({"grid": "uniform"}, "this model has none"),
        ({"grid": "all"}, "this model has none"),
    ],
)
def test_a_sampler_that_cannot_work_is_refused_at_the_start(
    tmp_path: Path, data: Path, sampler: dict[str, Any], reason: str
) -> None:
    chosen = small(sampler=replace(small().sampler, **sampler))
    with pytest.raises(ConfigError, match=reason):
        open_run(tmp_path / "run", data, chosen)
    assert not (tmp_path / "run").exists()


def test_an_empty_set_is_refused_and_not_replaced(tmp_path: Path, data: Path) -> None:
    config = RunConfig(small(), DataConfig(data=str(data), layout="NHWC"), QUIET)
    with pytest.raises(DataError, match="no images to train on"):
        Run.open(config, tmp_path / "run", images=Subset(in_memory(), []))


def test_test_images_of_other_classes_are_refused(tmp_path: Path) -> None:
    config = RunConfig(small(), DataConfig(classes=True), QUIET)
    images, other = in_memory(classes=3), in_memory(classes=3)
    other.classes = ("0", "2", "1")
    with pytest.raises(ConfigError, match=r"classes 0, 2, 1, the training images 0, 1, 2"):
        Run.open(config, tmp_path / "run", images=images, test=other)
    assert not (tmp_path / "run").exists()
    # Test images may do without.
    Run.open(config, tmp_path / "run", images=images, test=in_memory())


def test_sigma_data_is_measured_for_every_recipe(tmp_path: Path, data: Path) -> None:
    # The loss by level is told against it, whatever the process.
    expected = (pixels().astype(float) / 127.5 - 1).std()
    for name in ("ddpm-tiny", "ve-tiny"):
        run = open_run(tmp_path / name, data, small(name))
        saved = RunConfig.read(tmp_path / name / "config.toml").recipe.process.sigma_data
        assert saved == pytest.approx(expected, abs=1e-3)
        assert run.state.statistics.sigma_data == saved


def test_a_restart_before_the_first_checkpoint_keeps_the_arithmetic(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Precision("bfloat16", channels_last=True)
    monkeypatch.setattr(run_network, "choose_precision", lambda *a, **b: Choice(chosen, "measured"))
    open_run(tmp_path, data, small(precision="auto"))

    def again(*arguments: Any, **options: Any) -> Choice:
        return Choice(Precision(), "measured anew")

    monkeypatch.setattr(run_network, "choose_precision", again)
    run = open_run(tmp_path, data, small(precision="auto"), resume=True)
    assert run.precision == chosen
    list(run.steps())
    assert RunConfig.read(tmp_path / "config.toml").arithmetic == Arithmetic("bfloat16", True)


def test_test_images_of_another_format_are_refused(tmp_path: Path, data: Path) -> None:
    other = array_file(tmp_path / "other", (3, 8, 8))
    config = RunConfig(small(), DataConfig(data=str(data), test=str(other), layout="NHWC"), QUIET)
    with pytest.raises((ConfigError, DataError), match="test images are 3 x 8 x 8"):
        Run.open(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_minutes_end_the_run_with_its_decay_done(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = small(steps=10_000)
    config = RunConfig(
        chosen, DataConfig(data=str(data), layout="NHWC"), replace(QUIET, minutes=0.1, save_every=0)
    )
    run = Run.open(config, tmp_path)
    real = run_module.train_steps

    def slow(*arguments: Any, **options: Any) -> Iterator[Any]:
        # A clock on which every step takes half a second: 12 fit into 0.1 minutes.
        for record in real(*arguments, **options):
            yield replace(record, seconds=0.5)

    monkeypatch.setattr(run_module, "train_steps", slow)
    records = list(run.steps())
    assert len(records) == 12
    assert run.seconds == pytest.approx(6.0)
    rates = [record.learning_rate for record in records]
    peak = chosen.optimizer.learning_rate
    # Linear decay over the clock: the rate of step k is (1 - k / 12) of the peak.
    expected = [peak * (1 - k / 12) for k in range(12)]
    assert rates == pytest.approx(expected, rel=1e-6)
    assert checkpoints(tmp_path)[-1].name == "00000012"


@pytest.mark.parametrize("minutes", [0.0, 0.1])
def test_sample_every_counts_steps_with_and_without_a_time_limit(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, minutes: float
) -> None:
    run = open_run(tmp_path, data, small(steps=12), minutes=minutes, sample_every=5)
    real = run_module.train_steps

    def paced(*arguments: Any, **options: Any) -> Iterator[Any]:
        for record in real(*arguments, **options):
            yield replace(record, seconds=0.5)

    monkeypatch.setattr(run_module, "train_steps", paced)
    assert len(list(run.steps())) == 12
    drawn = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert drawn == ["training-000000020.png", "training-000000040.png"]
