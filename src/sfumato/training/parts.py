"""Checkpoints that processes write together, each its parts, by torch.distributed.checkpoint.

The files are safetensors, one a process (shard-NNNNN-...), which say where their parts belong: any
number of processes reads them again, one by itself too.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.processes import Processes, is_loss
from sfumato.training.storage import FolderWriter, describe_file, unsaved, verify_file


def write_parts(
    target: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], processes: Processes
) -> None:
    """Write a checkpoint folder, all processes together; it appears whole or not at all.

    `about` is its description, without the files. CheckpointError in all of them where one cannot
    write.
    """
    from torch.distributed.checkpoint import hf_storage, state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException

    folder: list[FolderWriter] = []

    def start() -> str:
        try:
            folder.append(FolderWriter(target))
        except OSError as error:
            raise unsaved(target, error) from error
        return str(folder[0].path)

    def finish() -> None:
        files = {name: file for mine in described for name, file in mine.items()}
        try:
            content = tomli_w.dumps({**about, "files": files}).encode()
            folder[0].write("checkpoint.toml", content)
            folder[0].commit()
        except OSError as error:
            raise unsaved(target, error) from error

    place = Path(processes.from_first(start))
    try:
        writer = hf_storage.HuggingFaceStorageWriter(str(place), save_distributed=True)
        try:
            state_dict_saver.save(
                dict(tensors), storage_writer=writer, process_group=processes.group
            )
        except CheckpointException as error:
            first = next(iter(error.failures.values()))[0]
            if is_loss(first):
                raise first from error
            raise unsaved(target, first) from error
        # Each process reads again what it wrote, while that is in memory.
        mine = place.glob(f"shard-{processes.rank + 1:05d}-*.safetensors")
        described = processes.all({path.stem: describe_file(path) for path in mine})
        processes.from_first(finish)
    except BaseException:
        for one in folder:
            one.discard()
        raise


def read_parts(
    path: Path, files: Mapping[str, Any], prefixes: Sequence[str], *, verify: bool
) -> dict[str, Tensor]:
    """Return whole tensors, those whose names begin so, in one process.

    verify: check all files first. CheckpointError where one is missing, damaged or unreadable.
    """
    if verify:
        for name, expected in files.items():
            verify_file(path / f"{name}.safetensors", expected)
    from torch.distributed.checkpoint import hf_storage

    try:
        found = hf_storage.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except Exception as error:
        raise CheckpointError(f"{path} has unreadable parts: {error}") from error
    described: dict[str, Any] = {k: v for k, v in found.items() if k.startswith(tuple(prefixes))}
    tensors = {k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in described.items()}
    fill_from_parts(path, tensors)
    return tensors


def fill_from_parts(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read into tensors, or into this process's parts of them; no process waits for another.

    Raises CheckpointError where names or shapes are others.
    """
    from torch.distributed.checkpoint import hf_storage, state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException

    reader = hf_storage.HuggingFaceStorageReader(str(path))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            state_dict_loader.load(dict(tensors), storage_reader=reader, no_dist=True)
    except (CheckpointException, RuntimeError, ValueError, OSError) as error:
        told = error
        if isinstance(error, CheckpointException):
            told = next(iter(error.failures.values()))[0]
        raise CheckpointError(
            f"{path} cannot be read into this network: {told}; build the network from the "
            "checkpoint's own description, or use an earlier checkpoint"
        ) from error
