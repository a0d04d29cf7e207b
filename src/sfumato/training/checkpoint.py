"""Checkpoints: a folder of safetensors and one TOML file, written whole or not at all.

`RUN/checkpoints/NNNNNNNN/` (the step) holds ema.safetensors (all that sampling needs),
network.safetensors, training.safetensors (optimizer and loss statistics) and checkpoint.toml, which
describes the rest: progress, the whole recipe, and size and hash of every file. A folder is
written under a temporary name, flushed to disk and renamed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import tomli_w
from torch import Tensor, nn

from sfumato.errors import CheckpointError
from sfumato.training.loss_aware import LossHistory
from sfumato.training.state import TrainState
from sfumato.training.statistics import LevelStatistics
from sfumato.training.storage import FolderWriter, read_tensors, to_bytes

FORMAT = 1
DESCRIPTION = "checkpoint.toml"


class OtherFormatError(CheckpointError):
    """A checkpoint that another version of Sfumato wrote: whole, but not to be read here."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint in memory, on the host.

    `position`: images handed out by the data. `describe`: what the writer said about the run.
    `network`, `optimizer` and `statistics` are None unless it was loaded for training.
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

    def hash_of(self, name: str) -> str:
        """First 16 hexadecimal digits of the hash of one file, such as "ema"."""
        return self.hashes[name][:16]


def save_checkpoint(
    run: Path,
    state: TrainState,
    describe: Mapping[str, Any],
    *,
    position: int,
    weights_only: bool = False,
) -> Path:
    """Write RUN/checkpoints/<step>, replacing one of the same step, and return its path.

    `describe` must be expressible in TOML (no None). weights_only leaves out what only training
    needs. Raises CheckpointError where it cannot be written (disk full, no permission): then
    nothing is left behind and earlier checkpoints are as they were.
    """
    target = run / "checkpoints" / f"{state.step:08d}"
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
        raise CheckpointError(
            f"could not save {target}: {error.strerror or error}; earlier checkpoints are "
            f"unharmed. Free some space or choose another folder, and go on with --resume"
        ) from error
    return target


def load_checkpoint(path: Path, *, training: bool) -> Checkpoint:
    """Read a checkpoint; training=False reads and needs only the averaged weights.

    Every file read is checked against its recorded size and hash. Raises CheckpointError, naming
    the file, where something is missing, truncated, altered or of another format version.
    """
    about = read_description(path)
    files = cast("dict[str, dict[str, Any]]", about["files"])
    if training and not {"network", "training"} <= files.keys():
        raise CheckpointError(
            f"{path} holds only averaged weights, which is enough to sample but not to train on: "
            f"resume from a full checkpoint"
        )
    names = ["ema", "network", "training"] if training else ["ema"]
    tensors = {name: read_tensors(path / f"{name}.safetensors", files.get(name)) for name in names}
    rest = tensors.get("training", {})
    return Checkpoint(
        path=path,
        step=about["step"],
        images=about["images"],
        position=about["position"],
        retry=about["retry"],
        describe=about["describe"],
        ema=tensors["ema"],
        network=tensors.get("network"),
        optimizer=_part(rest, "optimizer.") if training else None,
        statistics=_statistics(rest, about["statistics"]) if training else None,
        history=_history(rest),
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
    load_weights(state.network, checkpoint.network, checkpoint.path)
    load_weights(state.ema.network, checkpoint.ema, checkpoint.path)
    _load_optimizer(state, checkpoint.optimizer)
    state.statistics, state.history = checkpoint.statistics, checkpoint.history
    state.step, state.images = checkpoint.step, checkpoint.images
    state.retry = checkpoint.retry


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into a network; CheckpointError where names or shapes differ, naming them."""
    own = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    saved = {name: tuple(t.shape) for name, t in tensors.items()}
    if own == saved:
        network.load_state_dict(dict(tensors))
        return
    wrong = [n for n in own if saved.get(n) != own[n]] + [n for n in saved if n not in own]
    name = wrong[0]
    raise CheckpointError(
        f"{path} belongs to another network: {len(wrong)} tensors differ, for example '{name}' is "
        f"{saved.get(name, 'absent')} in the checkpoint and {own.get(name, 'absent')} here; "
        f"build the network from the checkpoint's own description"
    )


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
        rest = _optimizer_tensors(state)
        rest["statistics.borders"] = state.statistics.borders
        rest["statistics.sums"] = state.statistics.sums
        if state.history is not None:
            rest["history.values"] = state.history.values
            rest["history.counts"] = state.history.counts
        files["training"] = folder.write("training.safetensors", to_bytes(rest))
    about: dict[str, Any] = {
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
        "files": files,
    }
    folder.write(DESCRIPTION, tomli_w.dumps(about).encode())


def _statistics(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> LevelStatistics:
    return LevelStatistics(
        tensors["statistics.borders"],
        tensors["statistics.sums"],
        about["sigma_data"],
        about["memory_images"],
    )


def _history(tensors: Mapping[str, Tensor]) -> LossHistory | None:
    if "history.values" not in tensors:
        return None
    return LossHistory(tensors["history.values"], tensors["history.counts"])


def _trained(network: nn.Module) -> list[str]:
    """Names of the parameters in the optimizer's order."""
    return [name for name, p in network.named_parameters() if p.requires_grad]


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    """Flatten the optimizer's state: optimizer.<parameter>.<what>."""
    moments = cast("dict[int, dict[str, Tensor]]", state.optimizer.state_dict()["state"])
    names = _trained(state.network)
    return {
        f"optimizer.{names[index]}.{what}": tensor
        for index, entry in moments.items()
        for what, tensor in entry.items()
    }


def _load_optimizer(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    place = {name: index for index, name in enumerate(_trained(state.network))}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, what = key.rsplit(".", 1)
        moments.setdefault(place[name], {})[what] = tensor
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
