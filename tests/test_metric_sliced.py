"""Sliced Wasserstein distance against closed forms, and scipy in one dimension."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional as F

from sfumato.errors import DataError
from sfumato.metrics.sliced import sliced_pyramid, sliced_wasserstein, wasserstein


def generator(seed=0):
    return np.random.default_rng(seed)


def normal(seed, *shape):
    return torch.from_numpy(generator(seed).normal(size=shape))


def textures(seed, n, channels=1, size=32):
    """Smooth random images in [-1, 1]."""
    coarse = torch.from_numpy(
        generator(seed).uniform(-0.8, 0.8, (n, channels, size // 4, size // 4))
    )
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(-1, 1)


def test_one_dimension_is_scipys_for_any_sizes():
    a, b = normal(0, 3, 50), normal(1, 3, 71) * 2
    b[:, :20] = a[:, :20]  # ties
    truth = [scipy.stats.wasserstein_distance(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(wasserstein(a, b), truth, rtol=1e-12)
    assert wasserstein(a, a.flip(1)).tolist() == [0, 0, 0]


def test_a_shift_on_a_line_is_the_shift():
    a = normal(0, 40, 1)
    found = sliced_wasserstein(a + 0.75, a, generator())
    assert found.value == pytest.approx(0.75, rel=1e-12)
    assert found.error == pytest.approx(0, abs=1e-12)


def test_scaling_a_gaussian_is_the_closed_form():
    # Quantiles of N(0, 1) and of N(0, 3): the distance of scales s and t is |s - t| sqrt(2 / pi).
    a = torch.tensor([[NormalDist().inv_cdf((i + 0.5) / 5000)] for i in range(5000)])
    found = sliced_wasserstein(3 * a, a, generator(), directions=2)
    assert found.value == pytest.approx(2 * math.sqrt(2 / math.pi), rel=1e-3)


def test_a_shift_in_many_dimensions_is_the_mean_projection():
    # E |cos| between a fixed and a uniform direction in 4 dimensions: 4 / (3 pi).
    a = normal(0, 30, 4)
    shift = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=torch.float64)  # length 5
    found = sliced_wasserstein(a + shift, a, generator(), directions=4000)
    truth = 5 * 4 / (3 * math.pi)
    assert abs(found.value - truth) < 4 * found.error
    assert found.error < 0.02 * truth


def test_white_noise_is_seen_at_its_own_size():
    base = torch.zeros(400, 300, dtype=torch.float64)
    noise = normal(1, 400, 300) * 0.2
    found = sliced_wasserstein(base + noise, base, generator())
    assert found.value == pytest.approx(0.2 * math.sqrt(2 / math.pi), rel=0.05)


@pytest.mark.parametrize(("n", "m"), [(100, 100), (60, 200)])
def test_the_floor_is_what_equal_distributions_score(n, m):
    draws = [
        sliced_wasserstein(normal(2 * i, n, 3), normal(2 * i + 1, m, 3), generator(i), 20)
        for i in range(200)
    ]
    values, floors = [d.value for d in draws], [d.floor for d in draws]
    assert np.mean(floors) == pytest.approx(np.mean(values), rel=0.06)


def test_rows_of_one_image_stay_together_in_the_floor():
    # Eight copies of every image tell nothing new: the floor must be that of the images alone.
    a, b = normal(0, 200, 2), normal(1, 200, 2)
    alone = sliced_wasserstein(a, b, generator(), 100).floor
    copies = [x.repeat_interleave(8, 0) for x in (a, b)]
    grouped = sliced_wasserstein(*copies, generator(), 100, group=8).floor
    assert grouped == pytest.approx(alone, rel=1e-6)


def test_pyramid_of_equal_distributions_is_near_its_floor():
    found = sliced_pyramid(textures(0, 60, 2), textures(1, 60, 2), generator(), 16, 64)
    assert found.sizes == ((32, 32), (16, 16))
    for level in found.levels:
        assert level.value < 2 * level.floor
    assert found.value == pytest.approx(sum(level.value for level in found.levels) / 2)


def test_a_constant_shift_shows_at_the_smallest_level_alone():
    real, fake = textures(0, 60), textures(1, 60) * 0.8
    before = sliced_pyramid(fake, real, generator(), 16, 64)
    after = sliced_pyramid(fake + 0.2, real, generator(), 16, 64)
    assert after.levels[0].value == pytest.approx(before.levels[0].value, rel=1e-9)
    assert after.levels[1].value > before.levels[1].value + 0.1


def test_blur_shows_at_full_resolution_most():
    real = textures(0, 60) + torch.from_numpy(generator(5).uniform(-0.2, 0.2, (60, 1, 32, 32)))
    real = real.clamp(-1, 1)
    blurred = F.avg_pool2d(F.pad(real, (1, 1, 1, 1), mode="reflect"), 3, 1)
    found = sliced_pyramid(blurred, real, generator(), 16, 64)
    assert found.levels[0].value > 5 * found.levels[0].floor
    assert found.levels[0].value > 2 * found.levels[1].value


def test_a_cast_in_one_channel_counts():
    real, fake = textures(0, 60, 3), textures(1, 60, 3) * 0.9
    cast = fake.clone()
    cast[:, 0] += 0.3
    before, after = (
        sliced_pyramid(x, real, generator(), 16, 64).levels[-1].value for x in (fake, cast)
    )
    assert after > before + 0.1


@pytest.mark.parametrize("size", [(9, 12), (33, 47)])
def test_any_size_at_least_a_patch(size):
    images = torch.from_numpy(generator().uniform(-1, 1, (6, 1, *size)))
    found = sliced_pyramid(images, images.flip(3), generator(), 200, 16)
    assert len(found.sizes) == (1 if size[0] < 32 else 2)
    assert math.isfinite(found.value)


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="at least 4 images"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(9, 2), generator())
    with pytest.raises(DataError, match="NaN"):
        sliced_wasserstein(torch.full((9, 2), torch.nan), torch.zeros(9, 2), generator())
    with pytest.raises(DataError, match="at least 7 px"):
        sliced_pyramid(torch.zeros(9, 1, 6, 9), torch.zeros(9, 1, 6, 9), generator())
    with pytest.raises(DataError, match="one shape"):
        sliced_pyramid(torch.zeros(9, 1, 9, 9), torch.zeros(9, 1, 9, 8), generator())
