"""Checkpoints: whole or absent, checked, and clear about what is wrong."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from sfumato.errors import CheckpointError
from sfumato.training import storage
from sfumato.training.checkpoint import (
    OtherFormatError,
    expect_same,
    load_checkpoint,
    read_description,
    restore,
    save_checkpoint,
)
from sfumato.training.history import checkpoints, drop_after, latest_checkpoint, prune, verify
from sfumato.training.interruption import Interruption
from sfumato.training.loop import train
from sfumato.training.state import TrainState
from training_helpers import Data, plan, tiny

DESCRIBE = {"recipe": {"name": "edm", "rate": 1e-3}, "data": {"channels": 1, "size": [8, 8]}}


@pytest.fixture(scope="module")
def trained() -> TrainState:
    state = TrainState.start(tiny(), plan())
    list(train(state, Data(), plan(), images=24))
    return state


def save(run: Path, state: TrainState, step: int = 3) -> Path:
    state.step = step
    return save_checkpoint(run, state, DESCRIBE, position=40)


def test_what_is_saved_comes_back(trained: TrainState, tmp_path: Path) -> None:
    path = save(tmp_path, trained)
    assert path == tmp_path / "checkpoints" / "00000003"
    loaded = load_checkpoint(path, training=True)
    assert (loaded.step, loaded.images, loaded.position, loaded.retry) == (3, 24, 40, 0)
    assert loaded.describe == DESCRIBE
    fresh = TrainState.start(tiny(seed=5), plan())
    restore(fresh, loaded)
    for mine, theirs in (
        (fresh.network, trained.network),
        (fresh.ema.network, trained.ema.network),
    ):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], tensor)
    assert torch.equal(fresh.statistics.sums, trained.statistics.sums)
    plain = safetensors.torch.load_file(path / "ema.safetensors")
    assert plain.keys() == trained.ema.network.state_dict().keys()


def test_sampling_needs_only_the_average(trained: TrainState, tmp_path: Path) -> None:
    path = save(tmp_path, trained)
    (path / "network.safetensors").unlink()
    (path / "training.safetensors").unlink()
    loaded = load_checkpoint(path, training=False)
    assert loaded.network is None
    with pytest.raises(CheckpointError, match="loaded for sampling"):
        restore(trained, loaded)
    with pytest.raises(CheckpointError, match=r"network\.safetensors cannot be read"):
        load_checkpoint(path, training=True)
    small = save_checkpoint(tmp_path / "b", trained, {}, position=0, weights_only=True)
    assert sorted(p.name for p in small.iterdir()) == ["checkpoint.toml", "ema.safetensors"]
    assert load_checkpoint(small, training=False).ema.keys() == loaded.ema.keys()
    with pytest.raises(CheckpointError, match="only averaged weights"):
        load_checkpoint(small, training=True)


@pytest.mark.parametrize("name", ["ema", "network", "training"])
def test_truncated_and_altered_files_are_named(
    name: str, trained: TrainState, tmp_path: Path
) -> None:
    path = save(tmp_path, trained)
    file = path / f"{name}.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(
        CheckpointError, match=rf"{name}.safetensors is truncated .*{len(whole)} were"
    ):
        load_checkpoint(path, training=True)
    changed = bytearray(whole)
    changed[-5] ^= 1
    file.write_bytes(bytes(changed))
    with pytest.raises(CheckpointError, match=rf"{name}.safetensors was changed or damaged"):
        load_checkpoint(path, training=True)
    with pytest.raises(CheckpointError, match=name):
        verify(path)


def test_other_versions_missing_and_damaged_descriptions(
    trained: TrainState, tmp_path: Path
) -> None:
    path = save(tmp_path, trained)
    toml = path / "checkpoint.toml"
    text = toml.read_text()
    toml.write_text(text.replace("format = 1", "format = 7"))
    with pytest.raises(CheckpointError, match="format 7, this version of sfumato reads 1"):
        load_checkpoint(path, training=False)
    toml.write_text(text[: len(text) // 3])
    with pytest.raises(CheckpointError, match=r"checkpoint\.toml"):
        read_description(path)
    toml.write_text("format = 1\n")
    with pytest.raises(CheckpointError, match="lacks"):
        read_description(path)
    toml.unlink()
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        read_description(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_description(tmp_path / "nowhere")


def test_another_network_or_data_shape_is_refused_naming_both(
    trained: TrainState, tmp_path: Path
) -> None:
    loaded = load_checkpoint(save(tmp_path, trained), training=True)
    wide = TrainState.start(tiny(channels=3), plan())
    with pytest.raises(
        CheckpointError, match=r"\(6, 1, 3, 3\) in the checkpoint and \(6, 3, 3, 3\)"
    ):
        restore(wide, loaded)
    expect_same(loaded, {"channels": 1, "size": [8, 8]})
    with pytest.raises(CheckpointError, match="channels is 3 here and 1 in the checkpoint"):
        expect_same(loaded, {"channels": 3, "size": [8, 8]})


def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_litter(
    trained: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save(tmp_path, trained, 3)
    real, written = os.fsync, []

    def full(handle: int) -> None:
        written.append(handle)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device; earlier checkpoints"):
        save(tmp_path, trained, 4)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000003"]
    assert latest_checkpoint(tmp_path).path == first
    assert save(tmp_path, trained, 4).name == "00000004"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device_is_reported_in_words(
    trained: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def redirected(self: Path, *args: str) -> object:
        return real(Path("/dev/full") if self.name == "network.safetensors" else self, *args)

    monkeypatch.setattr(Path, "open", redirected)
    with pytest.raises(CheckpointError, match="No space left"):
        save(tmp_path, trained)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_an_unwritable_place_and_untomlable_descriptions(
    trained: TrainState, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not save"):
        save(tmp_path / "file", trained)
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, trained, {"a": None}, position=0)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_latest_good_one_is_found_and_damaged_ones_are_reported(
    trained: TrainState, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        latest_checkpoint(tmp_path / "no")
    with pytest.raises(CheckpointError, match="is no training run"):
        latest_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint was saved yet"):
        latest_checkpoint(tmp_path)
    paths = [save(tmp_path, trained, step) for step in (2, 10, 100)]
    assert checkpoints(tmp_path) == paths
    (paths[2] / "ema.safetensors").write_bytes(b"short")
    (tmp_path / "checkpoints" / ".writing-00000200").mkdir()
    latest = latest_checkpoint(tmp_path)
    assert latest.path == paths[1]
    assert len(latest.skipped) == 1
    assert "00000100" in latest.skipped[0]


def test_another_versions_checkpoint_is_not_passed_over_as_damaged(
    trained: TrainState, tmp_path: Path
) -> None:
    paths = [save(tmp_path, trained, step) for step in (2, 10, 100)]
    toml = paths[1] / "checkpoint.toml"
    toml.write_text(toml.read_text().replace("format = 1", "format = 2"))
    assert latest_checkpoint(tmp_path).path == paths[2]
    (paths[2] / "ema.safetensors").write_bytes(b"short")
    # What it holds is newer than step 2: going on from there would lose it without a word.
    with pytest.raises(OtherFormatError, match="00000010 has checkpoint format 2"):
        latest_checkpoint(tmp_path)


def test_a_place_that_is_no_run_is_told_for_what_it_is(trained: TrainState, tmp_path: Path) -> None:
    path = save(tmp_path / "run", trained)
    with pytest.raises(CheckpointError, match=r"holds the checkpoints of a run.*run, or one"):
        latest_checkpoint(path.parent)
    with pytest.raises(CheckpointError, match="is a file: give the folder"):
        latest_checkpoint(path / "ema.safetensors")
    # A run may have any name.
    assert (
        save(tmp_path / "checkpoints", trained) == latest_checkpoint(tmp_path / "checkpoints").path
    )


def test_an_abandoned_future_is_deleted(trained: TrainState, tmp_path: Path) -> None:
    paths = [save(tmp_path, trained, step) for step in (2, 10, 100)]
    assert drop_after(tmp_path, 10) == [paths[2]]
    assert checkpoints(tmp_path) == paths[:2]
    assert drop_after(tmp_path, 10) == []


def test_a_replacement_that_fails_leaves_the_old_one(
    trained: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, trained)
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name.startswith(".writing"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    trained.step = 3
    with pytest.raises(CheckpointError, match="Permission denied"):
        save_checkpoint(tmp_path, trained, {"again": True}, position=1)
    monkeypatch.undo()
    assert [p.name for p in path.parent.iterdir()] == ["00000003"]
    assert load_checkpoint(path, training=True).describe == DESCRIBE


def test_saving_the_same_step_again_replaces_it(trained: TrainState, tmp_path: Path) -> None:
    save(tmp_path, trained, 3)
    trained.step = 3
    path = save_checkpoint(tmp_path, trained, {"again": True}, position=1)
    assert load_checkpoint(path, training=False).describe == {"again": True}
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000003"]


def test_pruning_keeps_the_last_the_wanted_and_a_valid_one(
    trained: TrainState, tmp_path: Path
) -> None:
    paths = [save(tmp_path, trained, step) for step in (1, 2, 3, 4, 5)]
    assert prune(tmp_path, keep_last=2, keep=[1]) == [paths[2], paths[1]]
    assert checkpoints(tmp_path) == [paths[0], paths[3], paths[4]]
    (paths[4] / "network.safetensors").unlink()
    prune(tmp_path, keep_last=0)
    assert paths[3] in checkpoints(tmp_path)
    assert latest_checkpoint(tmp_path).path == paths[3]


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)
            self.b = nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

    content = storage.to_bytes(Tied().state_dict())
    assert safetensors.torch.load(content).keys() == {"a.weight", "b.weight"}


REPLACED = """
import sys, os, signal
from pathlib import Path
from sfumato.training.checkpoint import save_checkpoint
from sfumato.training.state import TrainState
from training_helpers import plan, tiny

run, state = Path(sys.argv[1]), TrainState.start(tiny(), plan())
save_checkpoint(run, state, {"turn": 1}, position=0)
rename = Path.rename

def killed(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)

Path.rename = killed
save_checkpoint(run, state, {"turn": 2}, position=0)
"""


def in_a_process(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["src", ".", *sys.path])},
        check=False,
    )


def test_kill_9_between_the_renames_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    done = in_a_process(REPLACED, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "checkpoints/00000000").exists()
    latest = latest_checkpoint(tmp_path)
    assert load_checkpoint(latest.path, training=True).describe == {"turn": 1}
    # The next save clears up what the killed one had written.
    save_checkpoint(tmp_path, TrainState.start(tiny(), plan()), {"turn": 3}, position=0)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000000"]
    assert load_checkpoint(latest.path, training=True).describe == {"turn": 3}


def test_the_next_save_does_not_delete_what_a_killed_one_was_replacing(
    trained: TrainState, tmp_path: Path
) -> None:
    done = in_a_process(REPLACED, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    storage.FolderWriter(tmp_path / "checkpoints/00000007").discard()
    assert load_checkpoint(tmp_path / "checkpoints/00000000", training=True).describe == {"turn": 1}


KILLED = """
import sys, os, signal
from pathlib import Path
from sfumato.training import storage
from sfumato.training.checkpoint import save_checkpoint
from sfumato.training.loop import train
from sfumato.training.state import TrainState
from training_helpers import Data, plan, tiny

run, written = Path(sys.argv[1]), []
state, data = TrainState.start(tiny(), plan()), Data()
for record in train(state, data, plan()):
    if record.step == 3:
        save_checkpoint(run, state, {}, position=data.position)
        real = os.fsync
        def slow(handle):
            real(handle)
            written.append(handle)
            if len(written) == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
        storage.os.fsync = slow
    if record.step == 5:
        save_checkpoint(run, state, {}, position=data.position)
        print("not killed")
"""


@pytest.mark.parametrize("writes", [1, 4])
def test_kill_9_while_saving_leaves_a_run_that_continues_to_the_bit(
    writes: int, tmp_path: Path
) -> None:
    done = in_a_process(KILLED, tmp_path, writes)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2  # the good one and the litter
    latest = latest_checkpoint(tmp_path)
    assert latest.path.name == "00000003"

    how = plan()
    resumed = TrainState.start(tiny(seed=1), how)
    checkpoint = load_checkpoint(latest.path, training=True)
    restore(resumed, checkpoint)
    list(train(resumed, Data(position=checkpoint.position), how, images=64))
    whole = TrainState.start(tiny(), how)
    list(train(whole, Data(), how, images=64))
    for name, tensor in whole.ema.network.state_dict().items():
        assert torch.equal(resumed.ema.network.state_dict()[name], tensor)
    save_checkpoint(tmp_path, resumed, {}, position=64)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000003", "00000008"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_a_wish(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interruption() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 2
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.name == number.name
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before
