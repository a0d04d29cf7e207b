"""Files that are whole or absent: flushed to disk, renamed into place, checked when read."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sfumato.errors import CheckpointError

_TEMPORARY = ".writing-"
_REPLACED = ".replaced-"
_DIGEST = 32


class FolderWriter:
    """A folder under construction beside its final place; `commit` makes it appear at once."""

    def __init__(self, target: Path) -> None:
        """Start an empty folder; what an interrupted save left beside it is removed."""
        self.target = target
        self.path = target.with_name(f"{_TEMPORARY}{target.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        put_back(target.parent)
        for leftover in target.parent.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self.path.mkdir()

    def write(self, name: str, content: bytes) -> dict[str, Any]:
        """Write one file to disk; return its size and hash."""
        with (self.path / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return {"bytes": len(content), "blake2b": _hash(content)}

    def commit(self) -> None:
        """Rename the folder into place, replacing an old one."""
        _flush_folder(self.path)
        old = self.target.with_name(f"{_REPLACED}{self.target.name}")
        if self.target.exists():
            self.target.rename(old)
        self.path.rename(self.target)
        _flush_folder(self.target.parent)
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Remove what was written; what it was to replace is back in its place."""
        shutil.rmtree(self.path, ignore_errors=True)
        put_back(self.target.parent)


def unsaved(target: Path, error: BaseException) -> CheckpointError:
    """Return the error that says why a checkpoint could not be saved, and what there is instead."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    told = "nothing of this run has been saved so far. Free some space or choose another folder"
    if any(path.name.isdigit() for path in target.parent.glob("[0-9]*")):
        told = (
            "earlier checkpoints are unharmed. Free some space or choose another folder, and go on "
            "with --resume"
        )
    return CheckpointError(f"could not save {target}: {reason}; {told}")


def put_back(parent: Path) -> None:
    """Restore folders whose replacement was cut short; remove them where it was finished."""
    for old in parent.glob(f"{_REPLACED}*"):
        target = old.with_name(old.name.removeprefix(_REPLACED))
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):  # a folder that is only read from keeps it where it is
                old.rename(target)


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialise tensors of any device as safetensors; ones that share memory are stored twice."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        out[name] = host.clone() if host.data_ptr() in seen else host
        seen.add(host.data_ptr())
    return safetensors.torch.save(out)


def read_tensors(path: Path, expected: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Read a safetensors file whose size and hash must be `expected`; CheckpointError otherwise."""
    content = check_file(path, expected)
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error


def verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    """Check a file as `check_file` does, without holding it in memory."""
    try:
        found = describe_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    _compare(path, found["bytes"], found["blake2b"], expected)


def describe_file(path: Path) -> dict[str, Any]:
    """Return the size and hash of a file."""
    digest, size = hashlib.blake2b(digest_size=_DIGEST), 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "blake2b": digest.hexdigest()}


def check_file(path: Path, expected: Mapping[str, Any] | None) -> bytes:
    """Return a file's content; CheckpointError, saying how, where it is not what was written."""
    if expected is None:
        raise CheckpointError(f"{path} is not listed in its checkpoint's description")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    _compare(path, len(content), _hash(content), expected)
    return content


def _compare(path: Path, size: int, digest: str, expected: Mapping[str, Any]) -> None:
    if size != expected.get("bytes"):
        raise CheckpointError(
            f"{path} is truncated or was changed: it has {size} bytes, "
            f"{expected.get('bytes')} were written; use an earlier checkpoint"
        )
    if digest != expected.get("blake2b"):
        raise CheckpointError(
            f"{path} was changed or damaged: its content does not have the recorded hash; "
            f"use an earlier checkpoint"
        )


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST).hexdigest()


def _flush_folder(path: Path) -> None:
    """Make names durable, where the system can (Windows cannot open folders)."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
