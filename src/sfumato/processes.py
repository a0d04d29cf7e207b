"""Several processes, as torchrun starts them, that share one piece of work.

What they tell each other here goes through the host: small, and patient, for some wait while others
draw pictures. Gradients and shards of weights are the business of `training.fabric`.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sfumato.errors import ConfigError, DataError, SfumatoError, first_line

T = TypeVar("T")

# Work between two meetings may take hours; that a process has died is noticed at once all the same.
_PATIENCE = timedelta(days=1)
# Of gradients, which wait for a process that measures the model or writes it down.
_GRADIENTS = timedelta(hours=2)


class ProcessLostError(SfumatoError):
    """Another process of the job has ended, or cannot be reached any more."""


def share(total: int, rank: int, count: int) -> range:
    """Return which of `total` places are those of process `rank` of `count`: one run of them.

    The shares lie in the order of ranks, cover everything once, and differ by one place at most.
    """
    return range(rank * total // count, (rank + 1) * total // count)


class Processes:
    """This process's place among all; alone unless started by torchrun.

    `count` processes in all, `local_count` of them on this machine, this one's number there being
    `local_rank`.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, local_count: int = 1, local_rank: int = 0
    ) -> None:
        self.rank, self.count = rank, count
        self.local_count, self.local_rank = local_count, local_rank
        self.group: Any = None
        """Of torch.distributed, on the host; None is its default group."""

    @property
    def first(self) -> bool:
        """Whether this process prints and writes results."""
        return self.rank == 0

    @property
    def named(self) -> str:
        """This process among several, for the title of what is its share alone; "" where alone."""
        return f"process {self.rank} of {self.count}" if self.count > 1 else ""

    def mine(self, number: int) -> bool:
        """Whether piece `number` of the work is this process's."""
        return number % self.count == self.rank

    def agree(self, failure: str = "") -> None:
        """Wait until all processes are here; DataError in all of them where one met a failure.

        So that none waits for another that has given up.
        """
        told = next(filter(None, self.all(failure)), "")
        if told:
            raise DataError(told)

    def check_same(self, text: str, what: str, fix: str = "give all the same --threads") -> None:
        """DataError in all processes where they do not have the same text."""
        texts = self.all(text)
        if len(set(texts)) == 1:
            return
        other = next(rank for rank, theirs in enumerate(texts) if theirs != texts[0])
        both = f" (process 0: {texts[0]}; process {other}: {texts[other]})"
        shown = both if len(both) < 400 else ""
        raise DataError(f"the processes have different {what}{shown}: {fix}")

    def all(self, value: T) -> list[T]:
        """Return the value of every process, by rank; they thereby wait for each other."""
        values: list[T] = [value] * self.count
        if self.count > 1:
            with meeting():
                dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """Return in all processes what the first one makes; its SfumatoError is raised in all."""
        if self.count == 1:
            return make()
        told: list[Any] = [None, None, ""]
        failed: SfumatoError | None = None
        if self.first:
            try:
                told[0] = make()
            except SfumatoError as error:
                failed = error
                told[1:] = [type(error), str(error)]
        with meeting():
            dist.broadcast_object_list(told, group=self.group)
        made, kind, text = told
        if failed is not None:
            raise failed
        if kind is not None:
            raise kind.__new__(kind, text)  # whatever its own constructor takes
        return made

    def one_a_machine_first(self, make: Callable[[], T]) -> T:
        """Make something in one process of each machine, then in the others.

        They find what the one keeps on disk. Its SfumatoError is raised in all.
        """
        if self.count == 1:
            return make()
        made: list[T] = []
        failed: SfumatoError | None = None
        if self.local_rank == 0:
            try:
                made.append(make())
            except SfumatoError as error:
                failed = error
        failures = self.all(None if failed is None else (type(failed), str(failed)))
        if failed is not None:
            raise failed
        for kind, text in filter(None, failures):
            raise kind.__new__(kind, text)
        return made[0] if made else make()

    def stacked(self, mine: Tensor) -> Tensor:
        """Return a float64 tensor of the same shape of every process, stacked by rank, on the host.

        Cheaper than `all`.
        """
        mine = mine.to("cpu", torch.float64).contiguous()
        if self.count == 1:
            return mine[None]
        rows = [torch.empty_like(mine) for _ in range(self.count)]
        with meeting():
            dist.all_gather(rows, mine, group=self.group)
        return torch.stack(rows)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.stacked(torch.zeros(()))


@contextmanager
def meeting(*, several: bool = True) -> Generator[None]:
    """Say in words what torch.distributed's errors mean: raises ProcessLostError for them.

    `several`: whether there are other processes at all; without them errors stay as they are.
    """
    try:
        yield
    except RuntimeError as error:
        if not (several and is_loss(error)):
            raise
        raise ProcessLostError(
            "another process of this job has ended or cannot be reached, so this one stops too; "
            f"look for what that one said ({first_line(error)})"
        ) from error


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another process is gone, and not that something is wrong here."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    words = r"\bgloo\b|\bnccl\b|connection (closed|reset|refused)|broken pipe|\bsocket\b|tcpstore"
    return isinstance(error, dist.DistError) or bool(re.search(words, str(error), re.IGNORECASE))


def started() -> int:
    """Return how many processes torchrun has started, by the environment; 1 without it."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdecimal() and int(count) else 1


def own_device(device: str) -> str:
    """The device of this process: each that torchrun started takes a GPU of its own.

    Raises ConfigError where several are told to take the same.
    """
    if "LOCAL_RANK" not in os.environ:
        return device
    if device.startswith("cuda:") and started() > 1:
        raise ConfigError(
            f"several processes were started, and all of them cannot use {device}: --device cuda "
            "gives each a GPU of its own"
        )
    if device != "cuda":
        return device
    return f"cuda:{int(os.environ['LOCAL_RANK']) % max(torch.cuda.device_count(), 1)}"


@contextmanager
def joined(*, device: str = "cpu") -> Generator[Processes]:
    """Join the processes torchrun started; a second block joins the same ones again.

    A process group that there is already is used, and must know gloo. After an error it is left.

    `device`: where they also exchange tensors, "cpu" or "cuda". Raises ConfigError where they
    cannot meet, or where there are more of them on a machine than GPUs that each needs one of.
    """
    if started() == 1:
        yield Processes()
        return
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cuda" and torch.cuda.device_count() < local:
        raise ConfigError(
            f"{local} processes were started on this machine, which has "
            f"{torch.cuda.device_count()} GPUs, and each trains on one of its own: "
            f"--nproc-per-node {max(torch.cuda.device_count(), 1)}, or --device cpu"
        )
    own_device(device)
    if device == "cuda":
        torch.cuda.set_device(own_device("cuda"))
    try:
        if not dist.is_initialized():
            # NCCL starts with the first exchange between GPUs, if there is one.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=_GRADIENTS)
            atexit.register(_leave_at_exit)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise ConfigError(
            f"the processes could not meet at {where} ({first_line(error)}): if "
            "another job uses that port, choose one with torchrun --master-port, or --standalone "
            "on one machine; on several, --rdzv-endpoint must be reachable from all"
        ) from error
    place = int(os.environ.get("LOCAL_RANK", "0"))
    processes = Processes(dist.get_rank(), dist.get_world_size(), local, place)
    try:
        with meeting():
            processes.group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        yield processes
        processes.group = None
    except GeneratorExit:  # Somebody stopped early, which is no error.
        processes.group = None
        raise
    except BaseException as error:
        if isinstance(error, ProcessLostError):
            _hear_no_launcher()
        if device.startswith("cuda"):
            # NCCL takes leave together with the others, who wait for this one: they learn that it
            # is gone when it has ended.
            atexit.unregister(_leave_at_exit)
        else:
            _leave()
        raise


def _hear_no_launcher() -> None:
    """Say to the end what happened: torchrun ends all whose neighbour is lost, and kills later."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _leave_at_exit() -> None:
    """Leave, and wait for gloo's threads, which happens once nothing holds their group any more.

    They let go of the last exchange's tensors when they come to it; one that does so while the
    interpreter ends aborts the process.
    """
    gc.collect()
    _leave()


def _leave() -> None:
    """Leave the others for good; meeting once more in one job does not work reliably."""
    with suppress(RuntimeError, ValueError, AssertionError):
        if dist.is_initialized():
            dist.destroy_process_group()
