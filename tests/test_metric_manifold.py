"""Precision, recall, density and coverage on sets of points one can count by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.errors import DataError
from sfumato.metrics.manifold import manifold_scores


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def normal(rng, n, width=2):
    return torch.from_numpy(rng.normal(size=(n, width)))


def test_points_on_a_line_counted_by_hand():
    # Balls about the real points reach 1, 1, 1, 1, 7; about the samples 4, 4, 15.5.
    scores = manifold_scores(column(0, 1, 2, 3, 10), column(0.5, 4.5, 20), k=1, k_coverage=1)
    assert scores.precision == pytest.approx(2 / 3)  # 20 is out of reach
    assert scores.recall == 1.0
    assert scores.density == pytest.approx(3 / 3)  # 0.5 lies in two balls, 4.5 in one
    assert scores.coverage == pytest.approx(3 / 5)  # no sample near 2 and 3


def test_density_exceeds_one_where_samples_crowd():
    # Second neighbours of 0..4 are 2, 1, 1, 1, 2 away: all five closed balls hold the point 2.
    scores = manifold_scores(column(0, 1, 2, 3, 4), column(2, 2, 2, 2), k=2, k_coverage=2)
    assert scores.density == 5 / 2
    assert scores.precision == scores.coverage == 1.0
    assert scores.recall == 1 / 5  # the samples' own balls have no extent


def test_radius_is_the_kth_other_row():
    real = column(0, 1, 3, 7, 15)  # from 0: neighbours at 1, 3, 7, 15
    for k, reach in ((1, 1), (2, 3), (3, 7), (4, 15)):
        inside, outside = column(*[-reach] * 5), column(*[-reach - 0.01] * 5)
        far = manifold_scores(real, outside, k=k, k_coverage=k).density
        assert manifold_scores(real, inside, k=k, k_coverage=k).density > far


@pytest.mark.parametrize("copies", [1, 10])
def test_a_set_against_itself_and_against_nothing_near(copies):
    rng = np.random.default_rng(0)
    real = (normal(rng, 60, 64) + 1000).repeat(copies, 1).float()  # far from zero: rounding shows
    order = torch.from_numpy(rng.permutation(len(real)))
    same = manifold_scores(real, real[order], chunk=17)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    apart = manifold_scores(real, real + 1000)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)
    # With ten copies the balls have no extent, and a hair's breadth is outside.
    moved = manifold_scores(real, real + 1e-2)
    assert moved.precision == (1.0 if copies == 1 else 0.0)


def test_a_dropped_mode_costs_recall_and_an_invented_one_precision():
    rng = np.random.default_rng(1)
    one, two = normal(rng, 200), normal(rng, 200) + 50
    both = torch.cat([one, two])
    dropped = manifold_scores(both, normal(rng, 400))
    assert dropped.precision > 0.85
    assert dropped.recall < 0.55
    assert dropped.coverage < 0.55
    invented = manifold_scores(normal(rng, 400), both)
    assert invented.recall > 0.85
    assert invented.precision < 0.55
    assert invented.density < 0.6


def test_expectations_for_equal_distributions():
    """Coverage has a closed form and density is 1, whatever the distribution (Naeem et al.)."""
    rng = np.random.default_rng(2)
    draws = [manifold_scores(normal(rng, 40), normal(rng, 25)) for _ in range(300)]
    for found, truth in (
        ([d.coverage for d in draws], draws[0].expected_coverage),
        ([d.density for d in draws], 1.0),
    ):
        assert abs(np.mean(found) - truth) < 4 * np.std(found) / np.sqrt(len(found))


def test_counts_are_those_of_direct_distances_for_any_chunk():
    rng = np.random.default_rng(3)
    real, fake = normal(rng, 70, 5), normal(rng, 50, 5) * 1.2

    def radius(x, k):
        return np.sort(np.linalg.norm(x[:, None] - x, axis=2), axis=1)[:, k]

    x, y = real.numpy(), fake.numpy()
    across = np.linalg.norm(x[:, None] - y, axis=2)
    precision = (across <= radius(x, 3)[:, None]).any(0).mean()
    recall = (across <= radius(y, 3)).any(1).mean()
    held = across <= radius(x, 5)[:, None]
    for chunk in (1, 9, 1000):
        scores = manifold_scores(real, fake, chunk=chunk)
        assert scores.precision == precision
        assert scores.recall == recall
        assert scores.density == held.sum() / (5 * len(y))
        assert scores.coverage == held.any(1).mean()


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="at least 6 images per set, got 5"):
        manifold_scores(torch.zeros(9, 2), torch.zeros(5, 2))
    with pytest.raises(DataError, match="NaN"):
        manifold_scores(torch.zeros(9, 2), torch.full((9, 2), torch.inf))
    with pytest.raises(DataError, match="one extractor"):
        manifold_scores(torch.zeros(9, 2), torch.zeros(9, 3))
