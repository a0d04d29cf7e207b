"""Clouds: as many as asked for, of the stated spectrum, from their seed alone, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.data.clouds import CloudField, Clouds, fractal
from sfumato.errors import ConfigError

SIZES = [(64, 64), (33, 65), (17, 96), (1, 50), (7, 1), (128, 31)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cover", [0.05, 0.3, 0.85])
def test_the_cover_is_what_was_asked_to_half_a_pixel(size: tuple[int, int], cover: float) -> None:
    for seed in range(6):
        field = Clouds(cover=cover).of(size, seed)
        assert field.opacity.shape == field.shadow.shape == field.thickness.shape == size
        pixels = size[0] * size[1]
        assert abs(int((field.opacity > 0).sum()) - cover * pixels) <= 0.5
        assert field.cover == pytest.approx(cover, abs=0.5 / pixels + 1e-12)


def test_one_pixel_has_a_sky_too() -> None:
    assert Clouds(cover=0.3).of((1, 1), 0).cover == 0
    assert Clouds(cover=0.7).of((1, 1), 0).cover == 1


def test_a_seed_is_a_sky() -> None:
    clouds = Clouds()
    first = [clouds.of((40, 30), seed) for seed in range(8)]
    again = [clouds.of((40, 30), seed) for seed in reversed(range(8))][::-1]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.opacity, b.opacity)
        assert torch.equal(a.shadow, b.shadow)
        assert torch.equal(a.thickness, b.thickness)
    masks = torch.stack([field.mask(shadows=False) for field in first]).double().flatten(1)
    likeness = torch.corrcoef(masks) - torch.eye(8)
    assert likeness.max() < 0.9
    assert abs(float(likeness.sum()) / 56) < 0.2


@pytest.mark.parametrize("beta", [2.0, 3.0, 4.0])
def test_the_spectrum_falls_as_stated(beta: float) -> None:
    """The slope of log power over log frequency, averaged over rings, by the plain periodogram."""
    height, width = 256, 192
    power = np.zeros((height, width))
    for seed in range(4):
        field = fractal((height, width), beta, np.random.default_rng(seed))
        assert abs(field.mean()) < 1e-9
        assert field.std() == pytest.approx(1)
        power += np.abs(np.fft.fft2(field)) ** 2
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    edges = np.geomspace(0.03, 0.5, 12)
    ring = np.digitize(frequency, edges)
    points = [
        (np.log(frequency[ring == i]).mean(), np.log(power[ring == i].mean())) for i in range(1, 12)
    ]
    slope = np.polyfit(*zip(*points, strict=True), 1)[0]
    assert slope == pytest.approx(-beta, abs=0.12)


def test_opposite_edges_do_not_meet() -> None:
    """A field that wraps around is as alike across its edges as neighbours are; these are not."""
    across, beside = [], []
    for seed in range(200):
        field = Clouds(softness=50).of((24, 24), seed).thickness.double()
        across.append(float((field[0] - field[-1]).abs().mean()))
        beside.append(float((field[0] - field[1]).abs().mean()))
    assert np.mean(across) > 3 * np.mean(beside)


def ground(size: tuple[int, int] = (48, 40)) -> torch.Tensor:
    return torch.rand((3, *size), generator=torch.Generator().manual_seed(1)) * 1.2 - 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_masked_is_the_ground_to_the_bit(dtype: torch.dtype) -> None:
    image = ground().to(dtype)
    for seed in range(5):
        field = Clouds(cover=0.4).of((48, 40), seed)
        out = Clouds.over(image, field)
        assert out.dtype == dtype
        assert out.min() >= -1
        assert out.max() <= 1
        keep = ~field.mask()
        assert 0 < keep.sum() < keep.numel()
        assert torch.equal(out[:, keep], image[:, keep])


def test_clouds_brighten_and_shadows_darken() -> None:
    image = ground()
    field = Clouds(cover=0.3, shadow=0.6).of((48, 40), 3)
    out = Clouds.over(image, field)
    shaded = (field.shadow > 0.1) & (field.opacity == 0)
    hidden = (field.opacity > 0.9) & (field.shadow == 0)
    assert shaded.any()
    assert hidden.any()
    assert (out[:, shaded] < image[:, shaded]).all()
    assert (out[:, hidden] > image[:, hidden]).all()
    # The darkest ground keeps 1 - 0.6 of its light, none keeps less.
    light = (out[:, shaded] + 1) / (image[:, shaded] + 1)
    assert light.min() > 0.4 - 1e-5
    assert float(field.shadow.max()) == pytest.approx(0.6)


def test_a_shadow_lies_where_its_cloud_was_moved_to() -> None:
    field = Clouds(cover=0.5, shadow=1.0, reach=0.2).of((60, 60), 5)
    found = [
        (down, right)
        for down in range(-14, 15)
        for right in range(-14, 15)
        if torch.equal(
            field.shadow[20:40, 20:40],
            field.opacity[20 + down : 40 + down, 20 + right : 40 + right],
        )
    ]
    assert len(found) == 1
    assert np.hypot(*found[0]) == pytest.approx(12, abs=1)


def test_without_shadows_the_mask_is_the_clouds() -> None:
    field = Clouds(cover=0.25, shadow=0).of((32, 32), 0)
    assert not field.shadow.any()
    assert torch.equal(field.mask(), field.opacity > 0)
    assert int(field.mask().sum()) == 256
    assert torch.equal(field.mask(0.5), field.opacity > 0.5)
    both = Clouds(cover=0.25).of((32, 32), 0)
    assert torch.equal(both.mask(0.2), (both.opacity > 0.2) | (both.shadow > 0.2))
    assert torch.equal(both.mask(shadows=False), field.mask())


def test_no_opacity_and_no_shadow_is_no_change() -> None:
    none = torch.zeros(48, 40)
    image = ground()
    assert torch.equal(Clouds.over(image, CloudField(none, none, none)), image)
    batch = torch.stack([image, -image])
    field = Clouds().of((48, 40), 0)
    assert torch.equal(Clouds.over(batch, field)[1], Clouds.over(-image, field))


@pytest.mark.parametrize(
    ("name", "value"),
    [("cover", 0.0), ("cover", 1.0), ("shadow", 1.5), ("softness", 0), ("beta", -1), ("reach", 2)],
)
def test_what_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: expected .*, got {value}"):
        Clouds(**{name: value})


def test_sizes_must_fit() -> None:
    with pytest.raises(ConfigError, match=r"height and width of 1 or more"):
        Clouds().of((0, 5), 0)
    with pytest.raises(ConfigError, match=r"\[48, 40\], got \[3, 40, 48\]"):
        Clouds.over(ground((40, 48)), Clouds().of((48, 40), 0))
