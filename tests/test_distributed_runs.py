"""Runs of two processes: the run of one, resumed by other numbers of them, sampled by one."""

from __future__ import annotations

import filecmp
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bar_helpers import last_bar
from distributed_helpers import run as run_command
from distributed_helpers import together, torchrun
from recipe_helpers import QUIET, array_file, log_of, options_for, small
from sfumato.cli import main
from sfumato.errors import CheckpointError, SfumatoError
from sfumato.processes import Processes
from sfumato.recipes.config import Recipe
from sfumato.recipes.loading import load
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from sfumato.training.checkpoint import load_checkpoint
from sfumato.training.history import latest_checkpoint

STEPS = 6
HALF = 3


def recipe(**changes: Any) -> Recipe:
    base = small(steps=STEPS)
    network = replace(base.network, dropout=0.0)
    optimizer = replace(base.optimizer, kind="adam")
    return replace(base, network=network, optimizer=optimizer, **changes)


def opened(
    folder: Path,
    data: Path,
    processes: Processes,
    *,
    resume: bool = False,
    fsdp: bool = False,
    say: Callable[[str], None] | None = None,
    chosen: Recipe | None = None,
    **changes: Any,
) -> Run:
    config = RunConfig(
        chosen or recipe(),
        DataConfig(data=str(data), layout="NHWC"),
        replace(QUIET, fsdp=fsdp, sample_every=2, keep=9, **changes),
    )
    return Run.open(config, folder, resume=resume, processes=processes, say=say)


def half(run: Run) -> None:
    steps = run.steps()
    for record in steps:
        if record.step == HALF:
            break
    steps.close()  # type: ignore[attr-defined]


def whole(run: Run) -> None:
    for _ in run.steps():
        pass


def _runs(processes: Processes, folder: Path) -> dict[str, Any]:
    """Whole runs, halves for one process to go on with, and halves of one process gone on with."""
    data = folder / "images.npy"
    said: list[str] = []
    for name, fsdp in (("ddp", False), ("fsdp", True)):
        whole(opened(folder / name, data, processes, fsdp=fsdp, say=said.append))
        half(opened(folder / f"{name}-half", data, processes, fsdp=fsdp))
        whole(opened(folder / f"for-{name}", data, processes, fsdp=fsdp, resume=True))
    # A run in parts goes on as one in copies, and the other way round.
    half(opened(folder / "fsdp-ddp", data, processes, fsdp=True))
    whole(opened(folder / "fsdp-ddp", data, processes, resume=True))
    half(opened(folder / "ddp-fsdp", data, processes))
    whole(opened(folder / "ddp-fsdp", data, processes, fsdp=True, resume=True))
    refused = {}
    for what, options in {
        "recipe": {"chosen": recipe(batch=4 + processes.rank)},
        "options": {"save_every": 3 + processes.rank},
        "images": {"data": folder / f"images-{processes.rank}.npy"},
        "numbers of threads": {"threads": 1 + processes.rank},
        "muon": {"chosen": replace(recipe(), optimizer=small().optimizer), "fsdp": True},
        "batch": {"chosen": recipe(batch=1)},
    }.items():
        try:
            opened(folder / "refused", **{"data": data, "processes": processes, **options})
        except SfumatoError as error:
            refused[what] = str(error)
    timed = opened(folder / "timed", data, processes, minutes=0.02, chosen=recipe(images=10**7))
    rates = [record.learning_rate for record in timed.steps()]
    return {"said": said, "refused": refused, "rates": rates}


def assert_alike(folder: Path, other: Path) -> None:
    """The same losses to 1e-5, and the same states as closely."""
    for mine, theirs in zip(log_of(folder), log_of(other), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5), folder.name
    ours = load_checkpoint(latest_checkpoint(folder).path, training=True)
    those = load_checkpoint(latest_checkpoint(other).path, training=True)
    assert (ours.step, ours.images, ours.position) == (those.step, those.images, those.position)
    for part in ("network", "ema", "optimizer"):
        a, b = getattr(ours, part), getattr(those, part)
        assert a.keys() == b.keys()
        for key, tensor in a.items():
            assert torch.allclose(tensor, b[key], rtol=1e-3, atol=1e-5), (part, key)


def test_runs_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """Whole, resumed by one and by two, in copies (DDP) and in parts (FSDP2); one start for all."""
    folder, data, alone = tmp_path, array_file(tmp_path), Processes()
    np.save(folder / "images-0.npy", np.load(data))
    np.save(folder / "images-1.npy", np.load(data)[::-1])
    whole(opened(folder / "one", data, alone))
    for name in ("for-ddp", "for-fsdp"):
        half(opened(folder / name, data, alone))
    told = together(_runs, folder)

    pictures = {path.name for path in (folder / "one" / "samples").glob("*.png")}
    for name in ("ddp", "fsdp", "for-ddp", "for-fsdp", "fsdp-ddp", "ddp-fsdp"):
        assert_alike(folder / name, folder / "one")
        parts = list(latest_checkpoint(folder / name).path.glob("shard-*"))
        assert len(parts) == (2 if name.endswith("fsdp") else 0)
        # Pictures on the way come from the first process alone, also where weights are in parts.
        assert {path.name for path in (folder / name / "samples").glob("*.png")} == pictures
    assert pictures
    # One process goes on with a run of two.
    for name in ("ddp-half", "fsdp-half"):
        assert latest_checkpoint(folder / name).path.name == f"{HALF:08d}"
        whole(opened(folder / name, data, alone, resume=True, fsdp=True))
        assert_alike(folder / name, folder / "one")
    # And samples one in parts.
    drawn = {name: load(folder / name).sample(3).astype(int) for name in ("one", "fsdp")}
    assert np.abs(drawn["one"] - drawn["fsdp"]).max() <= 1
    raw = load(folder / "fsdp", weights="network")
    assert raw.fingerprint != load(folder / "fsdp").fingerprint
    # Only the first process speaks.
    assert any("images" in line for line in told[0]["said"])
    assert not told[1]["said"]
    # With --minutes, the clock of the first sets the rates of all, and when all stop.
    assert told[0]["rates"] == told[1]["rates"]
    assert len(set(told[0]["rates"])) > 3
    # Processes that do not fit refuse alike.
    for one in told:
        for what, reason in REFUSED.items():
            assert re.search(reason, one["refused"][what]), one["refused"]
    assert not (folder / "refused").exists()
    a_damaged_part_is_found(folder / "fsdp")


REFUSED = {
    "recipe": "process 1 has another recipe than process 0: batch = 5",
    "options": "process 1 has other options than process 0: save_every 4, not 3",
    "images": "process 1 has other images",
    "numbers of threads": r"different numbers of threads \(process 0: 1; process 1: 2\)",
    "muon": "--optimizer.kind adam",
    "batch": "a batch of 1 images cannot be shared by 2 processes",
}


def a_damaged_part_is_found(run: Path) -> None:
    newest = latest_checkpoint(run).path
    part = sorted(newest.glob("shard-*"))[1]
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not have the recorded hash"):
        load_checkpoint(newest, training=True)
    latest = latest_checkpoint(run)
    assert latest.path != newest
    assert part.name in latest.skipped[0]


def test_verbs_under_torchrun(tmp_path: Path) -> None:
    """Train by torchrun; sample and measure by two processes what one does, to the byte."""
    data = array_file(tmp_path)
    run = tmp_path / "run"
    command = ["-m", "sfumato", "train", "edm-tiny", "--data", str(data), "--out", str(run)]
    trained = run_command(torchrun([*command, *options_for(16)]))
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("trained on 16 images") == 1
    assert "2 processes share each batch of 4 images" in trained.stdout
    sample = ["sample", str(run), "-n", "9", "--batch", "2", "--seed", "3"]
    drawn = run_command(torchrun(["-m", "sfumato", *sample, "--out", str(tmp_path / "two")]))
    assert drawn.returncode == 0, drawn.stderr
    # The batches from 0, 4 and 8 are the first process's.
    assert last_bar(drawn.stderr, "process 0 of 2") == (5, 5)
    assert main([*sample, "--out", str(tmp_path / "one")]) == 0
    same = filecmp.dircmp(tmp_path / "one", tmp_path / "two")
    assert not same.left_only + same.right_only
    assert same.diff_files == ["sample.toml"]  # the time it took
    assert len(same.same_files) == 9 + 1
    script = tmp_path / "differ.py"
    script.write_text(
        "import os, sys\nfrom sfumato.cli import main\n"
        "sys.exit(main([*sys.argv[1:], '-n', str(2 + int(os.environ['RANK']))]))"
    )
    refused = run_command(torchrun([str(script), "sample", str(run), "--out", str(tmp_path / "d")]))
    assert refused.returncode != 0
    assert "the processes have different options" in refused.stderr
    assert not (tmp_path / "d").exists()
    measure = ["likelihood", str(run), "-n", "12", "--flow", "3", "--steps", "9", "--draws", "2"]
    cache = ["--cache", str(tmp_path / "cache")]
    told = run_command(torchrun(["-m", "sfumato", *measure, "--out", str(tmp_path / "a"), *cache]))
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("JSON:") == 1
    assert last_bar(told.stderr, "training images") == (15, 15)
    assert main([*measure, "--out", str(tmp_path / "b")]) == 0
    found = [json.loads((tmp_path / n / "likelihood.json").read_text()) for n in "ab"]
    assert found[0] == found[1]
