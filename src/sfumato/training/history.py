"""The checkpoints of a run: which is the newest good one, which may go."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import CheckpointError
from sfumato.training.checkpoint import DESCRIPTION, OtherFormatError, read_description
from sfumato.training.storage import put_back, verify_file


def verify(path: Path) -> None:
    """Check every file of a checkpoint by size and hash; CheckpointError where one fails."""
    for name, expected in read_description(path)["files"].items():
        verify_file(path / f"{name}.safetensors", expected)


@dataclass(frozen=True)
class Latest:
    """The newest valid checkpoint of a run, and why newer ones were passed over."""

    path: Path
    skipped: tuple[str, ...]


def latest_checkpoint(run: Path) -> Latest:
    """Return the newest checkpoint whose files are all as written.

    Raises CheckpointError where there is none, and OtherFormatError rather than return one older
    than what another version of Sfumato wrote.
    """
    if run.is_file():
        raise CheckpointError(f"{run} is a file: give the folder of a training run")
    if not (run / "checkpoints").is_dir() and any(run.glob(f"*/{DESCRIPTION}")):
        raise CheckpointError(
            f"{run} holds the checkpoints of a run: give the run's folder, {run.parent}, "
            "or one of the checkpoints"
        )
    skipped: list[str] = []
    for path in reversed(checkpoints(run)):
        try:
            verify(path)
        except OtherFormatError:
            raise
        except CheckpointError as error:
            skipped.append(f"skipped damaged checkpoint: {error}")
        else:
            return Latest(path, tuple(skipped))
    if not run.is_dir():
        raise CheckpointError(f"{run} does not exist: expected the folder of a training run")
    if not skipped and not any((run / name).exists() for name in ("checkpoints", "config.toml")):
        raise CheckpointError(
            f"{run} is no training run: expected a folder that sfumato train wrote, with "
            "config.toml and checkpoints"
        )
    found = "; ".join(skipped) or "no checkpoint was saved yet"
    raise CheckpointError(f"{run} has no usable checkpoint: {found}")


def checkpoints(run: Path) -> list[Path]:
    """Return the folders of a run's finished checkpoints, oldest first, unchecked."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    put_back(folder)
    return sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def drop_after(run: Path, step: int) -> list[Path]:
    """Delete the checkpoints after `step`, a future that was abandoned; return them."""
    deleted = [path for path in checkpoints(run) if int(path.name) > step]
    for path in reversed(deleted):
        shutil.rmtree(path, ignore_errors=True)
    return deleted


def prune(run: Path, keep_last: int, keep: Sequence[int] = ()) -> list[Path]:
    """Delete checkpoints but the last `keep_last` valid ones and the steps in `keep`.

    The newest valid one always stays, damaged ones newer than it too. Returns what was deleted.
    """
    valid = 0
    deleted: list[Path] = []
    for path in reversed(checkpoints(run)):
        wanted = valid < max(keep_last, 1) or int(path.name) in keep
        try:
            if valid < max(keep_last, 1):
                verify(path)
                valid += 1
        except CheckpointError:
            continue
        if not wanted:
            shutil.rmtree(path, ignore_errors=True)
            deleted.append(path)
    return deleted
