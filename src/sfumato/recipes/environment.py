"""The machine a run meets: device, threads, versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from sfumato.errors import ConfigError
from sfumato.native import gpu
from sfumato.native.library import in_words


def pick_device(name: str) -> str:
    """Return the device asked for; "auto" takes CUDA where there is one. ConfigError otherwise."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}: give cpu, cuda or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported: give cpu, cuda or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is available here: use --device cpu")
    return name


def tune_device(device: str) -> None:
    """Let a GPU search for its fastest convolutions and use TF32 in products of float32.

    It becomes the process's current one, where what names no device goes.
    """
    if device.startswith("cuda"):
        if ":" in device:
            torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")


def set_threads(threads: int) -> int:
    """Set PyTorch's CPU threads (0 keeps its default) and return how many there are."""
    if threads < 0:
        raise ConfigError(f"threads must be 0 (default) or more, not {threads}")
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def describe(device: str) -> dict[str, str]:
    """Return what a reader needs to reproduce a number: versions, device, threads."""
    try:
        own = version("sfumato")
    except PackageNotFoundError:
        own = "not installed"
    cuda = device.startswith("cuda")
    hardware = torch.cuda.get_device_name() if cuda else platform.machine()
    return {
        "sfumato": own,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": f"{device} ({hardware})",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "kernels": gpu.in_words(device) if cuda else in_words(),
    }
