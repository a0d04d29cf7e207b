"""Real processes over gloo: a function in two of them, or a command line by torchrun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sfumato.processes import Processes, joined

Job = Callable[[Processes, Path], Any]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def together(job: Job, folder: Path, count: int = 2) -> list[Any]:
    """What a function of a test's module returns in each of `count` processes."""
    torch.multiprocessing.spawn(_one, (count, free_port(), job, str(folder)), nprocs=count)
    return [torch.load(folder / f"returned-{rank}.pt", weights_only=False) for rank in range(count)]


def _one(rank: int, count: int, port: int, job: Job, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with joined() as processes:
        torch.save(job(processes, Path(folder)), f"{folder}/returned-{rank}.pt")
        processes.wait()


def torchrun(arguments: Sequence[str], count: int = 2) -> list[str]:
    """The command line; `arguments` begin with -m or a script."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    return [*launcher, "--master-port", str(free_port()), *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, timeout=150
    )


def process_of(rank: int, launcher: subprocess.Popen[str]) -> int:
    """The number of the process that torchrun started as `rank`."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = f"PPid:\t{launcher.pid}\n" in status.read_text()
            told = (status.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent and f"RANK={rank}".encode() in told:
            return int(status.parent.name)
    raise LookupError(f"no process of rank {rank}")
