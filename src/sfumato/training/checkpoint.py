"""Checkpoints: a folder of safetensors and one TOML file, written whole or not at all.

`RUN/checkpoints/NNNNNNNN/` (the step) holds ema.safetensors (all that sampling needs),
network.safetensors, training.safetensors (optimizer and loss statistics) and checkpoint.toml, which
describes the rest: progress, the whole recipe, and size and hash of every file. Where processes
hold parts only, each writes one file of parts instead (see `parts`). A folder is written under a
temporary name, flushed to disk and renamed.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import tomli_w
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.processes import Processes
from sfumato.training.loss_aware import LossHistory
from sfumato.training.named_tensors import (
    SMALL,
    all_tensors,
    history_of,
    load_optimizer,
    load_weights,
    part_of,
    statistics_of,
    training_tensors,
)
from sfumato.training.parts import fill_from_parts, read_parts, write_parts
from sfumato.training.sharded import start_moments
from sfumato.training.state import TrainState
from sfumato.training.statistics import LevelStatistics
from sfumato.training.storage import FolderWriter, read_tensors, to_bytes, unsaved

FORMAT = 1
DESCRIPTION = "checkpoint.toml"


class OtherFormatError(CheckpointError):
    """A checkpoint that another version of Sfumato wrote: whole, but not to be read here."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint in memory, on the host.

    `position`: images handed out by the data. `describe`: what the writer said about the run.
    `network`, `optimizer` and `statistics` are None unless it was loaded for training. `unread`:
    it was written in parts, and its weights and moments stay on disk until `restore`.
    """

    path: Path
    step: int
    images: int
    position: int
    retry: int
    describe: dict[str, Any]
    ema: dict[str, Tensor]
    network: dict[str, Tensor] | None = None
    optimizer: dict[str, Tensor] | None = None
    statistics: LevelStatistics | None = None
    history: LossHistory | None = None
    hashes: dict[str, str] = field(default_factory=dict[str, str])
    unread: bool = False

    def hash_of(self, name: str) -> str:
        """First 16 hexadecimal digits of the hash of one file, such as "ema"; of parts, of all."""
        if name in self.hashes:
            return self.hashes[name][:16]
        whole = repr((name, sorted(self.hashes.items())))
        return hashlib.blake2b(whole.encode(), digest_size=8).hexdigest()


def save_checkpoint(
    run: Path,
    state: TrainState,
    describe: Mapping[str, Any],
    *,
    position: int,
    weights_only: bool = False,
    processes: Processes | None = None,
) -> Path:
    """Write RUN/checkpoints/<step>, replacing one of the same step, and return its path.

    `describe` must be expressible in TOML (no None). weights_only leaves out what only training
    needs. A sharded state is saved by all `processes` together, any other by one. Raises
    CheckpointError where it cannot be written (disk full, no permission): then
    nothing is left behind and earlier checkpoints are as they were.
    """
    target = run / "checkpoints" / f"{state.step:08d}"
    if state.sharded:
        if processes is None or weights_only:
            raise ValueError("a sharded state is saved whole, by all its processes")
        tensors = all_tensors(state)
        write_parts(target, tensors, _about(state, describe, position) | {"parts": True}, processes)
        return target
    folder: FolderWriter | None = None
    try:
        folder = FolderWriter(target)
        _write(folder, state, describe, position, weights_only)
        folder.commit()
    except BaseException as error:
        if folder is not None:
            folder.discard()
        if not isinstance(error, OSError):
            raise
        raise unsaved(target, error) from error
    return target


def load_checkpoint(path: Path, *, training: bool, parts: bool = False) -> Checkpoint:
    """Read a checkpoint; training=False reads and needs only the averaged weights.

    parts=True leaves what was written in parts to `restore`, which reads those of this process.
    Every file read is checked against its recorded size and hash. Raises CheckpointError, naming
    the file, where something is missing, truncated, altered or of another format version.
    """
    about = read_description(path)
    files = cast("dict[str, dict[str, Any]]", about["files"])
    if about.get("parts"):
        return _in_parts(path, about, training, parts)
    if training and not {"network", "training"} <= files.keys():
        raise CheckpointError(
            f"{path} holds only averaged weights, which is enough to sample but not to train on: "
            f"resume from a full checkpoint"
        )
    names = ["ema", "network", "training"] if training else ["ema"]
    tensors = {name: read_tensors(path / f"{name}.safetensors", files.get(name)) for name in names}
    return _loaded(path, about, tensors, training)


def _in_parts(path: Path, about: dict[str, Any], training: bool, parts: bool) -> Checkpoint:
    wanted = (
        SMALL if parts else ("ema.", "network.", "optimizer.", *SMALL) if training else ("ema.",)
    )
    found = read_parts(path, about["files"], wanted, verify=not parts)
    tensors = {"ema": part_of(found, "ema.")}
    if training:
        tensors["network"] = part_of(found, "network.")
        tensors["training"] = {
            k: t for k, t in found.items() if k.startswith((*SMALL, "optimizer."))
        }
    return replace(_loaded(path, about, tensors, training), unread=parts)


def _loaded(
    path: Path, about: dict[str, Any], tensors: dict[str, dict[str, Tensor]], training: bool
) -> Checkpoint:
    rest, files = tensors.get("training", {}), about["files"]
    return Checkpoint(
        path=path,
        step=about["step"],
        images=about["images"],
        position=about["position"],
        retry=about["retry"],
        describe=about["describe"],
        ema=tensors["ema"],
        network=tensors.get("network"),
        optimizer=part_of(rest, "optimizer.") if training else None,
        statistics=statistics_of(rest, about["statistics"]) if training else None,
        history=history_of(rest),
        hashes={name: file["blake2b"] for name, file in files.items()},
    )


def read_description(path: Path) -> dict[str, Any]:
    """Read checkpoint.toml alone: step, images, position, describe, files (for `info`).

    Raises CheckpointError where it is missing or unreadable, OtherFormatError where another version
    of Sfumato wrote it.
    """
    try:
        about = tomllib.loads((path / DESCRIPTION).read_text("utf-8"))
    except FileNotFoundError as error:
        what = "is no checkpoint" if path.is_dir() else "does not exist"
        raise CheckpointError(
            f"{path} {what}: expected a folder with a {DESCRIPTION}, "
            f"such as RUN/checkpoints/00001000"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CheckpointError(f"{path / DESCRIPTION} cannot be read: {error}") from error
    version = about.get("format")
    if version != FORMAT:
        raise OtherFormatError(
            f"{path} has checkpoint format {version}, this version of sfumato reads {FORMAT}: "
            f"use the version that wrote it, or train anew"
        )
    missing = {"step", "images", "position", "retry", "describe", "files", "statistics"} - {*about}
    if missing:
        lacks = ", ".join(sorted(missing))
        raise CheckpointError(f"{path / DESCRIPTION} is damaged: it lacks {lacks}")
    return about


def expect_same(checkpoint: Checkpoint, now: Mapping[str, Any], what: str = "data") -> None:
    """Raise CheckpointError where describe[what] differs from `now`, naming both values."""
    saved = cast("dict[str, Any]", checkpoint.describe.get(what, {}))
    different = [
        f"{key} is {now[key]!r} here and {saved.get(key)!r} in the checkpoint"
        for key in now
        if now[key] != saved.get(key)
    ]
    if different:
        raise CheckpointError(
            f"{checkpoint.path} was made for other {what}: {'; '.join(different)}; "
            f"use what it was trained on, or start a new run"
        )


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put a freshly started state where the checkpoint was, to the bit.

    Raises CheckpointError where it was loaded without training=True or belongs to another network.
    """
    if checkpoint.network is None or checkpoint.optimizer is None or checkpoint.statistics is None:
        raise CheckpointError(f"{checkpoint.path} was loaded for sampling; use training=True")
    if checkpoint.unread:
        start_moments(state.optimizer)
        kept = {k: t for k, t in all_tensors(state).items() if not k.startswith(SMALL)}
        fill_from_parts(checkpoint.path, kept)
    else:
        load_weights(state.network, checkpoint.network, checkpoint.path)
        load_weights(state.ema.network, checkpoint.ema, checkpoint.path)
        load_optimizer(state, checkpoint.optimizer)
    state.statistics, state.history = checkpoint.statistics, checkpoint.history
    state.step, state.images = checkpoint.step, checkpoint.images
    state.retry = checkpoint.retry


def _write(
    folder: FolderWriter,
    state: TrainState,
    describe: Mapping[str, Any],
    position: int,
    weights_only: bool,
) -> None:
    files = {"ema": folder.write("ema.safetensors", to_bytes(state.ema.network.state_dict()))}
    if not weights_only:
        network = to_bytes(state.network.state_dict())
        files["network"] = folder.write("network.safetensors", network)
        rest = training_tensors(state)
        files["training"] = folder.write("training.safetensors", to_bytes(rest))
    about = _about(state, describe, position) | {"files": files}
    folder.write(DESCRIPTION, tomli_w.dumps(about).encode())


def _about(state: TrainState, describe: Mapping[str, Any], position: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "step": state.step,
        "images": state.images,
        "position": position,
        "retry": state.retry,
        "statistics": {
            "sigma_data": state.statistics.sigma_data,
            "memory_images": state.statistics.memory_images,
        },
        "describe": dict(describe),
    }
