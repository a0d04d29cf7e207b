"""Loss-aware levels: unbiased, less noisy, warm only when all levels are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flow_helpers import F64
from recipe_helpers import array_file, assert_same_run, open_run, small
from sfumato.noise import NoiseLevels
from sfumato.training.checkpoint import load_checkpoint
from sfumato.training.history import latest_checkpoint
from sfumato.training.loss_aware import LossAware, LossHistory

LEVELS = NoiseLevels.geometric(20, 0.01, 50.0)


def warmed(losses: torch.Tensor, depth: int = 10) -> LossHistory:
    history = LossHistory.empty(len(losses), depth)
    for _ in range(depth):
        history = history.seen(torch.arange(len(losses)), losses)
    return history


def test_the_weighted_mean_is_the_uniform_one_with_less_variance() -> None:
    losses = torch.linspace(0.1, 8.0, 20, dtype=F64) ** 2
    noise = LossAware(LEVELS)
    sigma, weight = noise.draw(warmed(losses), 20_000, torch.Generator().manual_seed(0))
    drawn = weight * losses[noise.index(sigma)]
    error = float(drawn.std()) / 20_000**0.5
    assert float(drawn.mean()) == pytest.approx(float(losses.mean()), abs=4 * error + 1e-9)
    assert float(drawn.std()) < 0.2 * float(losses.std())
    assert float(weight.mean()) == pytest.approx(1, abs=0.1)


def test_probabilities_are_of_the_root_mean_square_mixed_with_an_even_share() -> None:
    history = LossHistory.empty(3, 2)
    for values in ((3.0, 1.0, 0.0), (4.0, 1.0, 0.0)):
        history = history.seen(torch.arange(3), torch.tensor(values))
    root = torch.tensor([(12.5) ** 0.5, 1.0, 0.0], dtype=F64)
    expected = 0.9 * root / root.sum() + 0.1 / 3
    torch.testing.assert_close(history.probabilities(0.1), expected)


def test_it_is_even_until_every_level_has_ten() -> None:
    history = LossHistory.empty(4)
    for _ in range(9):
        history = history.seen(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    history = history.seen(torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 3.0]))
    assert not history.warm
    torch.testing.assert_close(history.probabilities(0.001), torch.full((4,), 0.25, dtype=F64))
    history = history.seen(torch.tensor([3]), torch.tensor([4.0]))
    assert history.warm
    assert history.probabilities(0.001)[3] > 0.39


def test_the_oldest_goes_and_what_is_not_finite_stays_out() -> None:
    history = LossHistory.empty(1, 3)
    for value in (1.0, 2.0, float("nan"), 3.0, float("inf"), 4.0):
        history = history.seen(torch.tensor([0]), torch.tensor([value]))
    assert history.values[0].tolist() == [2.0, 3.0, 4.0]
    assert history.counts.tolist() == [3]


def test_a_run_with_loss_aware_levels_resumes_to_the_bit(tmp_path: Path) -> None:
    data = array_file(tmp_path)
    recipe = small("iddpm-vlb-tiny", steps=30)
    recipe = replace(recipe, process=replace(recipe.process, steps=4))
    recipe = replace(recipe, sampler=replace(recipe.sampler, steps=3))
    whole = tmp_path / "whole"
    assert len(list(open_run(whole, data, recipe).steps())) == 30
    broken = tmp_path / "broken"
    steps = open_run(broken, data, recipe).steps()
    for record in steps:
        if record.step == 22:
            break
    steps.close()  # type: ignore[attr-defined]
    for _ in open_run(broken, data, recipe, resume=True).steps():
        pass
    assert_same_run(broken, whole)
    last = load_checkpoint(latest_checkpoint(whole).path, training=True).history
    again = load_checkpoint(latest_checkpoint(broken).path, training=True).history
    assert last is not None
    assert again is not None
    assert last.warm  # levels were not drawn evenly at the end
    assert torch.equal(last.values, again.values)
    p = last.probabilities(0.001)
    assert float(p.max() / p.min()) > 1.01
