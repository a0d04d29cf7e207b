"""Two processes take the steps of one: losses, averages, rollbacks; whole or in parts."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distributed_helpers import run, together, torchrun
from recipe_helpers import in_memory
from sfumato.data.loader import Batches
from sfumato.errors import ConfigError, MissingExtraError
from sfumato.noise import NoiseLevels
from sfumato.parameterization import predicts_noise
from sfumato.processes import Processes, share
from sfumato.training.fabric import FabricTeam, check_batch, import_fabric
from sfumato.training.loop import train
from sfumato.training.loss_aware import LossAware
from sfumato.training.objectives import EDM, Loss, Simple
from sfumato.training.optimizer import LearningRate
from sfumato.training.plan import Plan
from sfumato.training.sharded import full
from sfumato.training.state import TrainState
from sfumato.training.team import Rows, Team
from training_helpers import Batch, Data, plan, tiny

STEPS = 6
LADDER = NoiseLevels.geometric(4, 0.02, 20)


class Part(Iterator[Batch]):
    """A process's rows of every batch; the second process is slow to come by them."""

    def __init__(self, data: Data, rank: int, count: int) -> None:
        self.data, self.rank, self.count = data, rank, count

    def __next__(self) -> Batch:
        time.sleep(0.05 * self.rank)
        batch, mine = next(self.data), share(self.data.batch, self.rank, self.count)
        assert batch.labels is not None
        return Batch(batch.x[mine.start : mine.stop], batch.labels[mine.start : mine.stop])


class Breaks:
    """An objective that is NaN for images of one mean, wherever they are."""

    def loss(self, denoise: Any, x0: Tensor, sigma: Tensor, noise: Tensor) -> Loss:
        losses = EDM(0.5).loss(denoise, x0, sigma, noise)
        worst = x0.flatten(1).mean(1) > 0.4  # of the fourth batch and the sixth
        return replace(losses, value=losses.value.masked_fill(worst, float("nan")))


AHEAD = "rolled back by a host that runs ahead"


def scenarios() -> dict[str, tuple[int, Plan]]:
    quick = LearningRate(3e-3)
    ladder = partial(predicts_noise, process=LADDER)
    return {
        "augmented, with classes": (8, plan()),
        "uneven, accumulated, clipped": (
            5,
            plan(micro_batch=2, clip_norm=0.5, antithetic=False, learning_rate=quick),
        ),
        "rolled back": (8, plan(objective=Breaks(), patience=1, snapshot_steps=2, augment=None)),
        AHEAD: (8, plan(objective=Breaks(), patience=1, snapshot_steps=2, augment=None)),
        "levels by their losses": (
            9,
            plan(adapt=ladder, objective=Simple(), noise=LossAware(LADDER, depth=2)),
        ),
    }


def walk(
    batch: int, how: Plan, team: Team | None = None, *, ahead: bool = False
) -> tuple[list[Any], dict[str, Tensor]]:
    """Numbers of each step, and the average afterwards."""
    network = tiny(dropout=0.0)
    team = team or Team()
    state = TrainState.start(network, how, team.take(network))
    data = Part(Data(batch), team.rank, team.count)
    rows = [
        (r.step, r.images, r.batch, r.loss, r.gradient_norm, r.skipped, r.rolled_back)
        for r in islice(train(state, data, how, overlap=ahead, team=team), STEPS)
    ]
    average = {name: full(t) for name, t in state.ema.network.named_parameters()}
    rest = {"statistics": state.statistics.sums}
    if state.history is not None:
        rest["history"] = state.history.values
    return rows, {**average, **rest}


def _fail() -> None:
    raise MissingExtraError("fast", "extra", "this")


def _all(processes: Processes, folder: Path) -> dict[Any, Any]:
    del folder
    found: dict[Any, Any] = {"numbers": processes.all(processes.rank)}
    found["first"] = processes.from_first(lambda: f"made by {processes.rank}")
    try:  # a failure of the first is everyone's, whatever its class is made from
        processes.from_first(_fail)
    except MissingExtraError as error:
        found["failure"] = str(error)
    for name, (batch, how) in scenarios().items():
        for sharded in (False, True):
            if sharded and batch == 5:
                how = replace(how, micro_batch=3)
            team = FabricTeam(
                processes, "cpu", batch, micro_batch=how.micro_batch or 0, sharded=sharded
            )
            found[name, sharded] = walk(batch, how, team, ahead=name == AHEAD)
    return found


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """Scenario by scenario, with whole states (DDP) and in parts (FSDP2); one start for all."""
    both = together(_all, tmp_path)
    for one in both:
        assert one["numbers"] == [0, 1]
        assert one["first"] == "made by 0"
        assert "sfumato[extra]" in one["failure"]
    for name, (batch, how) in scenarios().items():
        rows, tensors = walk(batch, how)
        assert any(row[-1] for row in rows) == ("rolled back" in name)
        for sharded in (False, True):
            about = name, sharded
            for found, made in (of_one[about] for of_one in both):
                for mine, theirs in zip(found, rows, strict=True):
                    assert mine == pytest.approx(theirs, rel=1e-5, nan_ok=True), about
                for key, tensor in tensors.items():
                    assert torch.allclose(made[key], tensor, rtol=1e-4, atol=1e-6), (about, key)
            # What the processes decide by is the same to the last bit.
            assert repr(both[0][about][0]) == repr(both[1][about][0]), about


def test_shares_cover_a_batch_once_in_order() -> None:
    for total, count in ((8, 2), (5, 2), (7, 3), (3, 3)):
        shares = [share(total, rank, count) for rank in range(count)]
        assert [i for one in shares for i in one] == list(range(total))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("batch", [4, 5])
def test_parts_of_batches_make_up_the_batches(batch: int) -> None:
    images = in_memory(classes=3)

    def stream(**place: int) -> list[Any]:
        with Batches(images, batch, 1, position=3, flip=True, labels=True, **place) as batches:
            found = [next(batches) for _ in range(6)]
            assert batches.position == 3 + 6 * batch
        return found

    whole, parts = stream(), [stream(rank=rank, count=2) for rank in range(2)]
    for one, first, second in zip(whole, *parts, strict=True):
        assert len(first.x) == batch // 2
        for name in ("x", "labels", "index"):
            pieces = [getattr(first, name), getattr(second, name)]
            assert torch.equal(torch.cat(pieces), getattr(one, name))


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="rank < count <= batch_size"):
        Batches(in_memory(), 4, 0, rank=2, count=2)
    with pytest.raises(ConfigError, match="4 images cannot be shared by 5 processes"):
        check_batch(4, 5, 0)
    check_batch(5, 2, 3)
    with pytest.raises(ConfigError, match="--batch that 2 divides"):
        check_batch(5, 2, 2)


def test_draws_for_rows_are_those_of_the_batch() -> None:
    augment, x = plan().augment, torch.rand(6, 1, 8, 8)
    assert augment is not None
    whole, told = augment(x, torch.Generator().manual_seed(3))
    for first, count in ((0, 2), (2, 4)):
        part = slice(first, first + count)
        rows = Rows(first, count, 6)
        mine, labels = augment(x[part], torch.Generator().manual_seed(3), rows)
        assert torch.allclose(mine, whole[part], atol=1e-5)
        assert told is not None
        assert labels is not None
        assert torch.equal(labels, told[part])


def test_without_fabric_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning_fabric", "lightning", "lightning.fabric"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"sfumato\[distributed\]"):
        import_fabric()


def test_one_process_is_by_itself() -> None:
    alone = Processes()
    assert alone.all("x") == ["x"]
    assert alone.from_first(lambda: 3) == 3
    assert np.array_equal(alone.stacked(torch.arange(3)), [[0, 1, 2]])


AGAIN = """
from sfumato.processes import joined
for turn in range(3):
    with joined() as processes:
        told = processes.all((turn, processes.rank))
        assert told == [(turn, 0), (turn, 1)], told
print("met three times")
"""


def test_one_job_may_join_several_times(tmp_path: Path) -> None:
    script = tmp_path / "again.py"
    script.write_text(AGAIN)
    done = run(torchrun([str(script)]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("met three times") == 2


LEAVING = """
import atexit, os
threads = lambda: len(os.listdir("/proc/self/task"))
from sfumato.processes import joined
before = threads()
atexit.register(lambda: print("left by", before, threads()))
with joined() as processes:
    round = [processes]
    round.append(round)  # which only the collector lets go of
    processes.wait()
    assert threads() > before
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux does")
def test_nothing_of_a_job_goes_on_while_the_interpreter_ends(tmp_path: Path) -> None:
    """A thread that lets go of a tensor then would abort the process."""
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    done = run(torchrun([str(script)]))
    assert done.returncode == 0, done.stderr
    told = re.findall(r"left by (\d+) (\d+)", done.stdout)
    assert len(told) == 2
    assert all(before == after for before, after in told)
