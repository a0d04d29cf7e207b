"""A run's network: what it is asked with, in which arithmetic, compiled or replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.data.images import Images
from sfumato.data.pixels import PixelFormat
from sfumato.errors import ConfigError, first_line
from sfumato.native import gpu
from sfumato.networks.base import Network
from sfumato.placement import fork_rng_of
from sfumato.processes import Processes
from sfumato.recipes import build
from sfumato.recipes.config import Recipe
from sfumato.recipes.run_config import Bookkeeping
from sfumato.recipes.run_data import spectrum_of
from sfumato.training.precision import Precision, choose_precision
from sfumato.training.replay import replay_training
from sfumato.training.team import Team

_COMPILED_MINUTES = 10.0
_SMALL = 20_000_000


@dataclass(frozen=True)
class NetworkMaker:
    """Makes a run's network for images of `format`, and makes it quick on `device`.

    `condition` is the format of the images it starts from, None where it needs none.
    """

    recipe: Recipe
    format: PixelFormat
    classes: int
    condition: PixelFormat | None
    device: str
    team: Team
    say: Callable[[str], None]

    def network(self, device: str) -> Network:
        """Return a new network on a device."""
        return build.network_of(
            self.recipe,
            self.format.shape,
            self.classes,
            condition=self.condition.channels if self.condition else 0,
            device=device,
        )

    def measure(self, network: Network, images: Images, processes: Processes) -> None:
        """Tell a new network what the recipe has it know of the data."""
        if network.spectrum is not None:
            flip = self.recipe.flip or self.recipe.augment > 0
            measured = processes.from_first(lambda: spectrum_of(images, flip=flip, say=self.say))
            network.spectrum.load_state_dict(measured)

    def precision(self, network: Network) -> Precision:
        """Return the arithmetic the recipe names, or what is measured to be fastest."""
        if self.recipe.precision != "auto":
            return Precision(self.recipe.precision, channels_last=True)
        if self.team.sharded and self.device != "cpu":  # it may not fit as a whole
            return Precision("bfloat16", channels_last=True)
        shape = (min(self.recipe.batch, 32), *self.format.shape)
        choice = choose_precision(network, shape, conditions=self._conditions())
        self.say(f"arithmetic: {choice.sentence}")
        return choice.precision

    def quicken(self, network: Network, run: Bookkeeping) -> None:
        """Compile the network for training or have it replayed, as the run says.

        Raises ConfigError where it says graphs and there can be none.
        """
        how, cuda = run.compile, self.device.startswith("cuda")
        whole = self.recipe.micro_batch in (0, self.recipe.batch) and self.team.count == 1
        if how == "auto" and cuda:
            how = self._choice(network, run, whole)
        if how == "on":
            self._compile(network, must=run.compile == "on")
        elif how == "graphs":
            if not (cuda and whole):
                raise ConfigError(
                    "--compile graphs needs a CUDA device, one process and whole batches (no "
                    "--micro-batch): leave it out, or resume with --compile auto"
                )
            self._replay(network, must=run.compile == "graphs")

    def _choice(self, network: Network, run: Bookkeeping, whole: bool) -> str:
        """What is quickest on a GPU: without kernels of ours a large network gains by compiling."""
        ours = not gpu.why_not(self.device)
        small = sum(p.numel() for p in network.parameters()) < _SMALL
        if whole and (ours or small):
            return "graphs"
        long = not 0 < run.minutes < _COMPILED_MINUTES
        return "on" if long and not ours and not self.team.sharded else "off"

    def _replay(self, network: Network, *, must: bool) -> None:
        """Have the network replayed; where that fails and needs not be, say so and leave it."""
        x, level, given = self._batch(self.recipe.batch)
        try:
            replay_training(network, x, level, given)
            return
        except RuntimeError as error:  # For want of memory above all, told in many ways.
            if must:
                raise
            told = first_line(error)
        torch.cuda.empty_cache()
        self.say(f"the network is not replayed as CUDA graphs: {told}")

    def _compile(self, network: Network, *, must: bool) -> None:
        """Compile the network; where that fails and needs not be, say so and leave it."""
        self.say("compiling the network, which takes a minute or several")
        network.train().compile(dynamic=False)
        if must or self.team.count > 1:
            # Of several processes the first step compiles: only within what exchanges gradients is
            # the graph cut so that they leave while others are still computed.
            return
        try:
            with fork_rng_of(self.device):
                x, level, given = self._batch(self.recipe.micro_batch or self.recipe.batch)
                weights = [p for p in network.parameters() if p.requires_grad]
                out = network(x, level, **given).square().mean()
                torch.autograd.grad(out, weights, allow_unused=True)
        except Exception as error:  # Compilers and drivers fail in many ways.
            network._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]
            self.say(f"the network is not compiled, and trains more slowly: {first_line(error)}")

    def _batch(self, count: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Images, levels and conditions of zeros, as the network is given them in training."""
        given = {
            name: one.expand(count, *one.shape[1:]).contiguous().to(self.device)
            for name, one in self._conditions().items()
        }
        x = torch.zeros(count, *self.format.shape, device=self.device)
        return x, torch.zeros(count, device=self.device), given

    def _conditions(self) -> dict[str, Tensor]:
        """Examples [1, ...] of the conditions that the network is trained with."""
        told = {"class_labels": torch.zeros(1, self.classes)} if self.classes else {}
        if self.recipe.augment > 0:
            told["augment_labels"] = torch.zeros(1, build.AUGMENT_LABELS)
        if self.condition:
            told["image"] = torch.zeros(1, *self.condition.shape)
        return told
