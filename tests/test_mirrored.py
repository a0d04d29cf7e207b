"""The average over mirror images: against exact posteriors, by symmetry; where it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles import GaussianOracle
from recipe_helpers import QUIET, array_file, open_run, pixels, small
from sfumato.cli import main
from sfumato.denoiser import Mirrored
from sfumato.errors import ConfigError
from sfumato.gaussian import Gaussian
from sfumato.noise import F64, NoiseRange
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig

WIDTH = 4
MEAN = torch.tensor([0.5, -0.2, -0.2, 0.5], dtype=F64)
COVARIANCE = torch.tensor(
    [[1.0, 0.3, 0.2, 0.1], [0.3, 0.5, 0.4, 0.2], [0.2, 0.4, 0.5, 0.3], [0.1, 0.2, 0.3, 1.0]],
    dtype=F64,
)
"""Mean and covariance of rows of pixels that mirror images of each other are equally likely."""
EXACT = GaussianOracle.full(MEAN, COVARIANCE)


class Wrong:
    """The exact denoiser, but for an error that is added to its mean at `level` alone."""

    def __init__(self, error: Tensor, level: float = 0.0) -> None:
        self.error, self.level = error, level
        self.range = NoiseRange(0.002, 80.0)
        self.prior = self.decoder_var = None

    def on(self, sigmas: Tensor) -> Wrong:
        return Wrong(self.error, float(sigmas[0]))

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        found = EXACT(x, sigma)
        return Gaussian(found.mean + self.error * (sigma == self.level), found.var)


def test_an_error_that_changes_sides_goes_away_and_another_stays() -> None:
    x = torch.randn(5, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor(0.7, dtype=F64)
    exact = EXACT(x, sigma)
    sided = torch.tensor([0.3, 0.1, -0.1, -0.3], dtype=F64)
    even = torch.tensor([0.2, -0.4, -0.4, 0.2], dtype=F64)
    wrong, unbound = Wrong(sided + even, 0.7), Wrong(sided + even)
    assert (wrong(x, sigma).mean - exact.mean - even).abs().max() > 0.09
    for denoise in (Mirrored(wrong, wrong), Mirrored(unbound, unbound).on(sigma[None])):
        found = denoise(x, sigma)
        torch.testing.assert_close(found.mean, exact.mean + even, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.var, exact.var, rtol=1e-12, atol=1e-12)


def test_each_side_keeps_its_own_variance() -> None:
    """A variance of x0 that differs by side is averaged with the other side's, mirrored."""
    sides = torch.tensor([[1.0, 2.0, 3.0, 4.0]])

    class Sided(Wrong):
        def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
            return Gaussian(x, sides)

    denoise = Sided(torch.zeros(WIDTH))
    found = Mirrored(denoise, denoise)(torch.zeros(1, WIDTH), torch.tensor(1.0))
    assert found.var.tolist() == [[2.5] * WIDTH]


def paired(folder: Path) -> Model:
    """A model of pairs that was hardly trained, with weights at random."""
    raw = pixels((2, 8, 8), count=12)
    (folder / "data").mkdir()
    np.save(folder / "data/input.npy", raw)
    np.save(folder / "data/target.npy", raw[..., :1])
    config = RunConfig(small(flip=True), DataConfig(str(folder / "data"), condition="image"), QUIET)
    list(Run.open(config, folder / "run").steps())
    model = load(folder / "run")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model


def test_a_model_of_pairs_treats_both_sides_alike_to_the_bit(tmp_path: Path) -> None:
    model = paired(tmp_path)
    generator = torch.Generator().manual_seed(1)
    x, given = torch.randn(3, 1, 8, 8, generator=generator), torch.rand(3, 2, 8, 8)
    both = replace(model.recipe.sampler, mirror=True)
    sigma = torch.tensor(2.0, dtype=F64)

    def asked(x: Tensor, given: Tensor, mirror: bool) -> Tensor:
        sampler = replace(both, mirror=mirror)
        return model.bound(range(3), sampler=sampler, images=given)(x, sigma).mean

    with torch.no_grad():
        here, there = asked(x, given, True), asked(x.flip(-1), given.flip(-1), True)
        assert torch.equal(here, there.flip(-1))
        alone, other = asked(x, given, False), asked(x.flip(-1), given.flip(-1), False)
        assert (alone - other.flip(-1)).abs().max() > 1e-2
        torch.testing.assert_close(here, (alone + other.flip(-1)) / 2)


def test_a_model_that_knows_left_from_right_is_not_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = array_file(tmp_path)
    for flip in (True, False):
        list(open_run(tmp_path / f"{flip}", data, small(flip=flip)).steps())
    free, sided = load(tmp_path / "True"), load(tmp_path / "False")
    mirror = replace(free.recipe.sampler, mirror=True)
    assert (free.sample(2, sampler=mirror) != free.sample(2)).any()
    with pytest.raises(ConfigError, match="trained without --flip"):
        sided.sample(2, sampler=mirror)
    assert main(["sample", str(tmp_path / "False"), "-n", "1", "--mirror"]) == 2
    assert "trained without --flip" in capsys.readouterr().err
    assert main(["sample", str(tmp_path / "True"), "-n", "1", "--mirror"]) == 0
