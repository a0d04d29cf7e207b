"""How the work of one step is spread over processes: what the training loop asks of them.

The batch is the recipe's whatever the number of processes, and what is drawn for it (levels, noise,
augmentation) is drawn for all of it everywhere, each process keeping its rows. `Team` is one
process by itself; `fabric.FabricTeam` many.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from sfumato.training.ema import Ema


@dataclass(frozen=True)
class Rows:
    """Rows first .. first + count - 1 of a batch of `total`: this process's part of it."""

    first: int
    count: int
    total: int

    @property
    def whole(self) -> bool:
        """Whether they are all of it."""
        return self.count == self.total

    def cut(self, drawn: Tensor) -> Tensor:
        """Return these rows of what was drawn for all [total, *]; itself where that is all."""
        return drawn if self.whole else drawn[self.first : self.first + self.count].clone()


class Team:
    """One process that does everything; many are a subclass."""

    rank = 0
    count = 1
    sharded = False
    """Whether each process holds a part of every weight only."""

    def take(self, network: nn.Module) -> Ema | None:
        """Prepare a network for training; return its average where that must be made now."""
        del network

    def rows(self, here: int) -> Rows:
        """Return which rows of the step's batch the `here` images are that this process was fed."""
        return Rows(0, here, here)

    def divisor(self, rows: Rows) -> float:
        """By what a process divides the sum of its losses, so that gradients are the batch's."""
        return rows.total

    def module(self, network: nn.Module) -> nn.Module:
        """Return what to call in the network's place."""
        return network

    def passing(self, *, last: bool) -> AbstractContextManager[object]:
        """Return the context of one forward and backward pass; `last` of those of the step."""
        del last
        return nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a number over the processes, without waiting for a device."""
        return value

    def joint(self, rows: Tensor) -> Tensor:
        """Return rows [k, n] of all processes in order, on the host."""
        return rows
