"""Weights of published networks: found in files, checked by hash, never unpickled as code."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from typing import cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sfumato.errors import CheckpointError, first_line


def cache_folder() -> Path:
    """Where downloaded weights are kept and looked for."""
    return Path.home() / ".cache" / "sfumato"


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked_hash(path: Path) -> str:
    """SHA-256 of a file of weights; CheckpointError when it is missing or not what its name says.

    Published files end in `-` and the first 8 digits of their hash (`name-6726825d.pth`).
    """
    if not path.is_file():
        raise CheckpointError(f"no file of weights at {path}")
    digest = file_hash(path)
    promised = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if promised and not digest.startswith(promised[1]):
        raise CheckpointError(
            f"{path} is damaged: its name promises the SHA-256 {promised[1]}..., it has "
            f"{digest[:8]}...: download it again"
        )
    return digest


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive rather than a state dict."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def load_torchscript(path: Path, purpose: str) -> torch.jit.ScriptModule:
    """A TorchScript module in evaluation mode, on the CPU; CheckpointError when it is none."""
    try:
        module = cast("torch.jit.ScriptModule", torch.jit.load(str(path), map_location="cpu"))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a TorchScript file for {purpose} ({first_line(error)}): "
            "it should come from torch.jit.save"
        ) from None
    module.eval()
    return module


def load_state(path: Path, purpose: str) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors file or of a .pth, read with no code executed."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError,
        ValueError, KeyError, IndexError, AttributeError,
    ) as error:  # fmt: skip
        # torch's own message advises to load it as code after all.
        code = isinstance(error, pickle.UnpicklingError)
        reason = "it holds something else than tensors" if code else first_line(error)
        raise CheckpointError(
            f"cannot read the weights of {purpose} from {path} ({reason}): expected a state dict "
            "saved by torch or safetensors; an incomplete download looks like this too"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path} holds no plain state dict: expected tensors by name for {purpose}"
        )
    return cast("dict[str, Tensor]", state)


def fit_state(network: nn.Module, state: dict[str, Tensor], path: Path, purpose: str) -> None:
    """Give a network (also one on the meta device) the tensors of a state dict, as float32.

    Every tensor of the network must be there, in its shape; others in the file are left out.
    """
    own = network.state_dict()
    fitting: dict[str, Tensor] = {}
    missing: list[str] = []
    for key, target in own.items():
        if key.endswith("num_batches_tracked"):
            fitting[key] = torch.zeros((), dtype=torch.long)
        elif key not in state:
            missing.append(key)
        elif state[key].shape != target.shape:
            raise CheckpointError(
                f"{path} does not fit {purpose}: {key} has shape {list(state[key].shape)}, "
                f"expected {list(target.shape)}"
            )
        else:
            # Files may hold transposed views; kernels, and so last digits, depend on strides.
            fitting[key] = state[key].float().contiguous()
    if missing:
        raise CheckpointError(
            f"{path} does not fit {purpose}: {len(missing)} of {len(own)} tensors are missing, "
            f"the first is {missing[0]}"
        )
    network.load_state_dict(fitting, assign=True)
    network.eval().requires_grad_(False)


def download(url: str, destination: Path, sha256: str) -> Path:
    """Fetch a file unless it is there; CheckpointError unless its SHA-256 begins with `sha256`.

    It is written to a temporary name and renamed, so an interrupted download leaves no half file.
    """
    if destination.is_file() and file_hash(destination).startswith(sha256):
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=destination.parent, suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=60) as source:
            shutil.copyfileobj(source, file)
        found = file_hash(part)
        if not found.startswith(sha256):
            raise CheckpointError(
                f"{url} gave a file with SHA-256 {found[:16]}..., expected {sha256[:16]}...: "
                "nothing was kept"
            )
        part.replace(destination)
    except OSError as error:
        raise CheckpointError(
            f"could not download {url} ({first_line(error)}): fetch it by other means and put it "
            f"at {destination}"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return destination
