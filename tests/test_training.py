"""The loop: resuming to the bit, learning what is known, and surviving what is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import DataError
from sfumato.noise import NoiseLevels, NoiseRange, linear_betas
from sfumato.parameterization import edm_preconditioned, predicts_noise
from sfumato.training.checkpoint import load_checkpoint, restore, save_checkpoint
from sfumato.training.ema import Constant, HalfLife
from sfumato.training.guard import TrainingError
from sfumato.training.loop import Record, train
from sfumato.training.muon import Muon
from sfumato.training.noise_sampling import LogNormal, UniformLevels, draw
from sfumato.training.objectives import EDM, Bound, Objective, Simple
from sfumato.training.optimizer import CosineDecay, LearningRate
from sfumato.training.plan import Plan
from sfumato.training.precision import Precision, choose_precision
from sfumato.training.state import TrainState
from sfumato.training.statistics import (
    LevelStatistics,
    fits_badly,
    measure_sigma_data,
    suggest_log_normal,
)
from sfumato.training.step import one_hot
from training_helpers import Batch, Data, plan, tiny

F64 = torch.float64


def steps(state: TrainState, data: Data, how: Plan, count: int) -> list[Record]:
    return list(islice(train(state, data, how), count))


def assert_same(a: TrainState, b: TrainState, *, but: str = "nothing") -> None:
    for mine, theirs in ((a.network, b.network), (a.ema.network, b.ema.network)):
        for name, tensor in mine.state_dict().items():
            assert name.endswith(but) or torch.equal(tensor, theirs.state_dict()[name]), name
    ours, others = a.optimizer.state_dict()["state"], b.optimizer.state_dict()["state"]
    assert ours.keys() == others.keys()
    for index, moments in ours.items():
        for what, tensor in moments.items():
            assert torch.equal(tensor, others[index][what]), (index, what)
    assert torch.equal(a.statistics.sums, b.statistics.sums)
    assert (a.step, a.images, a.retry) == (b.step, b.images, b.retry)


@pytest.mark.parametrize(
    "changes",
    [{}, {"micro_batch": 3, "clip_norm": 0.5}, {"averaging": Constant(0.9), "antithetic": False}],
    ids=["augmented", "accumulated", "constant"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    changes: dict[str, object], tmp_path: Path
) -> None:
    how = plan(**changes)
    whole = TrainState.start(tiny(), how)
    expected = steps(whole, Data(), how, 12)

    first, data = TrainState.start(tiny(), how), Data()
    begun = steps(first, data, how, 6)
    path = save_checkpoint(tmp_path, first, {"note": "half way"}, position=data.position)
    torch.manual_seed(1234)
    torch.rand(7)
    checkpoint = load_checkpoint(path, training=True)
    second = TrainState.start(tiny(seed=99), how)
    restore(second, checkpoint)
    ended = steps(second, Data(position=checkpoint.position), how, 6)

    assert [r.loss for r in begun + ended] == [r.loss for r in expected]
    assert [r.gradient_norm for r in begun + ended] == [r.gradient_norm for r in expected]
    assert [r.learning_rate for r in begun + ended] == [r.learning_rate for r in expected]
    assert_same(second, whole)
    assert len({r.loss for r in expected}) == 12


def test_training_neither_reads_nor_moves_the_global_random_state() -> None:
    losses = []
    for seed in (0, 7):
        state = TrainState.start(tiny(), plan())
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        losses.append([r.loss for r in steps(state, Data(), plan(), 3)])
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1]


def test_the_run_seed_matters() -> None:
    def losses(seed: int) -> list[float]:
        how = plan(seed=seed)
        return [r.loss for r in steps(TrainState.start(tiny(), how), Data(), how, 2)]

    assert losses(0) != losses(1)


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    ends: list[tuple[Record, Tensor]] = []
    for micro in (None, 1, 3, 8):
        how = plan(micro_batch=micro, classes=0, learning_rate=LearningRate(1.0))
        state = TrainState.start(tiny(dropout=0.0).double(), how)
        (record,) = steps(state, _double(Data()), how, 1)
        moments = state.optimizer.state_dict()["state"]
        gradient = torch.cat([m["exp_avg"].flatten() for m in moments.values()])
        ends.append((record, gradient))
    for record, gradient in ends[1:]:
        assert record.loss == pytest.approx(ends[0][0].loss, rel=1e-12)
        torch.testing.assert_close(gradient, ends[0][1], rtol=1e-9, atol=1e-12)


def _double(data: Data) -> Iterator[Batch]:
    return (Batch(b.x.double(), b.labels) for b in data)


def test_clipping_bounds_the_step_that_adam_sees() -> None:
    how = plan(clip_norm=1e-3, learning_rate=LearningRate(1e-3))
    state = TrainState.start(tiny(), how)
    (record,) = steps(state, Data(), how, 1)
    moments = state.optimizer.state_dict()["state"].values()
    seen = torch.cat([m["exp_avg"].flatten() for m in moments]) / 0.1
    assert record.gradient_norm > 1e-2
    assert float(seen.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_training_ends_at_the_number_of_images_and_reports_truthfully() -> None:
    state = TrainState.start(tiny(), plan())
    records = list(train(state, Data(), plan(), images=33))
    assert [r.images for r in records] == [8, 16, 24, 32, 40]
    assert [r.step for r in records] == [1, 2, 3, 4, 5]
    assert records[0].learning_rate == pytest.approx(3e-3 * 8 / 40)
    for r in records:
        assert 0 <= r.waited_share <= 1
        assert r.images_per_second == pytest.approx(8 / r.seconds)
    assert float(state.statistics.counts.sum()) == pytest.approx(40, rel=1e-2)
    assert float(state.network.seen) == 40  # type: ignore[arg-type]
    assert not list(train(state, Data(), plan(), images=33))


def test_labels_reach_the_network_and_are_checked() -> None:
    expected = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    like = torch.zeros((), dtype=torch.float64)
    found = one_hot(torch.tensor([1, 2]), 3, like)
    assert (found.tolist(), found.dtype) == (expected, torch.float64)
    with pytest.raises(DataError, match="needs labels"):
        one_hot(None, 3, like)
    with pytest.raises(DataError, match="0 to 2 for 3 classes, got 3"):
        one_hot(torch.tensor([1, 3]), 3, like)
    seen: list[Tensor] = []

    class Listening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, n: Tensor, class_labels: Tensor) -> Tensor:
            seen.append(class_labels)
            return self.gain * x

    how = plan(augment=None, micro_batch=5)
    steps(TrainState.start(Listening(), how), Data(), how, 1)
    assert torch.equal(torch.cat(seen).argmax(1), next(Data()).labels)


# --- What is not finite ---------------------------------------------------------------------------


class Faulty(nn.Module):
    """A network that answers NaN (or with an infinite gradient) in chosen forward passes."""

    def __init__(self, bad: set[int], *, gradient: bool = False) -> None:
        super().__init__()
        self.inner, self.bad, self.gradient, self.calls = tiny(), bad, gradient, 0

    def forward(self, *args: Tensor, **condition: Tensor) -> Tensor:
        out = self.inner(*args, **condition)
        self.calls += 1
        if self.calls in self.bad:
            return out + (0 * out).sqrt() if self.gradient else out * math.nan
        return out


@pytest.mark.parametrize("gradient", [False, True])
def test_a_bad_step_leaves_everything_alone_and_says_so(gradient: bool) -> None:
    how = plan()
    state = TrainState.start(Faulty({3}, gradient=gradient), how)
    run = train(state, Data(), how)
    next(run), next(run)
    before = {k: v.clone() for k, v in state.network.named_parameters()}
    average = {k: v.clone() for k, v in state.ema.network.named_parameters()}
    record = next(run)
    assert record.skipped
    assert record.message is not None
    assert ("gradient norm nan" if gradient else "loss nan") in record.message
    for name, p in state.network.named_parameters():
        assert torch.equal(p, before[name])
    for name, p in state.ema.network.named_parameters():
        assert torch.equal(p, average[name])
    record = next(run)
    assert not record.skipped
    assert record.message is None
    assert math.isfinite(record.loss)
    assert state.statistics.sums.isfinite().all()


def test_several_bad_steps_roll_back_to_the_last_good_state() -> None:
    how = plan(snapshot_steps=4, patience=5)
    state = TrainState.start(Faulty(set(range(7, 12))), how)
    run = train(state, Data(), how)
    kept: dict[str, Tensor] = {}
    for record in islice(run, 10):
        if record.step == 4:
            kept = {k: v.clone() for k, v in state.network.named_parameters()}
    record = next(run)
    assert record.message is not None
    assert "rolled back from step 11 to step 4" in record.message
    assert record.rolled_back
    assert (state.step, state.images, state.retry) == (4, 32, 1)
    for name, p in state.network.named_parameters():
        assert torch.equal(p, kept[name])
    again = list(islice(run, 8))
    assert not any(r.skipped or r.rolled_back for r in again)
    assert [r.step for r in again] == list(range(5, 13))


def test_another_try_meets_other_noise() -> None:
    """From the same state and batch, a bumped retry counter changes the loss."""
    losses = []
    for retry in (0, 1):
        state = TrainState.start(tiny(), plan())
        state.retry = retry
        losses.append(steps(state, Data(), plan(), 1)[0].loss)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("bad", [set[int](), {3}, set(range(7, 12))], ids=["good", "bad", "rolled"])
@pytest.mark.parametrize("changes", [{}, {"micro_batch": 3, "clip_norm": 0.5}], ids=["", "clipped"])
def test_a_host_that_runs_ahead_takes_the_same_steps(
    bad: set[int], changes: dict[str, object]
) -> None:
    ends: list[tuple[list[Record], TrainState, int]] = []
    for overlap in (False, True):
        how = plan(snapshot_steps=4, **({} if bad else changes))
        state, data = TrainState.start(Faulty(bad), how), Data()
        records = list(train(state, data, how, images=160, overlap=overlap))
        ends.append((records, state, data.position))
        assert [r.ahead for r in records] == [8 * overlap] * (len(records) - 1) + [0]
    (ours, mine, here), (others, theirs, there) = ends
    for name in ("step", "images", "learning_rate", "skipped", "rolled_back", "message"):
        assert [getattr(r, name) for r in ours] == [getattr(r, name) for r in others]
    assert [str(r.loss) for r in ours] == [str(r.loss) for r in others]
    assert [str(r.gradient_norm) for r in ours] == [str(r.gradient_norm) for r in others]
    assert len(ours) == 20 + (7 if len(bad) > 1 else 0)
    assert_same(mine, theirs, but="seen")
    assert here == there


def test_a_host_that_runs_ahead_stops_between_two_steps() -> None:
    how = plan()
    ahead, behind = TrainState.start(tiny(), how), TrainState.start(tiny(), how)
    run = train(ahead, Data(), how, overlap=True)
    records = list(islice(run, 3))
    run.close()
    assert records[-1].ahead == 8
    assert ahead.whole
    steps(behind, Data(), how, 3)
    assert_same(ahead, behind, but="seen")


def test_a_loop_after_one_that_ran_ahead_starts_from_no_gradient() -> None:
    how = plan()
    ends: list[tuple[list[float], TrainState]] = []
    for overlap in (False, True):
        state, norms = TrainState.start(tiny(), how), list[float]()
        for position in (0, 24):
            run = train(state, Data(position=position), how, overlap=overlap)
            norms = [record.gradient_norm for record in islice(run, 3)]
            run.close()
        ends.append((norms, state))
    assert ends[0][0] == ends[1][0]
    assert_same(ends[0][1], ends[1][1], but="seen")


def test_a_bad_step_of_a_loop_that_ran_ahead_does_not_stop_the_next_loop() -> None:
    how = plan()
    state = TrainState.start(Faulty({2}), how)
    run = train(state, Data(), how, overlap=True)
    assert [next(run).skipped for _ in range(2)] == [False, True]
    run.close()
    before = [p.detach().clone() for p in state.network.parameters()]
    assert not next(train(state, Data(), how, overlap=False)).skipped
    moved = [not torch.equal(p, q) for p, q in zip(state.network.parameters(), before, strict=True)]
    assert all(moved)


def test_running_ahead_is_refused_where_a_bad_step_could_not_be_left_out() -> None:
    how = plan(optimizer=Muon())
    with pytest.raises(ValueError, match="fused optimizer, such as Adam"):
        next(train(TrainState.start(tiny(), how), Data(), how, overlap=True))


def test_hopeless_training_gives_up_with_advice() -> None:
    how = plan(patience=2)
    state = TrainState.start(Faulty(set(range(3, 1000))), how)
    messages: list[str | None] = []
    with pytest.raises(TrainingError, match="lower learning rate"):
        messages.extend(r.message for r in train(state, Data(), how))
    assert sum("rolled back" in (m or "") for m in messages) == 3


def test_giving_up_leaves_the_last_good_state() -> None:
    how = plan(patience=2, snapshot_steps=1)
    state = TrainState.start(Faulty(set(range(4, 1000))), how)
    run = train(state, Data(), how)
    assert [next(run).step for _ in range(3)] == [1, 2, 3]
    good = {k: v.clone() for k, v in state.network.named_parameters()}
    average = {k: v.clone() for k, v in state.ema.network.named_parameters()}

    def spoil_each() -> None:
        for _ in run:
            with torch.no_grad():
                for parameter in (*state.network.parameters(), *state.ema.network.parameters()):
                    parameter.fill_(math.nan)
            assert not state.finite

    with pytest.raises(TrainingError):
        spoil_each()
    # The last try has its own noise too: a resumed run would not repeat one that failed.
    assert (state.step, state.images, state.retry) == (3, 24, 4)
    assert state.whole
    assert state.finite
    for name, p in state.network.named_parameters():
        assert torch.equal(p, good[name])
    for name, p in state.ema.network.named_parameters():
        assert torch.equal(p, average[name])


def test_a_state_is_finite_where_weights_and_average_are() -> None:
    for which in ("network", "average"):
        state = TrainState.start(tiny(), plan())
        assert state.finite
        spoiled = state.network if which == "network" else state.ema.network
        with torch.no_grad():
            next(iter(spoiled.parameters())).view(-1)[0] = math.inf
        assert not state.finite


def test_an_exception_inside_a_step_is_told_by_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    state = TrainState.start(tiny(), plan())
    run = train(state, Data(), plan())
    next(run)
    assert state.whole

    def interrupted(network: nn.Module, decay: float) -> None:
        raise KeyboardInterrupt

    # The weights have moved, their average has not.
    monkeypatch.setattr(state.ema, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(run)
    assert not state.whole


def test_an_exception_of_the_data_leaves_the_state_whole() -> None:
    def ending() -> Iterator[Batch]:
        yield next(Data())
        raise DataError("no more")

    state = TrainState.start(tiny(), plan())
    run = train(state, ending(), plan())
    next(run)
    with pytest.raises(DataError):
        next(run)
    assert state.whole
    assert state.step == 1


# --- Learning -------------------------------------------------------------------------------------


class Points(Iterator[Batch]):
    """One-pixel images: +0.6 or -0.6 with a little spread."""

    def __init__(self, batch: int) -> None:
        self.batch, self.position = batch, 0

    def __next__(self) -> Batch:
        g = torch.Generator().manual_seed(10_000 + self.position)
        self.position += self.batch
        sign = torch.randint(0, 2, (self.batch, 1, 1, 1), generator=g) * 2.0 - 1
        return Batch(0.6 * sign + 0.05 * torch.randn(self.batch, 1, 1, 1, generator=g), None)


def exact_mean(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] of 0.5 N(-0.6, 0.05^2) + 0.5 N(0.6, 0.05^2)."""
    var = 0.05**2 + sigma**2
    balance = torch.tanh(0.6 * x / var)
    return (0.05**2 * x + sigma**2 * 0.6 * balance) / var


class MLP(nn.Module):
    def __init__(self, label_span: float = 1.0) -> None:
        super().__init__()
        self.label_span = label_span
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1)
        )

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        told = torch.stack([x.flatten(), noise_label / self.label_span], 1)
        return self.layers(told).reshape(x.shape)


def test_a_small_network_learns_the_known_denoiser() -> None:
    how = Plan(
        adapt=lambda n: edm_preconditioned(n, 0.6),
        objective=EDM(0.6),
        noise=LogNormal(-1.0, 1.0),
        learning_rate=LearningRate(4e-3, ramp_images=5_000),
        averaging=HalfLife(10_000),
        sigma_data=0.6,
    )
    state = TrainState.start(MLP(), how)
    sigma, _ = draw(how.noise, 4096, torch.Generator().manual_seed(1))
    x0 = next(Points(4096)).x.to(F64)
    noise = torch.randn(4096, 1, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(2))
    x = x0 + sigma.reshape(-1, 1, 1, 1) * noise

    def excess(network: nn.Module) -> float:
        """How far D's weighted error lies above the least possible one, as a share of it."""
        weight = (1 / sigma**2 + 1 / 0.36).reshape(-1, 1, 1, 1)
        best = (weight * (exact_mean(x, sigma.reshape(-1, 1, 1, 1)) - x0) ** 2).mean()
        with torch.no_grad():
            mean = how.adapt(network)(x.float(), sigma).mean.to(F64)
        return float((weight * (mean - x0) ** 2).mean() / best) - 1

    before = excess(state.ema.network)
    records = list(train(state, Points(256), how, images=256 * 900))
    after = excess(state.ema.network)
    assert not any(r.skipped for r in records)
    assert before > 0.3
    assert after < 0.03


def test_training_on_the_bound_improves_the_bound() -> None:
    levels = NoiseLevels.from_betas(linear_betas(40))

    def adapt(network: nn.Module) -> object:
        return predicts_noise(network, levels)

    objective: Objective = Bound(levels)
    how = Plan(
        adapt=adapt,  # type: ignore[arg-type]
        objective=objective,
        noise=UniformLevels(levels),
        learning_rate=LearningRate(1e-2, decay=CosineDecay(200 * 900)),
        averaging=HalfLife(5_000),
        clip_norm=10.0,
    )

    def bound(mean: nn.Module | None) -> float:
        x0 = next(Points(4000)).x.to(F64)
        noise = torch.randn(4000, 1, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(4))
        sigma = levels.sigma.repeat(100)
        adapted = predicts_noise(mean or _exact_noise(levels), levels)
        with torch.no_grad():
            return float(objective.loss(adapted, x0, sigma, noise).value.mean())

    state = TrainState.start(MLP(label_span=10.0), how)
    before, least = bound(state.ema.network), bound(None)
    list(train(state, Points(200), how, images=200 * 900))
    after = bound(state.ema.network)
    assert least < after < before
    assert after - least < 0.1 * (before - least)


def _exact_noise(levels: NoiseLevels) -> nn.Module:
    class Exact(nn.Module):
        def forward(self, seen: Tensor, index: Tensor) -> Tensor:
            sigma = levels.sigma[index.long()].reshape(-1, 1, 1, 1)
            x = seen / levels.scale(sigma)
            return (x - exact_mean(x, sigma)) / sigma

    return Exact()


def test_simple_objective_on_a_ladder_runs_with_class_labels() -> None:
    levels = NoiseLevels.from_betas(linear_betas(40))

    def adapt(network: nn.Module) -> object:
        return predicts_noise(network, levels)

    how = plan(adapt=adapt, objective=Simple(), noise=UniformLevels(levels))
    records = steps(TrainState.start(tiny(), how), Data(batch=40), how, 30)
    assert records[0].loss > 0.8  # untrained, the noise's own variance and more
    assert sum(r.loss for r in records[-5:]) < sum(r.loss for r in records[:5])


# --- What training sees ---------------------------------------------------------------------------


def mixture_statistics(levels: LogNormal, draws: int = 400_000) -> LevelStatistics:
    generator = torch.Generator().manual_seed(0)
    statistics = LevelStatistics.over(NoiseRange(0.002, 80.0), SD, memory_images=1e12)
    sigma, _ = draw(levels, draws, generator)
    sign = torch.randint(0, 2, (draws,), generator=generator) * 2.0 - 1
    x0 = 0.6 * sign + 0.05 * torch.randn(draws, dtype=F64, generator=generator)
    x = x0 + sigma * torch.randn(draws, dtype=F64, generator=generator)
    return statistics.seen(sigma, (exact_mean(x, sigma) - x0) ** 2)


SD = math.sqrt(0.36 + 0.0025)


def test_statistics_are_bin_means_and_deviations() -> None:
    borders = torch.tensor([1.0, 2.0, 4.0], dtype=F64)
    empty = LevelStatistics(borders, torch.zeros(3, 2, dtype=F64), 1.0, 1e12)
    sigma = torch.tensor([1.5, 1.5, 3.0, 0.5, 9.0, 3.0], dtype=F64)
    error = torch.tensor([0.2, 0.4, 0.6, 0.3, 0.9, math.nan], dtype=F64)
    got = empty.seen(sigma, error)
    low = torch.tensor([0.2, 0.4, 0.3]) * (torch.tensor([1.5, 1.5, 0.5]) ** -2 + 1)
    high = torch.tensor([0.6, 0.9]) * (torch.tensor([3.0, 9.0]) ** -2 + 1)
    assert got.counts.tolist() == pytest.approx([3, 2])
    assert got.mean.tolist() == pytest.approx([float(low.mean()), float(high.mean())])
    deviations = [float(low.std(correction=0)), float(high.std(correction=0))]
    assert got.std.tolist() == pytest.approx(deviations, rel=1e-5)


def test_suggestion_is_the_profile_of_what_can_be_learnt_whatever_was_sampled() -> None:
    """Against the profile integrated on a fine grid; from two very different p_train."""
    log_sigma = torch.linspace(math.log(0.002), math.log(80), 400, dtype=F64)
    at, weight = LogNormal(0, 1), []
    z = torch.linspace(-6, 6, 2001, dtype=F64)
    for s in log_sigma.exp():
        var = 0.05**2 + s**2
        x = 0.6 + var.sqrt() * z
        # Posterior variance of the mixture, averaged over p(x) (symmetric in the sign).
        inside = 0.05**2 * s**2 / var + (s**2 * 0.6 / var) ** 2 * (
            1 - torch.tanh(0.6 * x / var) ** 2
        )
        error = torch.trapezoid(inside * torch.exp(-(z**2) / 2), z) / math.sqrt(2 * math.pi)
        weight.append(float((1 - error * (s**-2 + SD**-2)).clamp(min=0)))
    w = torch.tensor(weight, dtype=F64)
    w = w / w.sum()
    mean = float((w * log_sigma).sum())
    std = float((w * (log_sigma - mean) ** 2).sum().sqrt())
    for sampled in (LogNormal(-1.2, 1.8), LogNormal(0.5, 2.0)):
        found = suggest_log_normal(mixture_statistics(sampled))
        assert found is not None
        assert found.mean == pytest.approx(mean, abs=0.12)
        assert found.std == pytest.approx(std, abs=0.12)
    assert fits_badly(LogNormal(2.0, 2.0), at.__class__(round(mean, 2), round(std, 2)))
    assert not fits_badly(LogNormal(mean + 0.1, std), LogNormal(mean, std))


def test_there_is_no_suggestion_where_nothing_was_learnt() -> None:
    statistics = LevelStatistics.over(NoiseRange(0.002, 80.0), 0.5)
    assert suggest_log_normal(statistics) is None
    generator = torch.Generator().manual_seed(0)
    sigma, _ = draw(LogNormal(), 40_000, generator)
    x0 = 0.5 * torch.randn(40_000, dtype=F64, generator=generator)
    x = x0 + sigma * torch.randn(40_000, dtype=F64, generator=generator)
    gaussian = statistics.seen(sigma, (0.25 / (0.25 + sigma**2) * x - x0) ** 2)
    assert suggest_log_normal(gaussian) is None


def test_sigma_data_is_the_deviation_of_all_values() -> None:
    x = torch.rand(50, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 0.3
    measured = measure_sigma_data([x[:7], x[7:8], x[8:]])
    assert measured == pytest.approx(float(x.double().std(correction=0)), rel=1e-12)
    with pytest.raises(ValueError, match="no images"):
        measure_sigma_data([])
    with pytest.raises(ValueError, match="equal"):
        measure_sigma_data([torch.ones(3, 1, 2, 2)])


# --- Precision ------------------------------------------------------------------------------------


class Paced(nn.Module):
    """A network whose bf16 is slow or fast by construction."""

    def __init__(self, seconds: dict[torch.dtype, float]) -> None:
        super().__init__()
        self.gain, self.seconds = nn.Parameter(torch.ones(())), seconds
        self.dtype, self.last = torch.float32, False

    def set_compute(
        self, dtype: torch.dtype = torch.float32, *, channels_last: bool = False
    ) -> None:
        self.dtype, self.last = dtype, channels_last

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        time.sleep(self.seconds[self.dtype])
        torch.rand(3)
        return self.gain * x


@pytest.mark.parametrize(("bf16", "chosen"), [(0.005, "bfloat16"), (0.06, "float32")])
def test_the_faster_arithmetic_is_chosen_and_said(bf16: float, chosen: str) -> None:
    network = Paced({torch.float32: 0.03, torch.bfloat16: bf16})
    before = torch.get_rng_state()
    choice = choose_precision(network, (4, 1, 2, 2), budget=0.3, margin=1.5)
    assert choice.precision.dtype == chosen
    assert network.dtype == getattr(torch, chosen)
    assert network.last == choice.precision.channels_last == (chosen == "bfloat16")
    assert choice.sentence.startswith(chosen)
    assert "float32" in choice.sentence
    assert "images/s" in choice.sentence
    assert torch.equal(torch.get_rng_state(), before)
    assert network.gain.grad is None
    assert choose_precision(nn.Linear(1, 1), (1, 1, 1, 1)).precision == Precision()
