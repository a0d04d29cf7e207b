"""Many processes train one network: DDP or FSDP2, through Lightning Fabric.

Gradients are those of the recipe's batch, whatever the number of processes. With DDP each holds the
whole state; with FSDP2 its part of weights, gradients, moments and average. Dropout masks are
each process's own (those of one process differ from those of several).
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfumato.errors import ConfigError, MissingExtraError
from sfumato.processes import Processes, meeting, share
from sfumato.training.ema import Ema
from sfumato.training.team import Rows, Team


class FabricTeam(Team):
    """Processes that share every batch of `batch` images; all must make it, at the same point.

    micro_batch: images per forward pass, 0 for all at once. Raises ConfigError for a batch that
    cannot be shared, and MissingExtraError without Lightning Fabric.
    """

    def __init__(
        self,
        processes: Processes,
        device: str,
        batch: int,
        *,
        micro_batch: int = 0,
        sharded: bool = False,
    ) -> None:
        check_batch(batch, processes.count, micro_batch if sharded else 0)
        self.processes, self.batch, self.sharded = processes, batch, sharded
        self.rank, self.count = processes.rank, processes.count
        self._mine = share(batch, self.rank, self.count)
        self._most = max(len(share(batch, rank, self.count)) for rank in range(self.count))
        self._fabric = _fabric(processes, device, sharded=sharded)
        self._module: nn.Module | None = None

    def take(self, network: nn.Module) -> Ema | None:
        """Prepare a network for training: DDP's wrapper, or its parts and those of its average.

        With FSDP2 the network itself changes, and its average is returned, which could not be made
        from it afterwards.
        """
        if not self.sharded:
            self._module = self._fabric.setup_module(network, move_to_device=False)
            return None
        ema = Ema(network)
        self._module = self._fabric.setup_module(network, move_to_device=False)
        self._fabric.setup_module(ema.network, move_to_device=False)
        return ema

    def rows(self, here: int) -> Rows:
        """Return this process's rows; ValueError where it was fed another number of images."""
        if here != len(self._mine):
            raise ValueError(
                f"process {self.rank} expected {len(self._mine)} of {self.batch} images a step, "
                f"got {here}: give Batches rank and count"
            )
        return Rows(self._mine.start, here, self.batch)

    def divisor(self, rows: Rows) -> float:
        """Return the batch over the number of processes, whose gradients are averaged."""
        return rows.total / self.count

    def module(self, network: nn.Module) -> nn.Module:
        """Return the wrapper that exchanges gradients."""
        del network
        assert self._module is not None
        return self._module

    def passing(self, *, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients after the last pass; with FSDP2 after each, which keeps only parts."""
        return self._passing(last)

    @contextmanager
    def _passing(self, last: bool) -> Generator[None]:
        waiting = not (self.sharded or last)
        with warnings.catch_warnings():
            # Nothing is done in place to what the network returns; a copy of strides is cheap.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module")
            warnings.filterwarnings("ignore", "Grad strides do not match")
            with self._fabric.no_backward_sync(self._module) if waiting else nullcontext():
                yield

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a number over the processes, where it lives."""
        total = value.clone()
        dist.all_reduce(total)  # pyright: ignore[reportUnknownMemberType]
        return total / self.count

    def joint(self, rows: Tensor) -> Tensor:
        """Return rows [k, n] of all processes in order, on the host."""
        parts = self.processes.stacked(
            nn.functional.pad(rows, (0, self._most - rows.shape[1]))
        )  # [processes, k, most]
        sizes = [len(share(self.batch, rank, self.count)) for rank in range(self.count)]
        return torch.cat([p[:, :n] for p, n in zip(parts, sizes, strict=True)], 1).to(rows)


def check_batch(batch: int, count: int, micro_batch: int) -> None:
    """Raise ConfigError for a batch that `count` processes cannot share.

    micro_batch, if not 0: they must make equally many passes of so many images.
    """
    if batch < count:
        raise ConfigError(
            f"a batch of {batch} images cannot be shared by {count} processes: start fewer, or "
            f"train with --batch {count} or more"
        )
    sizes = {len(share(batch, rank, count)) for rank in range(count)}
    if micro_batch and len({-(-size // micro_batch) for size in sizes}) > 1:
        raise ConfigError(
            f"with --fsdp all processes make equally many passes, and {max(sizes)} and "
            f"{min(sizes)} images in micro-batches of {micro_batch} are not: choose a --batch that "
            f"{count} divides, or another --micro-batch"
        )


def _fabric(processes: Processes, device: str, *, sharded: bool) -> Any:
    """Lightning Fabric over the processes that have met already."""
    fabric = import_fabric()
    strategies = import_module(f"{fabric.__name__}.strategies")
    environments = import_module(f"{fabric.__name__}.plugins.environments")
    if sharded:
        strategy = strategies.ModelParallelStrategy(
            _fully_sharded, data_parallel_size=processes.count, tensor_parallel_size=1
        )
    else:
        # What buffers there are never change. (torch 2.13 has another name for it.)
        known = signature(nn.parallel.DistributedDataParallel).parameters
        buffers = "forward_sync_buffers"
        if buffers not in known:
            buffers = "broadcast_buffers"
        strategy = strategies.DDPStrategy(**{buffers: False}, gradient_as_bucket_view=True)
    made = fabric.Fabric(
        accelerator=torch.device(device).type,
        devices=processes.local_count,
        num_nodes=processes.count // processes.local_count,
        strategy=strategy,
        precision="32-true",  # the network chooses the arithmetic of its body itself
        plugins=[environments.TorchElasticEnvironment()],
    )
    with meeting():
        made.launch()
    return made


def import_fabric() -> Any:
    """Return the module of Lightning Fabric; MissingExtraError where it is not installed."""
    for name in ("lightning_fabric", "lightning.fabric"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise MissingExtraError("lightning-fabric", "distributed", "training with several processes")


def _fully_sharded(network: nn.Module, mesh: Any) -> nn.Module:
    """Split a network over the processes, block by block, so that few are whole at a time."""
    from torch.distributed.fsdp import fully_shard

    from sfumato.networks.blocks import Block

    for module in network.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh["data_parallel"])
    fully_shard(network, mesh=mesh["data_parallel"])
    return network
