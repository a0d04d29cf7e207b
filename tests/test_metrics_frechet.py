"""The Fréchet distance against closed forms and scipy's general matrix square root."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from sfumato.errors import DataError
from sfumato.metrics.frechet import FeatureStatistics, frechet_distance


def moments(mean, covariance, count=1000):
    return FeatureStatistics.from_moments(np.asarray(mean, float), np.asarray(covariance), count)


def of_rows(rows):
    statistics = FeatureStatistics(rows.shape[1])
    statistics.update(rows)
    return statistics


def random_covariance(rng, size, rank):
    factor = rng.normal(size=(size, rank))
    return factor @ factor.T / rank


def test_one_dimension_is_the_closed_form():
    a, b = moments([1.0], [[4.0]]), moments([-2.0], [[0.25]])
    assert frechet_distance(a, b) == pytest.approx(3.0**2 + (2.0 - 0.5) ** 2, rel=1e-12)


def test_commuting_covariances_are_the_closed_form():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    p, q = rng.uniform(0.1, 5, 30), rng.uniform(0.1, 5, 30)
    m1, m2 = rng.normal(size=(2, 30))
    a, b = moments(m1, (basis * p) @ basis.T), moments(m2, (basis * q) @ basis.T)
    truth = ((m1 - m2) ** 2).sum() + ((np.sqrt(p) - np.sqrt(q)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-11)


def test_general_covariances_agree_with_scipy():
    rng = np.random.default_rng(1)
    ca, cb = random_covariance(rng, 40, 60), random_covariance(rng, 40, 50)
    m1, m2 = rng.normal(size=(2, 40))
    root = scipy.linalg.sqrtm(ca @ cb)
    truth = ((m1 - m2) ** 2).sum() + np.trace(ca + cb - 2 * np.real(root))
    a, b = moments(m1, ca), moments(m2, cb)
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(truth, rel=1e-9)


def test_singular_covariances_in_orthogonal_subspaces_do_not_interact():
    ca, cb = np.diag([2.0, 3.0, 0, 0]), np.diag([0, 0, 5.0, 7.0])
    assert frechet_distance(moments(np.zeros(4), ca), moments(np.zeros(4), cb)) == 17.0


def test_fewer_rows_than_dimensions_is_the_nuclear_norm():
    # C = X'X / (n - 1), so the trace of the root is the sum of singular values of X Y': no root of
    # a rounded zero in it, an independent way to the same number.
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(12, 100)), rng.normal(size=(20, 100)) * 2 + 1
    xc, yc = (x - x.mean(0)) / np.sqrt(11), (y - y.mean(0)) / np.sqrt(19)
    cross = np.linalg.svd(xc @ yc.T, compute_uv=False).sum()
    truth = ((x.mean(0) - y.mean(0)) ** 2).sum() + (xc**2).sum() + (yc**2).sum() - 2 * cross
    assert frechet_distance(of_rows(x), of_rows(y)) == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("rank", [3, 49, 200])
def test_a_set_against_itself_is_zero(rank):
    rng = np.random.default_rng(rank)
    statistics = moments(rng.normal(size=50), random_covariance(rng, 50, rank) * 1e6)
    assert 0 <= frechet_distance(statistics, statistics) < 1e-6 * np.trace(statistics.covariance)


def test_ill_conditioned_covariances_agree_with_the_closed_form():
    scales = np.logspace(-14, 6, 60)
    a, b = moments(np.zeros(60), np.diag(scales)), moments(np.zeros(60), np.diag(4 * scales))
    assert frechet_distance(a, b) == pytest.approx(scales.sum(), rel=1e-8)


def test_statistics_are_numpys_for_any_split():
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(500, 8)) * rng.uniform(0.01, 10, 8) + 1e4  # a mean far from zero
    for size in (1, 7, 64, 500):
        statistics = FeatureStatistics(8)
        for start in range(0, 500, size):
            statistics.update(torch.from_numpy(rows[start : start + size]))
        assert statistics.count == 500
        np.testing.assert_allclose(statistics.mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(statistics.covariance, np.cov(rows.T), rtol=1e-6, atol=1e-9)


def test_merging_shards_is_one_pass():
    rows = np.random.default_rng(4).normal(size=(90, 5))
    whole, parts = of_rows(rows), FeatureStatistics(5)
    for shard in (rows[:1], rows[1:60], rows[60:60], rows[60:]):
        parts.merge(of_rows(shard))
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-12)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12, atol=1e-15)


def test_moments_come_back():
    rows = np.random.default_rng(5).normal(size=(30, 4))
    a = of_rows(rows)
    b = FeatureStatistics.from_moments(a.mean, a.covariance, a.count)
    more = np.random.default_rng(6).normal(size=(9, 4))
    a.update(more)
    b.update(more)
    np.testing.assert_allclose(a.covariance, b.covariance, rtol=1e-12)


def test_bad_input_is_refused():
    statistics = FeatureStatistics(3)
    with pytest.raises(DataError, match="NaN"):
        statistics.update(np.array([[1.0, np.nan, 2.0]]))
    with pytest.raises(DataError, match=r"\[B, 3\]"):
        statistics.update(np.zeros((2, 4)))
    statistics.update(np.zeros((1, 3)))
    with pytest.raises(DataError, match="at least 2"):
        _ = statistics.covariance
    with pytest.raises(DataError, match="one extractor"):
        frechet_distance(of_rows(np.zeros((3, 3))), of_rows(np.zeros((3, 4))))
