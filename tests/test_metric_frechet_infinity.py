"""Extrapolated Fréchet distances, the Gaussian floor and the table per class, against truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.errors import DataError
from sfumato.metrics.frechet import FeatureStatistics, frechet_distance, frechet_distances
from sfumato.metrics.frechet_infinity import frechet_infinity, gaussian_floor
from sfumato.metrics.per_class import class_distances

SCALES = np.logspace(0, -1, 12)
"""Standard deviations of twelve independent features."""


def statistics(rows):
    made = FeatureStatistics(rows.shape[1])
    made.update(np.asarray(rows))
    return made


def exact(scales, mean=0.0):
    centre = np.full(len(scales), mean)
    return FeatureStatistics.from_moments(centre, np.diag(scales**2), 10**6)


def draw(rng, n, scales=SCALES, mean=0.0):
    return torch.from_numpy(rng.normal(size=(n, len(scales))) * scales + mean)


@pytest.mark.parametrize(
    ("stretch", "least", "most"),
    # Equal distributions leave only terms in 1 / n^2. In units of their variance at all rows the
    # spread counts sum (k - 1) k / 10 = 4 and the line, which is all there is, 1.62: the error is
    # sqrt(5.62 / 1.62) = 1.86 times too large, and a little more where a parabola fits by chance.
    [(1.0, 1.5, 2.3), (1.4, 0.8, 1.3)],
)
def test_extrapolation_meets_the_true_distance_within_its_error(stretch, least, most):
    """Samples stretched by a factor: the distance is (stretch - 1)^2 tr C, closed form."""
    truth = (stretch - 1) ** 2 * (SCALES**2).sum()
    rng = np.random.default_rng(0)
    reference = exact(SCALES)
    found, plain = [], []
    for _ in range(150):
        rows = draw(rng, 300, stretch * SCALES)
        found.append(frechet_infinity(rows, reference, rng))
        plain.append(found[-1].values[0])
    values, errors = np.array([f.value for f in found]), np.array([f.error for f in found])
    bias = abs(values.mean() - truth)
    assert bias < 0.1 * abs(np.mean(plain) - truth) + 4 * values.std() / np.sqrt(len(values))
    assert np.mean(plain) - truth > 4 * plain_error(plain)  # there was a bias to remove
    assert least < np.sqrt(np.mean(errors**2)) / values.std() < most


def plain_error(values):
    return np.std(values) / np.sqrt(len(values))


def test_points_are_means_over_disjoint_subsets_of_all_rows():
    rng = np.random.default_rng(1)
    rows, reference = draw(rng, 120), exact(SCALES, 0.2)
    found = frechet_infinity(rows, reference, np.random.default_rng(7), points=3)
    order = np.random.default_rng(7).permutation(120)
    shuffled = rows.numpy()[order]
    for parts, value in zip((1, 2, 3), found.values, strict=True):
        truth = np.mean(
            [frechet_distance(reference, statistics(p)) for p in np.split(shuffled, parts)]
        )
        assert value == pytest.approx(truth, rel=1e-9)
    assert found.sizes == (120, 60, 40)
    # A weighted line has no weighted residual along 1 or along 1 / n.
    inverse = np.array([1, 2, 3]) / 120
    residual = np.array(found.values) - found.value - found.slope * inverse
    assert abs((residual / [1, 2, 3]).sum()) < 1e-9
    assert abs((residual * inverse / [1, 2, 3]).sum()) < 1e-9


def test_rows_sorted_by_class_are_shuffled():
    rng = np.random.default_rng(2)
    rows = torch.cat([draw(rng, 150, mean=-2.0), draw(rng, 150, mean=2.0)])
    # The covariance of two classes at -2 and 2; halves taken in order would each be far away.
    both = FeatureStatistics.from_moments(np.zeros(12), np.diag(SCALES**2) + 4, 10**6)
    found = frechet_infinity(rows, both, rng)
    assert abs(found.value) < 4 * found.error
    assert found.error < 0.5


def test_few_images_for_many_features_are_cautioned():
    rng = np.random.default_rng(3)
    few, many = draw(rng, 50), draw(rng, 60)
    assert "60 images or more" in (frechet_infinity(few, exact(SCALES), rng).caution or "")
    assert frechet_infinity(many, exact(SCALES), rng).caution is None


@pytest.mark.parametrize("n", [300, 2600])
def test_where_the_line_bends_the_error_says_so(n):
    """100 equal features: subsets of 60 images have fewer than features, of 520 five times more."""
    rng = np.random.default_rng(10)
    found = frechet_infinity(draw(rng, n, np.ones(100)), exact(np.ones(100)), rng)
    assert abs(found.value) < 3 * found.error
    assert found.error < found.values[0]


@pytest.mark.parametrize("m", [None, 300])
def test_gaussian_floor_is_the_mean_distance_of_equal_gaussians(m):
    rng = np.random.default_rng(4)
    found = []
    for _ in range(800):
        other = exact(SCALES) if m is None else statistics(draw(rng, m))
        found.append(frechet_distance(statistics(draw(rng, 500)), other))
    assert np.mean(found) == pytest.approx(gaussian_floor(exact(SCALES), 500, m), rel=0.03)


def test_many_distances_are_one_by_one():
    rng = np.random.default_rng(5)
    sets = [statistics(draw(rng, n)) for n in (5, 40, 400)]
    for one, found in zip(sets, frechet_distances(exact(SCALES), sets), strict=True):
        assert found == frechet_distance(exact(SCALES), one)


def test_extrapolation_refuses():
    rng = np.random.default_rng(6)
    with pytest.raises(DataError, match="at least 50 images per set, got 49"):
        frechet_infinity(draw(rng, 49), exact(SCALES), rng)
    with pytest.raises(DataError, match="NaN"):
        frechet_infinity(draw(rng, 90) * torch.nan, exact(SCALES), rng)
    with pytest.raises(DataError, match="one extractor"):
        frechet_infinity(draw(rng, 90)[:, :5], exact(SCALES), rng)
    with pytest.raises(ValueError, match="at least 2 images"):
        gaussian_floor(exact(SCALES), 1)


# --- per class ---------------------------------------------------------------------------------


def test_each_class_is_compared_with_itself():
    rng = np.random.default_rng(7)
    real, labels = draw(rng, 240), torch.arange(240) % 3
    fake = real.clone()
    fake[labels == 1] += 0.5  # 12 features shifted by a half: a distance of 3
    order = torch.from_numpy(rng.permutation(240))
    table = class_distances(fake[order], labels[order], real, labels, ["a", "b", "c"])
    assert [row.name for row in table.rows] == ["a", "b", "c"]
    np.testing.assert_allclose([r.distance for r in table.rows], [0, 3, 0], atol=1e-8)
    assert table.worst_first[0].name == "b"
    assert (table.rows[0].n_fake, table.rows[0].n_real) == (80, 80)
    assert table.too_few == ()


def test_classes_with_too_few_images_are_named():
    rng = np.random.default_rng(8)
    labels = torch.tensor([0] * 60 + [1] * 60 + [2] * 10)
    table = class_distances(draw(rng, 130), labels, draw(rng, 130), labels, ["a", "b", "cat"])
    assert len(table.rows) == 2
    assert table.too_few == ("cat (10 samples, 10 real)",)


def test_a_table_per_class_refuses():
    rows, labels = draw(np.random.default_rng(9), 60), torch.arange(60) % 2
    with pytest.raises(DataError, match="the samples have none"):
        class_distances(rows, None, rows, labels, ["a", "b"])
    with pytest.raises(DataError, match="run from 0 to 1, but there are 1 classes"):
        class_distances(rows, labels, rows, labels, ["a"])
    with pytest.raises(DataError, match="whole-number labels"):
        class_distances(rows, labels.float(), rows, labels, ["a", "b"])
    with pytest.raises(DataError, match=r"at least 50 .* a \(30 samples, 30 real\)"):
        class_distances(rows, labels, rows, labels, ["a", "b"])
