"""What the processes of a run agree on, before the first step and after each, and gather."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import cast

import torch

from sfumato.data.images import Images
from sfumato.errors import ConfigError, DataError
from sfumato.networks.base import Network
from sfumato.processes import Processes
from sfumato.recipes.environment import describe
from sfumato.recipes.run_config import RunConfig
from sfumato.recipes.toml import difference
from sfumato.training.loop import Record
from sfumato.training.precision import Precision
from sfumato.training.sharded import fill, full
from sfumato.training.state import TrainState
from sfumato.training.team import Team


def team_of(processes: Processes, config: RunConfig, device: str) -> Team:
    """Return how steps are spread; ConfigError for a recipe these processes cannot share."""
    if processes.count == 1:
        return Team()
    from sfumato.training.fabric import FabricTeam

    recipe, sharded = config.recipe, config.run.fsdp
    if sharded and recipe.optimizer.kind == "muon":
        raise ConfigError(
            "--fsdp splits matrices over processes, and Muon needs them whole: "
            "--optimizer.kind adam, or leave out --fsdp"
        )
    return FabricTeam(
        processes, device, recipe.batch, micro_batch=recipe.micro_batch, sharded=sharded
    )


def check_same(processes: Processes, config: RunConfig, images: Images) -> None:
    """Raise ConfigError or DataError in all processes where one has another recipe, data, ...

    They would train apart, or end at different results than they say.
    """
    if processes.count == 1:
        return
    recipes = processes.all(config.recipe)
    for rank, theirs in enumerate(recipes):
        if changed := difference(theirs, recipes[0]):
            first = difference(recipes[0], theirs)
            told = ", ".join(f"{k} = {v} (process 0: {first.get(k)})" for k, v in changed.items())
            raise ConfigError(
                f"process {rank} has another recipe than process 0: {told}; start all processes "
                "with the same command line"
            )
    options = processes.all({**asdict(config.run), "threads": ""})
    for rank, theirs in enumerate(options):
        if changed := [
            f"{k} {v}, not {options[0][k]}" for k, v in theirs.items() if v != options[0][k]
        ]:
            raise ConfigError(
                f"process {rank} has other options than process 0: {', '.join(changed)}; start all "
                "processes with the same command line"
            )
    sets = processes.all((images.fingerprint, images.describe()))
    for rank, (fingerprint, what) in enumerate(sets):
        if fingerprint != sets[0][0]:
            raise DataError(
                f"process {rank} has other images ({what}) than process 0 ({sets[0][1]}): "
                "every machine needs the same files under --data"
            )
    about = describe("cpu")
    versions = f"sfumato {about['sfumato']}, torch {about['torch']}"
    processes.check_same(versions, "versions", "install the same on every machine")
    processes.check_same(f"{torch.get_num_threads()}", "numbers of threads")


def agreed(
    processes: Processes, record: Record, stop: bool, news: Sequence[str] = ()
) -> tuple[Record, bool, list[str]]:
    """Return the record by the first process's clock, whether any wants to stop, and all news.

    `waited` is that of whoever waited longest for data: the others waited for him. `news` are a
    process's own.
    """
    if processes.count == 1:
        return record, stop, list(news)
    here = [record.seconds, record.waited, float(stop), float(len(news))]
    told = torch.tensor(here, dtype=torch.float64)
    rows = processes.stacked(told)
    seconds = float(rows[0, 0])
    waited = min(float(rows[:, 1].max()), seconds)
    every = processes.all(list(news)) if rows[:, 3].any() else []
    one = replace(record, seconds=seconds, waited=waited)
    return one, bool(rows[:, 2].any()), [each for told in every for each in told]


def voice(processes: Processes, say: Callable[[str], None] | None) -> Callable[[str], None]:
    """Return what the first process alone says."""
    return say if say is not None and processes.first else _silent


def _silent(text: str) -> None:
    del text


class Average:
    """A run's averaged network, brought together in the first process where each holds a part.

    `parted`: whether each does, so that it must be gathered before it is used.
    """

    def __init__(
        self,
        state: TrainState,
        team: Team,
        processes: Processes,
        make: Callable[[], Network],
        precision: Precision,
    ) -> None:
        self._state, self.parted, self._processes = state, team.sharded, processes
        self._make, self._precision = make, precision
        self._whole: Network | None = None

    @property
    def network(self) -> Network:
        """It as it is now, or the whole one that was gathered last."""
        return self._whole or cast(Network, self._state.ema.network)

    def gather(self) -> None:
        """Bring the parts together, where there are such; all processes do it at once."""
        if not self.parted:
            return
        whole = self._make() if self._processes.first else None
        targets = {} if whole is None else whole.state_dict()
        for name, tensor in self._state.ema.network.state_dict().items():
            value = full(tensor)
            if whole is not None:
                fill(targets[name], value)
        if whole is not None:
            self._precision.apply(whole.eval().requires_grad_(False))
        self._whole = whole

    def release(self) -> None:
        """Forget the whole one."""
        self._whole = None
