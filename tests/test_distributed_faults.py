"""What goes wrong between processes: killed ones, signals, cut saves, taken ports, slow ones."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_helpers import environment, process_of, torchrun
from distributed_helpers import run as run_command
from recipe_helpers import array_file, log_of, options_for
from sfumato.cli import main
from sfumato.errors import DataError, SfumatoError
from sfumato.processes import Processes, ProcessLostError, is_loss, meeting
from sfumato.recipes.run_team import agreed
from sfumato.training.checkpoint import load_checkpoint
from sfumato.training.history import checkpoints, latest_checkpoint
from sfumato.training.interruption import Interruption
from sfumato.training.loop import Record

LONG = 4 * 100_000
OPTIONS = [*options_for(LONG), "--optimizer.kind", "adam"]
PATIENCE = 90


def train(data: Path, folder: Path, *options: str) -> list[str]:
    return ["train", "edm-tiny", "--data", str(data), "--out", str(folder), *OPTIONS, *options]


@contextmanager
def started(arguments: Sequence[str], folder: Path) -> Generator[subprocess.Popen[str]]:
    """A job under torchrun that has saved a checkpoint; it is ended at the end if need be."""
    known = len(checkpoints(folder))
    launcher = subprocess.Popen(
        torchrun(["-m", "sfumato", *arguments]),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    newest = checkpoints(folder)[-1:]
    end = time.monotonic() + PATIENCE
    try:
        while len(checkpoints(folder)) <= known and checkpoints(folder)[-1:] == newest:
            assert launcher.poll() is None, launcher.communicate()
            assert time.monotonic() < end, "no checkpoint"
            time.sleep(0.05)
        yield launcher
    finally:
        if launcher.poll() is None:
            launcher.terminate()
            launcher.wait(PATIENCE)


def goes_on(folder: Path, steps: int = 3) -> None:
    """One process takes up the run where its newest checkpoint is."""
    latest = latest_checkpoint(folder)
    assert not latest.skipped
    before = load_checkpoint(latest.path, training=True)
    images = before.images + 4 * steps
    assert main(["train", "--resume", str(folder), "--images", str(images)]) == 0
    after = load_checkpoint(latest_checkpoint(folder).path, training=True)
    assert after.step == before.step + steps


@pytest.mark.parametrize(("rank", "options"), [(1, ()), (0, ("--fsdp",))], ids=["ddp", "fsdp"])
def test_a_killed_process_ends_the_job_and_leaves_a_good_run(
    tmp_path: Path, rank: int, options: tuple[str, ...]
) -> None:
    data, folder = array_file(tmp_path), tmp_path / "run"
    with started(train(data, folder, *options), folder) as launcher:
        os.kill(process_of(rank, launcher), signal.SIGKILL)
        _, told = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode != 0
    assert "another process of this job has ended" in told
    assert "--resume" in told
    goes_on(folder)


def test_a_signal_to_one_process_ends_all_with_a_checkpoint(tmp_path: Path) -> None:
    data, folder = array_file(tmp_path), tmp_path / "run"
    with started(train(data, folder, "--save-every", "10"), folder) as launcher:
        os.kill(process_of(1, launcher), signal.SIGTERM)
        out, _ = launcher.communicate(timeout=PATIENCE)
    assert "stopped by" in out
    assert f"sfumato train --resume {folder}" in out
    # The last step that was logged is the one that was saved.
    assert log_of(folder)[-1]["step"] == int(latest_checkpoint(folder).path.name)
    goes_on(folder)


CUT = """
import os, signal, sys
from sfumato.training import {module} as place

whole, calls = place.{name}, [0]

def cut(*arguments):
    calls[0] += 1
    if calls[0] == {call} and os.environ["RANK"] == "{rank}":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)

place.{name} = cut
from sfumato.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("module", "name", "call", "rank", "options"),
    [
        # The second file of the first process's second checkpoint; a part that is written already.
        ("checkpoint.FolderWriter", "write", 6, 0, ()),
        ("parts", "describe_file", 2, 1, ("--fsdp",)),
    ],
    ids=["ddp", "fsdp"],
)
def test_a_save_cut_short_leaves_the_one_before(
    tmp_path: Path, module: str, name: str, call: int, rank: int, options: tuple[str, ...]
) -> None:
    data, folder, script = array_file(tmp_path), tmp_path / "run", tmp_path / "cut.py"
    parent, _, cls = module.partition(".")
    code = CUT.format(module=parent, name=name, call=call, rank=rank)
    if cls:
        code = code.replace("as place", f"as module\nplace = module.{cls}")
    script.write_text(code)
    ended = run_command(torchrun([str(script), *train(data, folder, *options)]))
    assert ended.returncode != 0
    assert latest_checkpoint(folder).path.name == "00000005"
    goes_on(folder)
    assert not list((folder / "checkpoints").glob(".writing-*"))


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    data, folder = array_file(tmp_path), tmp_path / "run"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ended = subprocess.run(
            [sys.executable, "-m", "sfumato", *train(data, folder)],
            env=environment() | place,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert ended.returncode == 2
    assert f"could not meet at 127.0.0.1:{port}" in ended.stderr
    assert "--master-port" in ended.stderr
    assert not folder.exists()


def test_the_slowest_sets_the_share_of_waiting() -> None:
    class Two(Processes):
        def stacked(self, mine: torch.Tensor) -> torch.Tensor:
            return torch.stack([mine, torch.tensor([9.0, 0.8, 1.0, 1.0], dtype=mine.dtype)])

        def all(self, value: Any) -> list[Any]:
            return [value, ["b is broken"]]

    record = Record(1, 4, 4, 1.0, 0.1, 1.0, seconds=1.0, waited=0.1)
    together, stop, news = agreed(Two(0, 2), record, False, ["a is broken"])
    assert (together.seconds, together.waited) == (1.0, pytest.approx(0.8))
    assert stop
    # What another process met is told by the first one too.
    assert news == ["a is broken", "b is broken"]
    assert agreed(Processes(), record, False, ["a"]) == (record, False, ["a"])


def test_what_one_process_keeps_on_disk_is_there_for_the_others() -> None:
    """One process of each machine goes first; an error of one is an error of all."""
    calls: list[str] = []

    def machine(rank: int, failures: list[Any]) -> Processes:
        class Of(Processes):
            def all(self, value: Any) -> list[Any]:
                calls.append("met")
                return [value, *failures]

        return Of(rank, 4, 2, rank % 2)

    def make() -> str:
        calls.append("made")
        return "it"

    assert machine(0, [None] * 3).one_a_machine_first(make) == "it"
    assert calls == ["made", "met"]
    calls.clear()
    assert machine(3, [None] * 3).one_a_machine_first(make) == "it"
    assert calls == ["met", "made"]
    calls.clear()
    with pytest.raises(DataError, match="no images"):
        machine(1, [(DataError, "no images")]).one_a_machine_first(make)
    assert calls == ["met"]


def test_lost_processes_are_told_from_errors_here() -> None:
    said = "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
    with pytest.raises(ProcessLostError, match="another process"), meeting():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes"), meeting():
        raise RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="Connection closed"), meeting(several=False):
        raise RuntimeError(said)
    assert not is_loss(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_loss(RuntimeError("the tensors stored there are others"))
    assert issubclass(ProcessLostError, SfumatoError)


def test_a_launcher_may_repeat_a_signal() -> None:
    with Interruption(patient=True) as interruption:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
    assert interruption.name == "SIGINT"
