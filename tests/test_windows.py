"""Images larger than the network: windows, noise by place, seams, and noise estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from likelihood_helpers import Known
from sfumato import noise_for, sample
from sfumato.data.pixels import PixelFormat, pixel_format
from sfumato.gaussian import Gaussian
from sfumato.noise import F64, karras
from sfumato.protocols import Denoise
from sfumato.randomness import Purpose
from sfumato.recipes.model import Model
from sfumato.recipes.restoring import How, scene_work
from sfumato.recipes.restoring.drawing import Drawing
from sfumato.recipes.restoring.scenes import SceneReader
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.restoration import Mask, Measured, MomentMatching, Restored
from sfumato.restoration.estimate import noise_std
from sfumato.restoration.windows import PlacedNoise, Window, Windowed, places
from sfumato.solvers import DDIM

LOW, HIGH = 0.01, 40.0
SIDE = 16


@dataclass(frozen=True, eq=False)
class Field:
    """A stationary Gaussian field of windows, C = std^2 exp(-distance / reach): D is linear."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def made(cls, side: int = SIDE, std: float = 0.4, reach: float = 4.0) -> Field:
        place = torch.cartesian_prod(*[torch.arange(side, dtype=F64)] * 2)
        covariance = std**2 * torch.exp(-torch.cdist(place, place) / reach)
        return cls(*torch.linalg.eigh(covariance))

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        vectors, values = self.vectors.to(x), self.values.to(x)
        gain = values / (values + sigma.to(x).reshape(-1, 1).square())
        mean = ((x.flatten(2) @ vectors) * gain[:, None]) @ vectors.T
        return Gaussian(mean.reshape(x.shape), torch.zeros((), dtype=x.dtype))


def known(oracle: Denoise) -> Known:
    return Known(oracle, LOW, HIGH, HIGH**2 + 1)


def windowed(oracle: Denoise, size: int, stride: int, batch: int = 16) -> Windowed:
    one = known(oracle)
    return Windowed(one, lambda windows: one, (size, size), (stride, stride), batch)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# Windows


@pytest.mark.parametrize("sigma", [torch.tensor(0.3).double(), torch.tensor([0.1, 2.0]).double()])
def test_an_image_of_one_window_is_what_the_denoiser_says(sigma: Tensor) -> None:
    x, field = random(2, 1, SIDE, SIDE), Field.made()
    assert torch.allclose(windowed(field, SIDE, 8)(x, sigma).mean, field(x, sigma).mean, atol=1e-13)


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (40, 16), (33, 50)])
@pytest.mark.parametrize("stride", [1, 5, 8, 16])
def test_windows_cover_all_and_average(size: tuple[int, int], stride: int) -> None:
    """A denoiser that knows one value gives it everywhere; one that returns x returns x."""
    tops, lefts = (places(whole, SIDE, stride) for whole in size)
    seen = np.zeros(size, int)
    for top in tops:
        for left in lefts:
            seen[top : top + SIDE, left : left + SIDE] += 1
    assert seen.min() >= 1
    x, level = random(1, 2, *size), torch.tensor(1.0, dtype=F64)

    def constant(x: Tensor, sigma: Tensor) -> Gaussian:
        return Gaussian(torch.full_like(x, 0.7), torch.zeros(()))

    def same(x: Tensor, sigma: Tensor) -> Gaussian:
        return Gaussian(x, torch.zeros(()))

    found = windowed(constant, SIDE, stride)(x, level).mean
    assert torch.allclose(found, torch.full_like(x, 0.7), atol=1e-13)
    assert torch.allclose(windowed(same, SIDE, stride)(x, level).mean, x, atol=1e-13)


def test_each_window_is_asked_about_by_its_row_place_and_level() -> None:
    """Whatever the number asked about at once; each row by its own level."""
    x, levels = random(3, 1, 24, 30), torch.tensor([0.1, 1.0, 5.0], dtype=F64)
    asked: list[Window] = []

    @dataclass(frozen=True, eq=False)
    class Checked(Known):
        windows: Sequence[Window] = ()

        def __call__(self, cut: Tensor, sigma: Tensor) -> Gaussian:
            for w, part, level in zip(self.windows, cut, sigma, strict=True):
                there = x[w.row, :, w.top : w.top + SIDE, w.left : w.left + SIDE]
                assert torch.equal(part, there)
                assert level == levels[w.row]
            return super().__call__(cut, sigma)

    field = Field.made()

    def ask(windows: Sequence[Window]) -> Checked:
        asked.extend(windows)
        return Checked(field, LOW, HIGH, 1.0, windows=windows)

    model = Windowed(known(field), ask, (SIDE, SIDE), (8, 8), batch=4)
    together = model(x, levels).mean
    assert len(set(asked)) == len(asked) == 3 * 2 * 3
    for row in range(3):
        alone = windowed(field, SIDE, 8)(x[row : row + 1], levels[row]).mean
        assert torch.allclose(together[row], alone[0], atol=1e-12)


def test_gradients_flow_through_windows() -> None:
    """Moment matching: what a known pixel tells its neighbours, in other windows too."""
    field = Field.made()
    model = windowed(field, SIDE, 8)
    seen = torch.zeros(1, 24, 40, dtype=torch.bool)
    seen[:, 12, 20] = True
    x, level = random(1, 1, 24, 40), torch.tensor(1.0, dtype=F64)
    measured = Measured(Mask(seen), 0.9 * torch.ones(1, 1, 24, 40, dtype=F64), 0.05)
    moved = Restored(model, measured, MomentMatching(20))(x, level).mean - model(x, level).mean
    # By hand: D is linear, so its Jacobian's row of the known pixel is D' of a single 1.
    leaf = x.clone().requires_grad_()
    (row,) = torch.autograd.grad(model(leaf, level).mean[0, 0, 12, 20], leaf)
    rest = 0.9 - model(x, level).mean[0, 0, 12, 20]
    wanted = row * rest / (row[0, 0, 12, 20] + 0.05**2)
    assert torch.allclose(moved, wanted, atol=1e-6)
    assert float(moved[0, 0, 12, 24].abs()) > 1e-3


def test_what_cannot_be_windowed_is_refused() -> None:
    field = Field.made()
    with pytest.raises(ValueError, match="stride goes from 1 to the window's"):
        windowed(field, SIDE, 17)
    with pytest.raises(ValueError, match="the image is 15 pixels where the model's windows have"):
        windowed(field, SIDE, 8)(random(1, 1, 15, 20), torch.tensor(1.0))


# Noise by place


def test_noise_is_a_function_of_the_place() -> None:
    shape = (2, 70, 90)
    at = PlacedNoise((3, 4), 5, origin=(10, 130))
    whole = at.normal(shape, Purpose.START, F64)
    # 65 rows and 7 columns further: what both see is the same.
    moved = replace(at, origin=(45, 137)).normal(shape, Purpose.START, F64)
    assert torch.equal(whole[:, :, 35:, 7:], moved[:, :, :35, :83])
    for other in (
        replace(at, seeds=(5, 6)).normal(shape, Purpose.START, F64),
        at.at(6).normal(shape, Purpose.START, F64),
        at.normal(shape, Purpose.TRANSITION, F64),
        replace(at, origin=(11, 130)).normal(shape, Purpose.START, F64),
        whole.flip(0),
    ):
        assert abs(float((whole * other).mean())) < 4 / whole.numel() ** 0.5


def test_noise_by_place_is_white_and_normal() -> None:
    x = PlacedNoise((0, 1), origin=(30, 30)).normal((1, 200, 200), Purpose.START, F64)
    count = x.numel()
    assert abs(float(x.mean())) < 4 / count**0.5
    assert abs(float(x.var()) - 1) < 4 * (2 / count) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 4 * (96 / count) ** 0.5
    for lag in (1, 64):  # 64: no cell repeats the one beside it
        for a, b in ((x[..., lag:], x[..., :-lag]), (x[..., lag:, :], x[..., :-lag, :])):
            assert abs(float((a * b).mean())) < 4 / a.numel() ** 0.5


# Seams


def squares(x: Tensor) -> Tensor:
    """Mean squared differences of neighbours, by column of the right one: [W - 1]."""
    return (x[..., 1:] - x[..., :-1]).square().mean((0, 1, 2))


def compared(per_column: Tensor, borders: Sequence[int]) -> tuple[float, float]:
    """Borders' mean over the others', and the deviation of single columns, relative."""
    at = torch.zeros(len(per_column), dtype=torch.bool)
    at[[b - 1 for b in borders]] = True
    rest = per_column[~at]
    ratio = float(per_column[at].mean() / rest.mean())
    return ratio, float(rest.std() / rest.mean()) / len(borders) ** 0.5


def test_no_seams_at_the_borders_of_windows() -> None:
    """Unknown all over but for a few pixels; borders of windows are as smooth as elsewhere."""
    height, width, count = 64, 96, 6
    field = Field.made()
    model = windowed(field, SIDE, 8)
    seen = torch.rand(height, width, generator=torch.Generator().manual_seed(0)) < 0.02
    truth = 0.3 * torch.sin(torch.arange(width, dtype=F64) / 9).expand(1, 1, height, width)
    bent = Restored(model, Measured(Mask(seen), truth * seen), MomentMatching(2))
    x = HIGH * random(count, 1, height, width, seed=1)
    for step in sample(bent, DDIM(1.0), karras(12, LOW, HIGH), x, noise_for(0, count)):
        x = step.x
    borders = range(8, width - 8 + 1, 8)
    ratio, error = compared(squares(x)[8:-8], [b - 8 for b in borders if 8 < b < width - 8])
    assert abs(ratio - 1) < 3 * error
    assert error < 0.05
    # Windows side by side, without overlap, have seams, and the same test sees them.
    bent = Restored(windowed(field, SIDE, SIDE), bent.measured, MomentMatching(2))
    x = HIGH * random(count, 1, height, width, seed=1)
    for step in sample(bent, DDIM(1.0), karras(12, LOW, HIGH), x, noise_for(0, count)):
        x = step.x
    ratio, error = compared(squares(x), range(SIDE, width, SIDE))
    assert ratio - 1 > 6 * error


def drawing_of(field: Field, form: PixelFormat, count: int) -> Drawing:
    """The drawing of a model that has a field's denoiser in its network's place."""
    model = SimpleNamespace(
        network=SimpleNamespace(spectrum=None),
        format=form,
        classes=(),
        condition=None,
        device=torch.device("cpu"),
        classes_for=lambda seeds, label: None,
        grid=lambda sampler: karras(10, LOW, HIGH),
        solver=lambda sampler: DDIM(1.0),
        bound=lambda seeds, label, **rest: known(field),
    )
    return Drawing(cast("Model", model), How(answers=count, rounds=2), SamplerConfig(batch=1))


def test_parts_agree_with_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene in parts of 32 pixels, and at once: nearly equal, and no seams between parts."""
    height, width, count = 96, 160, 2
    field, form = Field.made(), pixel_format((1, SIDE, SIDE), "uint16", None)
    rng = np.random.default_rng(0)
    scene = ndimage.gaussian_filter(rng.standard_normal((height, width)), 4)
    scene = (scene / np.abs(scene).max() * 20000 + 32768).astype(np.uint16)
    Image.fromarray(scene).save(tmp_path / "a.png")
    mask = rng.random((height, width)) > 0.03
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.png")

    drawing = drawing_of(field, form, count)
    found: dict[str, np.ndarray] = {}
    for name, part in (("whole", 256), ("parts", 32)):
        monkeypatch.setattr(scene_work, "_PART", part)
        with SceneReader(tmp_path / "a.png", form, mask=tmp_path / "m.png") as reader:
            done = scene_work.restore_scene(
                drawing, reader, lambda end, name=name: tmp_path / f"{name}{end}.npy", 0.0,
                lambda n: None, True,
            )  # fmt: skip
        assert done.answers is not None
        found[name] = done.answers / 32767.5 - 1
    cuts = scene_work.parts(drawing, height, width)
    assert len(cuts) == 15
    covered = np.zeros((height, width), int)
    for cut in cuts:
        covered[slice(*cut.rows), slice(*cut.columns)] += 1
    assert (covered == 1).all()
    whole, parts = torch.from_numpy(found["whole"]), torch.from_numpy(found["parts"])
    assert float((whole - parts).std()) < 0.03 * float(whole.std())
    ratio, error = compared(squares(parts), range(32, width, 32))
    assert abs(ratio - 1) < 3 * error
    # Other seeds are another answer: nearly equal is no matter of course.
    assert float((whole[0] - whole[1]).std()) > 0.4 * float(whole.std())


# Noise estimated


def smooth(seed: int = 0) -> Tensor:
    image = ndimage.gaussian_filter(
        np.random.default_rng(seed).standard_normal((3, 96, 96)), (0, 6, 6)
    )
    return torch.from_numpy(image / np.abs(image).max())


@pytest.mark.parametrize("std", [0.01, 0.05, 0.3])
def test_noise_of_smooth_images_is_found(std: float) -> None:
    found = noise_std(smooth() + std * random(3, 96, 96))
    assert abs(found / std - 1) < 0.05


def test_smooth_images_and_edges_are_not_noise() -> None:
    assert noise_std(smooth()) < 2e-3
    edges = torch.ones(1, 96, 96, dtype=F64)
    edges[:, 20:70, 33:60] = -1  # straight
    edges[
        :,
        torch.cdist(
            torch.cartesian_prod(*[torch.arange(96.0)] * 2), torch.tensor([[60.0, 70.0]])
        ).reshape(96, 96)
        < 20,
    ] = 0  # and round
    assert noise_std(edges) == 0
    assert abs(noise_std(edges + 0.05 * random(1, 96, 96)) / 0.05 - 1) < 0.07


def test_what_is_unknown_tells_nothing_of_noise() -> None:
    noisy = smooth() + 0.05 * random(3, 96, 96)
    seen = torch.rand(1, 96, 96, generator=torch.Generator().manual_seed(0)) > 0.05
    seen[:, 10:90, 20:96] = False  # most of it
    holes = torch.where(seen, noisy, -1.0)
    assert abs(noise_std(holes, seen) / 0.05 - 1) < 0.08
    assert abs(noise_std(holes) / 0.05 - 1) > 0.5
    with pytest.raises(ValueError, match="there are none: tell it as a number"):
        noise_std(noisy, torch.zeros(1, 96, 96, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 3 x 3 pixels"):
        noise_std(torch.zeros(1, 2, 9))
