"""Two real processes train from tar shards: every image once a pass, and the losses of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distributed_helpers import together
from recipe_helpers import QUIET, log_of, small
from sfumato.data.loader import Batch
from sfumato.data.shards.batches import ShardBatches
from sfumato.processes import Processes
from sfumato.recipes.config import Recipe
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from shard_helpers import packed

IMAGES, BATCH = 45, 6  # in five shards; passes end within batches
PASSES = 2
STEPS = PASSES * IMAGES // BATCH
HALF = 8
Seen = list[list[int]]


def recipe() -> Recipe:
    base = small(steps=STEPS, batch=BATCH, images=STEPS * BATCH, flip=False)
    network = replace(base.network, dropout=0.0)
    return replace(base, network=network, optimizer=replace(base.optimizer, kind="adam"))


def trained(folder: Path, processes: Processes, until: int = STEPS, resume: bool = False) -> Seen:
    """Train on the shards beside `folder`; return each step's images, read off their pixels."""
    config = RunConfig(recipe(), DataConfig(data=str(folder.parent / "shards")), QUIET)
    seen: Seen = []
    whole = ShardBatches.__next__

    def noted(self: ShardBatches) -> Batch:
        batch = whole(self)
        seen.append(((batch.x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist())
        assert seen[-1] == batch.index.tolist()
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardBatches, "__next__", noted)
        run = Run.open(config, folder, resume=resume, processes=processes)
        steps = run.steps()
        for record in steps:
            if record.step == until:
                break
        steps.close()  # type: ignore[attr-defined]
        return seen[: until - HALF if resume else until]


def _runs(processes: Processes, folder: Path) -> dict[str, Seen]:
    """A whole run; half a run; the other half of one that one process began."""
    return {
        "whole": trained(folder / "two", processes),
        "half": trained(folder / "two-one", processes, HALF),
        "rest": trained(folder / "one-two", processes, resume=True),
    }


def joined(first: Seen, second: Seen) -> Seen:
    return [a + b for a, b in zip(first, second, strict=True)]


def test_two_processes_share_a_pass_over_the_shards_and_train_as_one(tmp_path: Path) -> None:
    packed(tmp_path / "shards", IMAGES, 9)
    alone = Processes()
    wanted = trained(tmp_path / "one", alone)
    trained(tmp_path / "one-two", alone, HALF)
    first, second = together(_runs, tmp_path)

    both = joined(first["whole"], second["whole"])
    # Neither saw an image of the other's in a pass, and nobody missed one.
    passes = torch.tensor(both).reshape(PASSES, IMAGES)
    for one in passes:
        assert sorted(one.tolist()) == list(range(IMAGES))
    assert not torch.equal(passes[0], passes[1])
    assert all(len(mine) == BATCH // 2 for mine in first["whole"] + second["whole"])
    assert both == wanted
    # Whoever goes on with whose run sees the rest.
    assert joined(first["half"], second["half"]) == wanted[:HALF]
    assert joined(first["rest"], second["rest"]) == wanted[HALF:]
    assert trained(tmp_path / "two-one", alone, resume=True) == wanted[HALF:]

    losses = log_of(tmp_path / "one")
    assert len(losses) == STEPS
    for name in ("two", "two-one", "one-two"):
        for mine, theirs in zip(log_of(tmp_path / name), losses, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5), name
