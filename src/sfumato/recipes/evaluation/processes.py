"""Several processes, as torchrun starts them, that share work through files."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from sfumato.errors import DataError


class Processes:
    """This process's place among all; alone unless started by torchrun."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def first(self) -> bool:
        """Whether this process prints and writes results."""
        return self.rank == 0

    def mine(self, number: int) -> bool:
        """Whether piece `number` of the work is this process's."""
        return number % self.count == self.rank

    def agree(self, failure: str = "") -> None:
        """Wait until all processes are here; DataError in all of them where one met a failure.

        So that none waits for another that has given up.
        """
        told = next(filter(None, self._all(failure)), "")
        if told:
            raise DataError(told)

    def check_same(self, text: str, what: str) -> None:
        """DataError in all processes where they do not have the same text."""
        if len(set(self._all(text))) > 1:
            raise DataError(f"the processes have different {what}: give all the same --threads")

    def _all(self, text: str) -> list[str]:
        """The texts of all processes, which thereby wait for each other."""
        texts = [text] * self.count
        if self.count > 1:
            dist.all_gather_object(texts, text)  # pyright: ignore[reportUnknownMemberType]
        return texts

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


def own_device(device: str) -> str:
    """The device of this process: each that torchrun started takes a GPU of its own."""
    if device != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return f"cuda:{int(os.environ['LOCAL_RANK']) % max(torch.cuda.device_count(), 1)}"


@contextmanager
def joined() -> Generator[Processes]:
    """Join the processes torchrun started, for as long as the block lasts."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    # Work between two barriers may take hours; results go through files, so gloo is enough.
    dist.init_process_group("gloo", timeout=timedelta(days=1))
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
