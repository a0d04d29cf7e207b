"""Augmentation against exact transformations and smooth images known everywhere."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfumato.training.augmentation import SYM6, Augment, Flip, Transforms, transform, warp

F64 = torch.float64


def only(count: int = 1, **values: float) -> Transforms:
    given = {name: torch.full((count,), v, dtype=F64) for name, v in values.items()}
    return replace(Transforms.none(count), **given)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def positions(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.arange(width, dtype=F64) - (width - 1) / 2
    y = torch.arange(height, dtype=F64) - (height - 1) / 2
    return x[None, :].expand(height, width), y[:, None].expand(height, width)


def wave(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.sin(0.20 * x + 0.13 * y + 0.3) + 0.5 * torch.cos(0.11 * x - 0.17 * y)


def interior(x: torch.Tensor, margin: int) -> torch.Tensor:
    return x[..., margin:-margin, margin:-margin]


def test_filter_is_an_orthonormal_low_pass_with_six_vanishing_moments() -> None:
    h = np.array(SYM6)
    for lag in range(6):
        assert (h[2 * lag :] * h[: len(h) - 2 * lag]).sum() == pytest.approx(
            float(lag == 0), abs=1e-11
        )
    assert h.sum() == pytest.approx(math.sqrt(2), abs=1e-12)
    k = np.arange(12) - 5.5
    moments = [float(((-1) ** np.arange(12) * h * k**j).sum()) for j in range(7)]
    assert np.abs(moments[:6]).max() < 1e-9
    assert abs(moments[6]) > 1


def test_nothing_is_done_at_probability_zero() -> None:
    x = noise(16, 3, 8, 10)
    out, labels = Augment(0.0)(x, torch.Generator().manual_seed(1))
    assert torch.equal(out, x)
    assert torch.equal(labels, torch.zeros(16, 9, dtype=F64))


def test_flips_are_exact_and_told() -> None:
    x = noise(1, 2, 5, 8)
    assert torch.equal(transform(x, only(flip_x=1.0)), x.flip(3))
    assert torch.equal(transform(x, only(flip_y=1.0)), x.flip(2))
    both = only(flip_x=1.0, flip_y=1.0)
    assert torch.equal(transform(x, both), x.flip(2, 3))
    assert both.describe().tolist() == [[1, 1, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 5, 16, 24), (1, 3, 13, 9), (1, 1, 1, 6)])
def test_identity_through_the_filters_is_exact(shape: tuple[int, ...]) -> None:
    x = noise(*shape)
    same = torch.eye(2, 3, dtype=F64)[None]
    torch.testing.assert_close(warp(x, same), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, -3), (-4, 5), (20, 0)])
def test_whole_pixel_shifts_are_exact_with_mirrored_borders(right: int, down: int) -> None:
    height, width = 16, 24
    x = noise(1, 2, height, width)
    out = transform(x, only(shift_x=8 * right / width, shift_y=8 * down / height))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (30, 30), (30, 30)), mode="reflect")
    expected = padded[:, :, 30 - down : 30 - down + height, 30 - right : 30 - right + width]
    torch.testing.assert_close(out, torch.from_numpy(expected.copy()), rtol=0, atol=1e-9)


def test_a_shift_by_a_pixel_moves_the_image_to_the_right() -> None:
    x = noise(1, 1, 16, 16)
    out = transform(x, only(shift_x=0.5))
    torch.testing.assert_close(out[..., 1:], x[..., :-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_counter_clockwise(quarters: int) -> None:
    x, y = positions(32, 32)
    image = wave(x, y)[None, None]
    out = transform(image, only(rotation=quarters * math.pi / 2))
    exact = torch.rot90(image, quarters, dims=(2, 3))
    wrong = torch.rot90(image, -quarters, dims=(2, 3))
    assert (interior(out - exact, 4)).abs().max() < 4e-3
    if quarters != 2:
        assert (interior(out - wrong, 4)).abs().max() > 0.3


CASES = {
    "scale up": {"scale": 1.5},
    "scale down": {"scale": -0.7},
    "turn": {"rotation": 0.4},
    "stretch": {"stretch": 1.2},
    "oblique stretch": {"stretch": -1.1, "stretch_angle": 2.0},
    "sub-pixel shift": {"shift_x": 0.13, "shift_y": -0.21},
    "all": {
        "scale": 0.5,
        "rotation": -2.0,
        "stretch": 0.8,
        "stretch_angle": 0.7,
        "shift_x": 0.3,
        "shift_y": 0.2,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_warps_of_a_smooth_image_follow_the_formula(name: str) -> None:
    """Each factor of the map is written out here, independently, in complex numbers."""
    height, width = 40, 48
    v = {**dict.fromkeys(("scale", "rotation", "stretch", "stretch_angle"), 0.0), **CASES[name]}
    x, y = positions(height, width)
    p = torch.complex(x, y)
    p = p - complex(v.get("shift_x", 0) * width / 8, v.get("shift_y", 0) * height / 8)
    # Stretching: content grows along the direction at -angle (y points down) and shrinks across.
    axis = np.exp(-1j * v["stretch_angle"])
    q = p * np.conj(axis)
    factor = 2 ** (0.2 * v["stretch"])
    p = torch.complex(q.real / factor, q.imag * factor) * axis
    p = p * np.exp(1j * v["rotation"]) / 2 ** (0.2 * v["scale"])
    exact = wave(p.real, p.imag)
    image = wave(x, y)[None, None]
    out = transform(image, only(**CASES[name]))[0, 0]
    # Compare where the source lies inside the image.
    inside = (p.real.abs() < width / 2 - 5) & (p.imag.abs() < height / 2 - 5)
    assert inside.sum() > 300
    assert (out - exact)[inside].abs().max() < 5e-3
    assert (image[0, 0] - exact)[inside].abs().max() > 0.05


def test_a_half_turn_of_float32_images_with_many_channels() -> None:
    x, y = positions(20, 28)
    image = wave(x, y).float()[None, None].repeat(3, 7, 1, 1)
    out = transform(image, only(3, rotation=math.pi))
    assert out.dtype == torch.float32
    assert interior(out - image.flip(2, 3), 4).abs().max() < 4e-3


def test_high_frequencies_are_removed_before_shrinking() -> None:
    """A chequerboard shrunk by 2 would alias to a constant or a coarse pattern without filters."""
    x, y = positions(32, 32)
    image = torch.cos(math.pi * (x + y))[None, None]
    out = transform(image, only(scale=-5.0))
    assert interior(out, 12).abs().max() < 0.35
    assert image.abs().min() > 0.99


def test_labels_of_each_transform() -> None:
    t = only(scale=0.5, rotation=0.3, stretch=-1.5, stretch_angle=0.4, shift_x=0.25, shift_y=-2.0)
    expected = [0, 0, 0.5, math.cos(0.3) - 1, math.sin(0.3)]
    expected += [-1.5 * math.cos(0.4), -1.5 * math.sin(0.4), 0.25, -2.0]
    assert t.describe()[0].tolist() == pytest.approx(expected, abs=1e-15)


def test_the_label_of_a_stretch_is_ambiguous() -> None:
    a = only(stretch=1.0, stretch_angle=0.3)
    b = only(stretch=-1.0, stretch_angle=0.3 + math.pi)
    torch.testing.assert_close(a.describe(), b.describe())
    assert (a.matrices(16, 16) - b.matrices(16, 16)).abs().max() > 0.1


def test_labels_say_exactly_what_was_done() -> None:
    """Rebuilding the transforms from what was drawn gives the same images, image by image."""
    augment, x = Augment(0.4), noise(32, 2, 12, 12)
    out, labels = augment(x, torch.Generator().manual_seed(3))
    drawn = augment.draw(32, torch.Generator().manual_seed(3))
    assert torch.equal(labels, drawn.describe())
    for i in range(32):
        one = Transforms(*(getattr(drawn, f)[i : i + 1] for f in Transforms.__annotations__))
        torch.testing.assert_close(transform(x[i : i + 1], one)[0], out[i], rtol=0, atol=1e-9)
        if not labels[i].any():
            assert torch.equal(out[i], x[i])


def test_how_often_and_how_much() -> None:
    """Rates within 4.5 standard errors; the distributions' moments as published."""
    n, p = 40_000, 0.12
    t = Augment(p).draw(n, torch.Generator().manual_seed(5))

    def near(share: float, rate: float) -> bool:
        return abs(share - rate) < 4.5 * math.sqrt(rate * (1 - rate) / n)

    assert near(float(t.flip_x.mean()), 0.5)
    assert near(float(t.flip_y.mean()), p / 2)
    for part in (t.scale, t.rotation, t.stretch, t.shift_x):
        assert near(float((part != 0).double().mean()), p)
    assert near(float((t.stretch_angle != 0).double().mean()), p / 2)
    assert torch.equal(t.shift_x != 0, t.shift_y != 0)
    for part in (t.scale, t.stretch, t.shift_x, t.shift_y):
        assert float(part[part != 0].std()) == pytest.approx(1, abs=0.05)
    for part in (t.rotation, t.stretch_angle):
        values = part[part != 0]
        assert float(values.abs().max()) <= math.pi
        assert float(values.std()) == pytest.approx(math.pi / math.sqrt(3), abs=0.06)
        assert abs(float(values.mean())) < 0.12
    active = ((t.scale != 0) & (t.rotation != 0)).double().mean()
    assert near(float(active), p * p)


def test_flip_alone() -> None:
    x = noise(400, 1, 2, 3)
    out, labels = Flip()(x, torch.Generator().manual_seed(0))
    flipped = (out == x.flip(3)).flatten(1).all(1)
    same = (out == x).flatten(1).all(1)
    assert labels is None
    assert (flipped ^ same).all()
    assert 150 < int(flipped.sum()) < 250


def test_probability_is_checked() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\], not 12"):
        Augment(12)
