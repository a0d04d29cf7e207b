"""Runs in trouble: losses that are not finite, full disks, broken files, exceptions anywhere."""

from __future__ import annotations

import copy
import errno
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from recipe_helpers import (
    BATCH,
    QUIET,
    array_file,
    assert_same_run,
    break_losses,
    log_of,
    open_run,
    pixels,
    small,
    with_voice,
)
from sfumato.data.loader import stream
from sfumato.data.sources import open_images
from sfumato.errors import CheckpointError, DataError
from sfumato.recipes import preview as preview_module
from sfumato.recipes import run as run_module
from sfumato.recipes.model import Model, RawImages
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from sfumato.training import checkpoint as checkpoint_module
from sfumato.training.checkpoint import load_checkpoint
from sfumato.training.guard import TrainingError
from sfumato.training.history import checkpoints, latest_checkpoint

STEPS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return array_file(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run of 8 steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert len(list(open_run(folder, data, sample_every=4).steps())) == STEPS
    return folder


def test_a_log_cut_short_by_a_crash_is_mended(tmp_path: Path, data: Path, whole: Path) -> None:
    steps = open_run(tmp_path, data).steps()
    for _ in range(5):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "images": 24, "loss": 1.0}\n{"step": 7, "ima')
    for _ in open_run(tmp_path, data, resume=True).steps():
        pass
    assert_same_run(tmp_path, whole)


def test_resuming_passes_over_a_damaged_checkpoint(tmp_path: Path, data: Path, whole: Path) -> None:
    steps = open_run(tmp_path, data).steps()
    for _ in range(7):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    newest = checkpoints(tmp_path)[-1]
    content = (newest / "network.safetensors").read_bytes()
    (newest / "network.safetensors").write_bytes(content[:-10])
    said: list[str] = []
    config = RunConfig(small(steps=8), DataConfig(data=str(data), layout="NHWC"), QUIET)
    run = Run.open(config, tmp_path, resume=True, say=said.append)
    assert run.state.step == 6
    assert any("skipped damaged" in line and "00000007" in line for line in said)
    assert len(list(run.steps())) == 2
    assert_same_run(tmp_path, whole)


class FullDisk:
    """Writing a checkpoint's file fails while `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        write = checkpoint_module.FolderWriter.write

        def maybe(writer: Any, name: str, content: bytes) -> Any:
            if self.full and name.startswith("training"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(writer, name, content)

        monkeypatch.setattr(checkpoint_module.FolderWriter, "write", maybe)


def test_a_full_disk_warns_and_training_goes_on(
    tmp_path: Path, data: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, said = FullDisk(monkeypatch), list[str]()
    for record in with_voice(tmp_path, data, said).steps():
        disk.full = 5 <= record.step < 8
    assert [line for line in said if "No space left" in line]
    assert [path.name for path in checkpoints(tmp_path)] == ["00000003", "00000008"]
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if not p.name.isdigit()]
    assert_same_run(tmp_path, whole)


def test_a_full_disk_tells_whether_anything_was_saved(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, said = FullDisk(monkeypatch), list[str]()
    run = with_voice(tmp_path, data, said)

    def all_steps() -> None:
        for record in run.steps():
            disk.full = record.step != 6  # of the saves after steps 3, 6 and 8

    with pytest.raises(CheckpointError, match="earlier checkpoints are unharmed"):
        all_steps()
    (told,) = [line for line in said if "No space left" in line]
    assert "00000003" in told
    assert "nothing of this run has been saved so far" in told
    assert "unharmed" not in told
    assert [path.name for path in checkpoints(tmp_path)] == ["00000006"]


@pytest.mark.parametrize("every", [3, 8])
def test_a_full_disk_at_the_end_is_an_error_and_the_last_checkpoint_stays(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    # every = 8: the last step also is one of the regular saves, which only warn.
    disk = FullDisk(monkeypatch)
    run = open_run(tmp_path, data, save_every=every)

    def all_steps() -> None:
        for record in run.steps():
            disk.full = record.step > 6

    with pytest.raises(CheckpointError, match=r"could not save .*No space left"):
        all_steps()
    if every == 3:
        assert latest_checkpoint(tmp_path).path.name == "00000006"


def test_a_full_disk_for_the_log_is_said_once_and_its_lines_are_kept(
    tmp_path: Path, data: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = Path.open, [False]

    class HalfWritten:
        def __init__(self, path: Path) -> None:
            self.file = real(path, "a", encoding="utf-8")

        def __enter__(self) -> HalfWritten:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[: len(text) // 2])
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(self: Path, *arguments: Any, **options: Any) -> Any:
        if full[0] and self.name == "log.jsonl" and arguments == ("a",):
            return HalfWritten(self)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)
    said: list[str] = []
    for record in with_voice(tmp_path, data, said).steps():
        full[0] = 2 <= record.step < 6
        assert (tmp_path / "log.jsonl").read_text().endswith("}\n")
    assert sum("log.jsonl cannot be written" in line for line in said) == 1
    assert_same_run(tmp_path, whole)


def test_a_preview_that_fails_does_not_end_the_run(
    tmp_path: Path, data: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(preview_module, "save_png", full)
    said: list[str] = []
    config = RunConfig(
        small(steps=8), DataConfig(data=str(data), layout="NHWC"), replace(QUIET, sample_every=4)
    )
    list(Run.open(config, tmp_path, say=said.append).steps())
    assert sum("no preview at image" in line and "No space left" in line for line in said) == 2
    assert_same_run(tmp_path, whole)


def test_a_preview_of_a_diverged_network_does_not_end_the_run(
    tmp_path: Path, data: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Diverged(Model):
        def sample(self, *arguments: Any, **options: Any) -> RawImages:
            with torch.no_grad():
                next(iter(self.network.parameters())).fill_(float("nan"))
            return super().sample(*arguments, **options)

    said: list[str] = []
    config = RunConfig(
        small(steps=8), DataConfig(data=str(data), layout="NHWC"), replace(QUIET, sample_every=4)
    )
    run = Run.open(config, tmp_path, say=said.append)
    kept = copy.deepcopy
    monkeypatch.setattr(
        run, "model", lambda: Diverged(run.recipe, kept(run.state.ema.network),  # type: ignore[arg-type]
                                       run.images_set.format, run.classes)
    )  # fmt: skip
    list(run.steps())
    told = [line for line in said if "no preview at image" in line]
    assert len(told) == 2
    assert all("36 of 36 images (0, 1, 2, 3, 4, ...)" in line for line in told)
    assert "learning rate" in told[0]
    assert_same_run(tmp_path, whole)


def finite(path: Path) -> bool:
    saved = load_checkpoint(path, training=True)
    assert saved.network is not None
    return all(t.isfinite().all() for part in (saved.network, saved.ema) for t in part.values())


def spoil(run: Run) -> None:
    with torch.no_grad():
        for parameter in (*run.state.network.parameters(), *run.state.ema.network.parameters()):
            parameter.fill_(float("nan"))


def test_losses_that_are_not_finite_are_reported(tmp_path: Path, data: Path) -> None:
    run = open_run(tmp_path, data)
    break_losses(run, {3})
    records = list(run.steps())
    assert [record.skipped for record in records] == [False, False, True] + [False] * 5
    assert "loss nan, weights left alone" in (records[2].message or "")
    messages = [line for line in log_of(tmp_path) if "message" in line]
    assert [line["step"] for line in messages] == [3]


def test_a_run_that_gives_up_keeps_its_last_good_state(tmp_path: Path, data: Path) -> None:
    run = open_run(tmp_path, data)
    break_losses(run, set(range(5, 100)), patience=2, snapshot_steps=2, max_rollbacks=1)

    def all_steps() -> None:
        for record in run.steps():
            if record.skipped:
                spoil(run)

    with pytest.raises(TrainingError):
        all_steps()
    assert [path.name for path in checkpoints(tmp_path)] == ["00000003", "00000004"]
    assert finite(latest_checkpoint(tmp_path).path)
    assert [line["step"] for line in log_of(tmp_path) if "loss" in line] == [1, 2, 3, 4]
    assert len(list(open_run(tmp_path, data, resume=True).steps())) == 4


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, data: Path) -> None:
    said: list[str] = []
    run = with_voice(tmp_path, data, said)
    for record in run.steps():
        if record.step >= 5:
            spoil(run)  # as an update can whose loss was still finite
        if record.step == 7:
            break
    assert [path.name for path in checkpoints(tmp_path)] == ["00000003"]
    assert any("not finite: not saved" in line for line in said)


def test_a_rollback_leaves_no_newer_checkpoint_and_no_abandoned_lines(
    tmp_path: Path, data: Path
) -> None:
    run = open_run(tmp_path, data, save_every=1, log_every=1)
    break_losses(run, {6, 7}, patience=2, snapshot_steps=4)
    steps = run.steps()
    for record in steps:
        if record.rolled_back:
            break
    assert record.step == 4
    steps.close()  # type: ignore[attr-defined]
    assert [path.name for path in checkpoints(tmp_path)] == ["00000003", "00000004"]
    newest = load_checkpoint(latest_checkpoint(tmp_path).path, training=True)
    assert (newest.step, newest.images, newest.retry, newest.position) == (4, 16, 1, 7 * BATCH)
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4, 4]
    assert "rolled back from step 7 to step 4" in log_of(tmp_path)[-1]["message"]
    list(open_run(tmp_path, data, resume=True).steps())
    losses = [line["step"] for line in log_of(tmp_path) if "loss" in line]
    assert losses == list(range(1, STEPS + 1))


def test_a_rollback_is_saved_at_once(tmp_path: Path, data: Path) -> None:
    run = open_run(tmp_path, data, save_every=5)
    break_losses(run, {6, 7}, patience=2, snapshot_steps=2)
    for record in run.steps():
        if record.step == 5 and not record.rolled_back and run.state.retry:
            # Killed here, the run must not go on from the checkpoint of the abandoned step 5.
            assert [path.name for path in checkpoints(tmp_path)] == ["00000004"]
            break
    else:
        pytest.fail("no rollback")


def test_an_exception_inside_a_step_saves_nothing_torn(
    tmp_path: Path, data: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path, data)
    update, count = run.state.ema.update, itertools.count(1)

    def interrupted(network: Any, decay: float) -> None:
        if next(count) == 5:
            raise KeyboardInterrupt
        update(network, decay)

    # Between the optimizer's step and the average's.
    monkeypatch.setattr(run.state.ema, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run.steps())
    assert checkpoints(tmp_path)[-1].name == "00000003"
    list(open_run(tmp_path, data, resume=True).steps())
    assert_same_run(tmp_path, whole)


def test_an_error_of_the_data_keeps_the_last_step(
    tmp_path: Path, data: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_module.Batches.__next__

    def failing(batches: Any) -> Any:
        if batches.position == 5 * BATCH:
            raise DataError("the disk is gone")
        return real(batches)

    monkeypatch.setattr(run_module.Batches, "__next__", failing)
    with pytest.raises(DataError, match="the disk is gone"):
        list(open_run(tmp_path, data).steps())
    monkeypatch.undo()
    assert checkpoints(tmp_path)[-1].name == "00000005"
    list(open_run(tmp_path, data, resume=True).steps())
    assert_same_run(tmp_path, whole)


def test_files_found_broken_are_told(tmp_path: Path) -> None:
    for number, image in enumerate(pixels(count=120)):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number:03d}.png")
    images = open_images(tmp_path)
    # Broken after opening, which had read it: the first image of the second batch.
    place = int(stream(120, 0, BATCH, 1)[0][0])
    (tmp_path / images.names(place)).write_bytes(b"no image any more")
    said: list[str] = []
    config = RunConfig(small(steps=8), DataConfig(), QUIET)
    run = Run.open(config, tmp_path / "run", images=images, say=said.append)
    assert run.unreadable == ()
    list(run.steps())
    told = [line for line in said if "unreadable" in line]
    assert len(told) == 1
    assert f"{place:03d}.png" in told[0]
    assert [f"{place:03d}.png" in line for line in run.unreadable] == [True]
    messages = [line["message"] for line in log_of(tmp_path / "run") if "message" in line]
    assert len(messages) == 1
    assert f"{place:03d}.png" in messages[0]
