"""Several processes, as torchrun starts them, that share work through files."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist


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

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


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
