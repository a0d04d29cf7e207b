"""The tint test: finds the shift that was made, and stays silent where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from sfumato.errors import DataError
from sfumato.metrics.tint import pixel_statistics, tint


def images(seed, n, channels=3, size=4):
    """8-bit images [n, C, H, W] in [-1, 1] whose channels share a brightness, as photographs do."""
    rng = np.random.default_rng(seed)
    level = 128 + 30 * rng.normal(size=(n, 1, 1, 1)) + 6 * rng.normal(size=(n, channels, 1, 1))
    pixels = (level + 15 * rng.normal(size=(n, channels, size, size))).round().clip(20, 235)
    return torch.from_numpy(pixels / 127.5 - 1).float()


def compare(real, fake):
    return tint(pixel_statistics([real]), pixel_statistics([fake]))


def shifted(x, levels):
    return x + torch.tensor(levels)[:, None, None] / 127.5


def test_a_shift_of_one_channel_is_found_with_its_amount():
    real, fake = images(0, 400), images(1, 400)
    before, after = compare(real, fake), compare(real, shifted(fake, [0.0, 5.0, 0.0]))
    change = np.subtract(after.shift, before.shift)
    np.testing.assert_allclose(change, [0, 5, 0], atol=1e-4)
    assert not before.tinted
    assert after.tinted
    assert after.cast[1] == pytest.approx(before.cast[1] + 10 / 3, abs=1e-4)
    assert after.verdict.startswith("Tinted")
    assert f"{after.shift[1]:+.1f}" in after.verdict
    assert before.verdict.startswith("Not tinted")


def test_brightness_is_no_colour_cast():
    real = images(0, 2000)
    found = compare(real, shifted(images(1, 2000), [-9.0, -9.0, -9.0]))
    assert not found.tinted
    assert found.shifted
    assert "darker" in found.verdict
    assert found.brightness == pytest.approx(-9, abs=4 * found.brightness_error)


def test_a_sure_shift_below_one_level_is_no_fault():
    found = compare(images(0, 4000, size=1), shifted(images(0, 4000, size=1), [0.4, 0.0, 0.0]))
    assert not found.tinted
    assert found.shift[0] == pytest.approx(0.4, abs=1e-4)


def test_false_alarms_are_as_rare_as_stated():
    """Chance of any alarm is 1 in 100, before the rule that a shift must be visible."""
    alarms = 0
    for seed in range(600):
        found = compare(images(2 * seed, 60, size=1), images(2 * seed + 1, 60, size=1))
        casts = max(abs(z) for z in found.cast_z)
        alarms += max(casts, abs(found.brightness_z)) > found.threshold
    assert alarms <= 16  # Poisson(6): more than 16 in 1 of 5000 suites


def test_errors_are_calibrated():
    found = [compare(images(2 * s, 50, size=1), images(2 * s + 1, 70, size=1)) for s in range(400)]
    for z in ([d.z[0] for d in found], [d.cast_z[2] for d in found]):
        assert np.std(z) == pytest.approx(1, abs=0.13)


def test_histogram_distance_of_a_shift_is_the_shift():
    real = images(0, 100)
    found = compare(real, shifted(real, [3.0, 0.0, -2.0]))
    np.testing.assert_allclose(found.distance, [3, 0, 2], atol=1e-9)
    np.testing.assert_allclose(found.std_ratio, 1, rtol=1e-4)


def test_histogram_distance_is_scipys():
    a, b = images(0, 40, 2), images(1, 60, 2)
    found = compare(a, b)
    for channel in range(2):
        x, y = (((z[:, channel] + 1) * 127.5).round().flatten().numpy() for z in (a, b))
        truth = scipy.stats.wasserstein_distance(x, y)
        assert found.distance[channel] == pytest.approx(truth, rel=1e-9)


def test_the_floor_is_what_real_images_score():
    found = [compare(images(2 * s, 160), images(2 * s + 1, 80)) for s in range(150)]
    distance = np.mean([d.distance for d in found])
    assert np.mean([d.distance_floor for d in found]) == pytest.approx(distance, rel=0.1)


@pytest.mark.parametrize("order", ["sorted", "cycling"])
def test_the_floor_does_not_mistake_the_order_of_classes(order):
    label = torch.arange(400) % 10
    label = label.sort().values if order == "sorted" else label
    real = (images(0, 400, 1) * 0.3 + (label.float() / 6 - 0.75)[:, None, None, None]).clamp(-1, 1)
    shuffled = real[torch.from_numpy(np.random.default_rng(0).permutation(400))]
    floor, truth = (compare(x, x).distance_floor[0] for x in (real, shuffled))
    assert 0 < floor < 1.2 * truth  # evenly dealt classes differ less, never more


def test_lost_contrast_shows_in_the_ratio():
    real = images(0, 300)
    assert compare(real, real * 0.8).std_ratio == pytest.approx((0.8, 0.8, 0.8), rel=1e-4)


def test_statistics_are_numpys_for_any_batches():
    x = images(3, 61, 2, 5)
    whole = pixel_statistics([x])
    truth = x.double().numpy()
    np.testing.assert_allclose(whole.means.mean, truth.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(whole.std, truth.transpose(1, 0, 2, 3).reshape(2, -1).std(1))
    for size in (1, 7, 60):
        parts = pixel_statistics(x.split(size))
        np.testing.assert_allclose(parts.histograms, whole.histograms, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(parts.means.covariance, whole.means.covariance, rtol=1e-10)
        np.testing.assert_allclose(parts.std, whole.std, rtol=1e-12)


def test_one_channel_has_brightness_only():
    real = images(0, 900, 1)
    found = compare(real, shifted(images(1, 900, 1), [8.0]))
    assert found.cast == (0.0,)
    assert not found.tinted
    assert found.shifted


def test_constant_images_do_not_divide_by_zero():
    grey = torch.zeros(40, 3, 4, 4)
    same = compare(grey, grey)
    assert same.z == (0, 0, 0)
    assert np.isnan(same.std_ratio).all()
    assert not same.tinted
    assert compare(grey, shifted(grey, [0.0, 4.0, 0.0])).tinted


def test_bad_input_is_refused():
    good = images(0, 40)
    with pytest.raises(DataError, match="at least 30 images per set, got 40 real ones and 3"):
        compare(good, good[:3])
    with pytest.raises(DataError, match="3 channels and the samples 1"):
        compare(good, good[:, :1])
    with pytest.raises(DataError, match="got none"):
        pixel_statistics([])
    with pytest.raises(DataError, match="finite"):
        pixel_statistics([good * torch.nan])
    with pytest.raises(DataError, match=r"x / 127\.5 - 1"):
        pixel_statistics([good * 200])
    with pytest.raises(DataError, match="float images"):
        pixel_statistics([good.to(torch.uint8)])
