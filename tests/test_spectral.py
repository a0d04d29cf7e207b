"""The spectral skip: exact for Gaussian data of its kind, in denoisers, sampling and runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor, nn

from likelihood_helpers import Known
from oracles import GaussianOracle
from recipe_helpers import QUIET, array_file, assert_same_run, open_run, pixels, small
from sfumato.noise import NoiseLevels, karras, linear_betas
from sfumato.parameterization import (
    Adapted,
    Spectral,
    edm_preconditioned,
    predicts_mean,
    predicts_noise,
    predicts_v,
    predicts_x0,
)
from sfumato.randomness import Noise, Purpose
from sfumato.recipes.loading import load
from sfumato.recipes.restoring import How, usual_sampler
from sfumato.recipes.restoring.drawing import deviation
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.recipes.samplers import solver_of
from sfumato.restoration import CovarianceMatching, Mask, Measured, Restored
from sfumato.sampling import sample
from sfumato.solvers import DDIM, Heun

F64 = torch.float64
SHAPE = (3, 6, 4)
LADDER = NoiseLevels.from_betas(linear_betas(1000))


def gaussian(seed: int = 0) -> GaussianOracle:
    """Gaussian images whose cosine coefficients, of mixed channels, are independent.

    Their basis comes from SciPy's transform and a rotation, not from the code under test.
    """
    rng = np.random.default_rng(seed)
    channels, height, width = SHAPE
    mix, _ = np.linalg.qr(rng.standard_normal((channels, channels)))
    rows, columns = (scipy.fft.dct(np.eye(n), axis=0, norm="ortho") for n in (height, width))
    basis = np.kron(mix.T, np.kron(rows, columns)).T  # columns are eigenvectors
    var = np.exp(rng.uniform(-4, 1, basis.shape[0])) * np.repeat([0.3, 1, 4], height * width)
    mean = rng.standard_normal(basis.shape[0])
    return GaussianOracle(
        torch.from_numpy(mean), torch.from_numpy(var), torch.from_numpy(basis), SHAPE
    )


def knowing(oracle: GaussianOracle) -> Spectral:
    """A spectrum told the truth about the oracle's data: its moments, of exact draws."""
    size = oracle.mean.numel()
    spread = oracle.basis * oracle.eigenvalues.sqrt() * size**0.5
    draws = torch.cat([oracle.mean + spread.T, oracle.mean - spread.T])  # covariance is exact
    spectral = Spectral(*SHAPE).double()
    spectral.measure([draws.reshape(-1, *SHAPE)])
    return spectral


class Silent(nn.Module):
    """A network that has nothing to add."""

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        del noise_label
        return torch.zeros_like(x)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 100.0])
@pytest.mark.parametrize("c_skip", [0.0, 0.37, 1.0])
def test_it_is_the_posterior_mean_of_gaussian_images(sigma: float, c_skip: float) -> None:
    oracle, level = gaussian(), torch.tensor(sigma, dtype=F64)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((5, *SHAPE))) * (1 + sigma)
    keep = torch.tensor(c_skip, dtype=F64)
    found = knowing(oracle)(x, level, keep) + keep * x
    np.testing.assert_allclose(found, oracle(x, level).mean, rtol=1e-9, atol=1e-9)


def test_levels_may_differ_in_a_batch() -> None:
    oracle, levels = gaussian(), torch.tensor([0.1, 2.0, 40.0], dtype=F64)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((3, *SHAPE)))
    found = knowing(oracle)(x, levels, torch.zeros(3, dtype=F64))
    np.testing.assert_allclose(found, oracle(x, levels).mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "adapted",
    [
        edm_preconditioned(Silent(), 0.5),
        predicts_noise(Silent(), LADDER, interpolate=True),
        predicts_v(Silent(), LADDER, interpolate=True),
        predicts_x0(Silent(), LADDER, interpolate=True),
        predicts_mean(Silent(), LADDER),
    ],
    ids=["edm", "noise", "v", "x0", "mean"],
)
def test_any_network_with_nothing_to_add_is_the_linear_denoiser(adapted: Adapted) -> None:
    oracle = gaussian()
    sigma = LADDER.sigma[[20, 300, 700]]
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((3, *SHAPE)))
    found = replace(adapted, skip=knowing(oracle))(x, sigma).mean
    np.testing.assert_allclose(found, oracle(x, sigma).mean, rtol=1e-9, atol=1e-9)


def test_sampling_follows_the_exact_flow_of_gaussian_images() -> None:
    oracle = gaussian()
    denoise = replace(edm_preconditioned(Silent(), 0.5), skip=knowing(oracle))
    noise = torch.from_numpy(np.random.default_rng(3).standard_normal((4, *SHAPE)))
    errors: list[float] = []
    for steps in (40, 80):
        grid = karras(steps, 0.002, 80.0)
        x = 80 * noise
        truth = oracle.flow(x, 80.0, 0.0)
        for step in sample(denoise, Heun(), grid, x, Noise((0, 1, 2, 3))):
            x = step.x
        errors.append(float((x - truth).norm() / truth.norm()))
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 2.5  # second order, but for the last step to 0


def test_variances_are_those_of_the_data() -> None:
    oracle = gaussian()
    n = 4000
    draws = torch.from_numpy(np.random.default_rng(4).standard_normal((n, oracle.mean.numel())))
    x = oracle.mean + (draws * oracle.eigenvalues.sqrt()) @ oracle.basis.T
    spectral = Spectral(*SHAPE)
    spectral.measure(x.reshape(n, *SHAPE).split(700))
    # The axes of the channels are found only up to a little: compare totals over them.
    truth = oracle.eigenvalues.reshape(SHAPE).sum(0)
    np.testing.assert_allclose(spectral.var.sum(0), truth, rtol=6 * (2 / n) ** 0.5)
    mixed = torch.einsum("ck,khw->chw", spectral.mix, spectral.mean)
    back = scipy.fft.idctn(mixed.numpy(), axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(back, oracle.mean.reshape(SHAPE), atol=0.2)


def test_mirrored_images_count_as_images() -> None:
    x = torch.from_numpy(np.random.default_rng(5).standard_normal((20, *SHAPE))).cumsum(3)
    both, flipped = Spectral(*SHAPE), Spectral(*SHAPE)
    both.measure([x, x.flip(3)])
    flipped.measure([x], flip=True)
    np.testing.assert_allclose(flipped.var, both.var, rtol=1e-5)
    np.testing.assert_allclose(flipped.mean.abs(), both.mean.abs(), atol=1e-5)


@pytest.mark.parametrize("images", [[], [torch.ones(3, *SHAPE)]], ids=["none", "all equal"])
def test_what_cannot_be_measured_is_refused(images: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="spectrum cannot be measured"):
        Spectral(*SHAPE).measure(images)


def test_a_constant_border_does_not_blow_up() -> None:
    x = torch.zeros(50, 1, 8, 8)
    x[:, :, 3:5, 3:5] = torch.randn(50, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    spectral = Spectral(1, 8, 8)
    spectral.measure([x])
    low = torch.tensor(0.002, dtype=F64)
    found = spectral(x, low, torch.ones((), dtype=F64))
    assert float(found.abs().max()) < 0.05  # nearly clean images stay nearly as they are


def test_a_run_measures_saves_and_resumes_it(tmp_path: Path) -> None:
    data = array_file(tmp_path, (3, 8, 8))
    chosen = small(steps=8, skip="spectral")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert len(list(open_run(whole, data, chosen).steps())) == 8
    steps = open_run(parts, data, chosen).steps()
    for _ in range(4):
        next(steps)
    steps.close()
    list(open_run(parts, data, chosen, resume=True).steps())
    assert_same_run(parts, whole)

    spectral = Spectral(3, 8, 8)
    raw = torch.from_numpy(np.load(data)).permute(0, 3, 1, 2)
    spectral.measure([raw.float() / 127.5 - 1], flip=chosen.flip)
    model = load(whole)
    saved = model.denoiser.skip
    assert isinstance(saved, Spectral)
    for name, value in spectral.state_dict().items():
        np.testing.assert_allclose(saved.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    plain = replace(model, recipe=replace(model.recipe, skip="scalar"))
    assert not np.array_equal(model.sample(2), plain.sample(2))


def test_one_image_can_be_learned(tmp_path: Path) -> None:
    """The first thing to try with new code; there are no variances to measure."""
    data = tmp_path / "one.npy"
    np.save(data, array := pixels((1, 8, 8), count=1))
    list(open_run(tmp_path / "run", data, small(skip="spectral", flip=False)).steps())
    model = load(tmp_path / "run")
    x0 = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1
    x = x0 + 5 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    linear = replace(model.denoiser, network=Silent())(x, torch.tensor(5.0, dtype=F64)).mean
    assert float((linear - x0).abs().max()) < 0.01


@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_its_covariance_is_the_posteriors(sigma: float) -> None:
    oracle, level = gaussian(), torch.tensor(sigma, dtype=F64)
    size = oracle.mean.numel()
    found = knowing(oracle).covariance(torch.eye(size, dtype=F64).reshape(-1, *SHAPE), level)
    truth = oracle.posterior_covariance(sigma)
    np.testing.assert_allclose(found.reshape(size, size), truth, rtol=1e-8, atol=1e-8)


def masked(oracle: GaussianOracle, std: float) -> tuple[Measured, Tensor, Tensor]:
    """Six of ten pixels of one image, and the exact posterior's mean and covariance."""
    rng = np.random.default_rng(11)
    known = torch.from_numpy(rng.random((1, *SHAPE[1:])) < 0.6)
    z = torch.from_numpy(rng.standard_normal(oracle.mean.numel()))
    x0 = oracle.mean + (z * oracle.eigenvalues.sqrt()) @ oracle.basis.T
    y = x0.reshape(1, *SHAPE) + std * torch.from_numpy(rng.standard_normal((1, *SHAPE)))
    seen = known.expand(SHAPE).flatten()
    c = oracle.covariance
    inner = c[seen][:, seen] + std**2 * torch.eye(int(seen.sum()), dtype=F64)
    gain = torch.linalg.solve(inner, c[seen]).T
    mean = oracle.mean + gain @ (y.flatten()[seen] - oracle.mean[seen])
    return Measured(Mask(known), y * known, std), mean, c - gain @ c[seen]


def test_with_it_gaussian_images_are_restored_exactly() -> None:
    """The bent denoiser is the posterior's own, point by point, with no way back through D."""
    oracle, spectral = gaussian(), knowing(gaussian())
    measured, mean, covariance = masked(oracle, 0.2)
    bent = Restored(
        Known(oracle, 2e-3, 80.0, 80.0**2),
        measured,
        CovarianceMatching(spectral.covariance, 500, 1e-9),
    )
    posterior = GaussianOracle.full(mean, covariance)
    x = torch.from_numpy(np.random.default_rng(12).standard_normal((3, *SHAPE)))
    for sigma in (0.1, 1.0, 20.0):
        level = torch.tensor(sigma, dtype=F64)
        truth = posterior(((1 + sigma) * x).flatten(1), level).mean
        found = bent((1 + sigma) * x, level).mean.flatten(1)
        assert float((found - truth).norm() / (truth - mean).norm()) < 1e-6


def test_antithetic_answers_lie_on_two_sides_of_the_posteriors_mean() -> None:
    oracle, spectral = gaussian(), knowing(gaussian())
    measured, mean, covariance = masked(oracle, 0.2)
    bent = Restored(
        Known(oracle, 2e-3, 80.0, 80.0**2), measured, CovarianceMatching(spectral.covariance, 200)
    )
    wide = float(covariance.trace().sqrt())
    far: dict[bool, float] = {}
    for antithetic in (False, True):
        noise = Noise((4, 5), antithetic=antithetic)
        x = 80 * noise.normal(SHAPE, Purpose.START, F64)
        for step in sample(bent, DDIM(1.0), karras(40, 0.002, 80.0), x, noise):
            x = step.x
        far[antithetic] = float((x.flatten(1).mean(0) - mean).norm()) / wide
        apart = float((x[0] - x[1]).norm()) / wide
        assert 1 < apart < 2 * 1.6  # sqrt(2) deviations, or twice one
    assert far[True] < 0.05
    assert far[False] > 0.4
    # And the deviation that pairs tell is that of all answers.
    noise = Noise(tuple(range(400)), antithetic=True)
    x = 80 * noise.normal(SHAPE, Purpose.START, F64)
    for step in sample(bent, DDIM(1.0), karras(40, 0.002, 80.0), x, noise):
        x = step.x
    pairs = torch.stack([deviation(pair, 0) for pair in x.split(2)]).square().mean(0)
    assert float(pairs.sum() / x.var(0).sum()) == pytest.approx(1.0, abs=0.03)


def test_at_another_size_images_keep_their_detail() -> None:
    """Of a stationary field the variance of a pixel, and of its differences, stays the same."""
    rng = np.random.default_rng(13)
    field = rng.standard_normal((600, 1, 40, 40))
    for axis in (2, 3):
        field = 0.5 * (field + np.roll(field, 1, axis))
    small, large = (torch.from_numpy(field[:, :, :n, :m].copy()) for n, m in ((16, 20), (40, 32)))
    known, truth = Spectral(1, 16, 20), Spectral(1, 40, 32)
    known.measure([small])
    truth.measure([large])
    found = known.resized(40, 32)
    assert float(found.var.mean()) == pytest.approx(float(truth.var.mean()), rel=0.05)
    rough = [float(one.var[:, 20:, 16:].mean()) for one in (found, truth)]
    assert rough[0] == pytest.approx(rough[1], rel=0.15)
    assert rough[0] < 0.2 * float(found.var.mean())
    assert known.resized(16, 20) is known


def joint(seed: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of (x0, y) of 1 and 2 channels, flat, and draws with exactly those."""
    rng = np.random.default_rng(seed)
    height, width = SHAPE[1:]
    rows, columns = (scipy.fft.dct(np.eye(n), axis=0, norm="ortho") for n in (height, width))
    basis = np.kron(np.eye(3), np.kron(rows, columns)).T
    size = height * width
    covariance = np.zeros((3 * size, 3 * size))
    for k in range(size):  # channels hang together at each frequency, in its own way
        root = rng.standard_normal((3, 4))
        covariance[k::size, k::size] = root @ root.T * np.exp(rng.uniform(-3, 1))
    covariance = basis @ covariance @ basis.T
    mean = torch.from_numpy(rng.standard_normal(3 * size))
    root = torch.linalg.cholesky(torch.from_numpy(covariance)) * (3 * size) ** 0.5
    draws = torch.cat([mean + root.T, mean - root.T]).reshape(-1, 3, height, width)
    return mean, torch.from_numpy(covariance), draws


@pytest.mark.parametrize("sigma", [0.02, 1.0, 80.0])
def test_of_pairs_it_is_the_posterior_mean_given_both(sigma: float) -> None:
    mean, covariance, draws = joint()
    size = mean.numel() // 3
    spectral = Spectral(1, *SHAPE[1:], given=2).double()
    spectral.measure([draws])
    rng = np.random.default_rng(8)
    x = torch.from_numpy(rng.standard_normal((4, 1, *SHAPE[1:]))) * (1 + sigma)
    y = torch.from_numpy(rng.standard_normal((4, 2, *SHAPE[1:])))
    noise = torch.zeros(3 * size, dtype=F64)
    noise[:size] = sigma**2
    # What is measured is x0 with noise and y without: the whole vector with that noise. The little
    # that the regression holds back (a share of 1e-4 of y's variance) belongs to y.
    ridge = 1e-4 * covariance.diagonal()[size:].mean()
    noise[size:] = ridge
    gain = torch.linalg.solve(covariance + noise.diag(), covariance)[:, :size]
    measured = torch.cat([x.flatten(1), y.flatten(1)], 1)
    truth = mean[:size] + (measured - mean) @ gain
    level = torch.tensor(sigma, dtype=F64)
    keep = torch.tensor(0.3, dtype=F64)
    found = spectral(x, level, keep, y) + keep * x
    np.testing.assert_allclose(found.flatten(1), truth, rtol=1e-4, atol=1e-4)


def test_a_network_of_pairs_sees_the_estimate() -> None:
    class Seeing(nn.Module):
        def forward(self, x: Tensor, noise_label: Tensor, image: Tensor) -> Tensor:
            del noise_label, image
            self.x = x
            return torch.zeros_like(x)

    _, _, draws = joint()
    spectral = Spectral(1, *SHAPE[1:], given=2).double()
    spectral.measure([draws])
    network = Seeing()
    denoise = replace(edm_preconditioned(network, 0.5), skip=spectral).given(image=draws[:3, 1:])
    estimate = denoise(draws[:3, :1], torch.tensor(30.0, dtype=F64)).mean
    np.testing.assert_allclose(network.x, estimate / 0.5, rtol=1e-12)


def test_a_run_of_pairs_knows_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    target = rng.integers(0, 256, (24, 8, 8, 1)).astype(np.uint8)
    np.save(tmp_path / "target.npy", target)
    np.save(tmp_path / "input.npy", np.concatenate([255 - target, target // 2], 3))
    config = RunConfig(
        small(steps=2, skip="spectral"),
        DataConfig(data=str(tmp_path), layout="NHWC", condition="image"),
        QUIET,
    )
    list(Run.open(config, tmp_path / "run").steps())
    model = load(tmp_path / "run")
    spectral = model.network.spectrum
    assert isinstance(spectral, Spectral)
    # The input tells the target, but for the ridge and what 8 bits lose.
    y = torch.from_numpy(np.load(tmp_path / "input.npy")).permute(0, 3, 1, 2) / 127.5 - 1
    x0 = torch.from_numpy(target).permute(0, 3, 1, 2) / 127.5 - 1
    noise = 80 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    found = spectral(x0 + noise, torch.tensor(80.0), torch.zeros(()), y)
    assert float((found - x0).square().mean()) < 1e-3 * float(x0.var())


def test_the_usual_sampler_of_restoration_tells_how_uncertain_it_is() -> None:
    """In 18 steps answers spread as the posterior does, which DDIM's with fresh noise do not."""
    oracle, spectral = gaussian(), knowing(gaussian())
    measured, mean, covariance = masked(oracle, 0.2)
    usual = usual_sampler(SamplerConfig(), "spectral")
    assert usual.steps == 18
    shares: list[float] = []
    for solver, rho in ((solver_of(usual), usual.rho), (DDIM(1.0), 7.0)):
        noise = Noise(tuple(range(1000)), antithetic=True)
        how = How(method="spectral")
        known = Known(oracle, 2e-3, 80.0, 80.0**2)
        bent, solver = how.bend(known, solver, measured, noise, spectral.covariance)
        x = 80 * noise.normal(SHAPE, Purpose.START, F64)
        for step in sample(bent, solver, karras(18, 0.002, 80.0, rho=rho), x, noise):
            x = step.x
        shares.append(float(x.flatten(1).var(0).sum() / covariance.trace()))
        assert float((x.flatten(1).mean(0) - mean).norm() / covariance.trace().sqrt()) < 0.05
    assert shares[0] == pytest.approx(1.0, abs=0.2)
    assert shares[1] < 0.7
