"""The kernel distance against double loops and its own sampling distribution."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from sfumato.errors import DataError
from sfumato.metrics import kernel
from sfumato.metrics.kernel import kernel_distance


def rows(rng, n, width=3, shift=0.0, scale=1.0):
    return torch.from_numpy(rng.normal(size=(n, width)) * scale + shift)


def polynomial(x, y):
    return float((x @ y / len(x) + 1) ** 3)


def test_value_is_the_double_loop():
    rng = np.random.default_rng(0)
    a, b = rows(rng, 7), rows(rng, 5, shift=0.3)
    m, n = len(a), len(b)
    within_a = np.mean([polynomial(a[i], a[j]) for i, j in permutations(range(m), 2)])
    within_b = np.mean([polynomial(b[i], b[j]) for i, j in permutations(range(n), 2)])
    across = np.mean([polynomial(x, y) for x in a for y in b])
    found = kernel_distance(a, b)
    assert found.value == pytest.approx(within_a + within_b - 2 * across, rel=1e-12)
    assert (found.m, found.n) == (m, n)


def test_value_is_torchmetrics_at_equal_sizes():
    kid = pytest.importorskip("torchmetrics.image.kid")
    rng = np.random.default_rng(1)
    a, b = rows(rng, 40, 16), rows(rng, 40, 16, scale=1.3)
    assert kernel_distance(a, b).value == pytest.approx(float(kid.poly_mmd(a, b)), rel=1e-9)


def test_parts_of_the_variance_are_means_over_different_rows():
    """Each unbiased estimate is a mean of products of kernel values that share the stated rows."""
    rng = np.random.default_rng(2)
    a, b = rows(rng, 6), rows(rng, 5, shift=0.5)
    m, n = len(a), len(b)
    k = [[polynomial(x, y) for y in a] for x in a]
    c = [[polynomial(x, y) for y in b] for x in a]
    within, across = kernel._within(a, 4), kernel._across(a, b, 4)

    apart = np.mean([k[p][q] * k[r][s] for p, q, r, s in permutations(range(m), 4)])
    shared = np.mean([k[p][q] * k[p][r] for p, q, r in permutations(range(m), 3)])
    square = np.mean([k[p][q] ** 2 for p, q in permutations(range(m), 2)])
    assert within.mean_squared == pytest.approx(apart, rel=1e-10)
    assert within.of_rows == pytest.approx(shared - apart, rel=1e-8)
    assert within.of_pairs == pytest.approx(square - 2 * shared + apart, rel=1e-8)

    pairs_a, pairs_b = list(permutations(range(m), 2)), list(permutations(range(n), 2))
    apart = np.mean([c[p][r] * c[q][s] for p, q in pairs_a for r, s in pairs_b])
    by_row = np.mean([c[p][r] * c[p][s] for p in range(m) for r, s in pairs_b])
    by_column = np.mean([c[p][r] * c[q][r] for p, q in pairs_a for r in range(n)])
    square = np.mean(np.square(c))
    assert across.mean_squared == pytest.approx(apart, rel=1e-10)
    assert across.of_rows == pytest.approx(by_row - apart, rel=1e-8)
    assert across.of_columns == pytest.approx(by_column - apart, rel=1e-8)
    assert across.of_pairs == pytest.approx(square - by_row - by_column + apart, rel=1e-8)

    together = np.mean([k[p][q] * c[p][r] for p, q in pairs_a for r in range(n)])
    apart = np.mean([k[p][q] * c[s][r] for p, q, s in permutations(range(m), 3) for r in range(n)])
    covariance = kernel._covariance(within, across.rows, n)
    assert covariance == pytest.approx(together - apart, rel=1e-8)


@pytest.mark.parametrize(
    ("shift", "most"),
    # Where the sets are equal, keeping the witness term from falling below 0 errs on the safe side.
    [(0.0, 1.6), (0.7, 1.1)],
)
def test_unbiased_with_a_calibrated_error(shift, most):
    rng = np.random.default_rng(3)
    truth = distance_of_shifted_gaussians(np.full(3, shift))
    draws = [kernel_distance(rows(rng, 40), rows(rng, 30, shift=shift)) for _ in range(2000)]
    values = np.array([draw.value for draw in draws])
    variance = np.mean([draw.error**2 for draw in draws])
    assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(len(values))
    assert 0.88 < variance / values.var() < most


def distance_of_shifted_gaussians(shift):
    """Between N(0, I) and N(s, I): (x.y / 3 + 1)^3 compares moments up to the third, all known."""
    one = np.eye(3)
    mixed = np.einsum("ij,k->ijk", one, shift)
    second = np.outer(shift, shift)
    third = np.einsum("i,j,k->ijk", shift, shift, shift)
    third = third + mixed + mixed.transpose(0, 2, 1) + mixed.transpose(2, 1, 0)
    terms = ((shift, 3 / 3), (second, 3 / 9), (third, 1 / 27))
    return sum(weight * (moment**2).sum() for moment, weight in terms)


def test_the_chunk_does_not_matter():
    rng = np.random.default_rng(4)
    a, b = rows(rng, 50, 8), rows(rng, 61, 8, shift=0.1)
    whole = kernel_distance(a, b, chunk=1000)
    for chunk in (1, 7, 50):
        part = kernel_distance(a, b, chunk)
        assert part.value == pytest.approx(whole.value, rel=1e-10)
        assert part.error == pytest.approx(whole.error, rel=1e-8)


def test_bad_input_is_refused():
    good = torch.zeros(5, 2)
    with pytest.raises(DataError, match="at least 4 images per set, got 3"):
        kernel_distance(good[:3], good)
    with pytest.raises(DataError, match="one extractor"):
        kernel_distance(good, torch.zeros(5, 3))
    with pytest.raises(DataError, match="NaN"):
        kernel_distance(good, torch.full((5, 2), torch.nan))
