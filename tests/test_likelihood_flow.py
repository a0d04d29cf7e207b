"""Exact densities by the flow: Gaussian and mixture to 1e-4 nats, unbiased with random vectors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_helpers import COVARIANCE, DATA, F64, MIXTURE
from likelihood_helpers import Known
from oracles import GaussianOracle
from sfumato.denoiser import Clipped
from sfumato.gaussian import Gaussian
from sfumato.likelihood import Exact, Hutchinson, dequantise, flow_log_prob
from sfumato.likelihood.flow import discrete_nats
from sfumato.noise import geometric
from sfumato.protocols import Solver
from sfumato.randomness import noise_for
from sfumato.solvers import Adaptive, Ancestral, Heun, Multistep, RungeKutta
from sfumato.solvers.tableau import CLASSIC4

LOW, HIGH = 0.01, 80.0
GRID = geometric(200, LOW, HIGH)
SOLVERS: list[Solver[Any]] = [Adaptive(1e-7, 1e-7), RungeKutta(CLASSIC4), Multistep(4)]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_gaussian_density(solver: Solver[Any]) -> None:
    variances = torch.tensor([0.01, 0.3, 2.0], dtype=F64)
    oracle = GaussianOracle.diagonal(variances.tolist())
    x = torch.tensor([[0.05, -0.4, 1.0], [0.3, 0.1, -3.0]], dtype=F64)
    prior = Gaussian(torch.zeros(3, dtype=F64), variances + HIGH**2)
    found = flow_log_prob(
        Known(oracle, LOW, HIGH, HIGH**2), x, solver, GRID, trace=Exact(), prior=prior
    )
    truth = Gaussian(torch.zeros(3, dtype=F64), variances + LOW**2).log_prob(x).sum(1)
    tolerance = 1e-4 if not isinstance(solver, Multistep) else 2e-2  # its start is of order 1
    torch.testing.assert_close(found.log_prob, truth, rtol=0, atol=tolerance)
    assert (found.error == 0).all()
    torch.testing.assert_close(found.latent, oracle.flow(x, LOW, HIGH), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("solver", SOLVERS[:2], ids=str)
def test_mixture_density(solver: Solver[Any]) -> None:
    x = torch.linspace(-2.2, 2.6, 9, dtype=F64)[:, None]
    known = Known(MIXTURE, LOW, HIGH, HIGH**2)
    found = flow_log_prob(known, x, solver, GRID, trace=Exact())
    # Put the exact marginal in the place of the prior.
    assumed = Gaussian(torch.zeros((), dtype=F64), torch.tensor(HIGH**2, dtype=F64))
    exact = MIXTURE.pdf(found.latent, HIGH).log() - assumed.log_prob(found.latent)
    truth = MIXTURE.pdf(x, LOW).log()[:, 0]
    torch.testing.assert_close(found.log_prob + exact[:, 0], truth, rtol=0, atol=1e-4)


def test_the_density_integrates_to_one() -> None:
    x = torch.linspace(-3.5, 4.0, 3001, dtype=F64)[:, None]
    known = Known(MIXTURE, 0.1, HIGH, HIGH**2 + MIXTURE.var())
    found = flow_log_prob(known, x, Heun(), geometric(200, 0.1, HIGH), trace=Exact())
    assert float(found.log_prob.exp().sum() * (x[1] - x[0])) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("gaussian", [False, True])
def test_random_vectors_are_unbiased(gaussian: bool) -> None:
    known = Known(DATA, LOW, HIGH, HIGH**2)
    x = torch.tensor([[0.5, -0.2, 0.3]], dtype=F64)
    grid = geometric(30, LOW, HIGH)
    exact = flow_log_prob(known, x, Heun(), grid, trace=Exact())
    count = 400
    trace = Hutchinson(count, gaussian)
    found = flow_log_prob(known, x, Heun(), grid, trace=trace, noise=noise_for(0, 1))
    assert float(found.error) > 0
    assert abs(float(found.log_prob - exact.log_prob)) < 4 * float(found.error)
    # The error of Rademacher's trace comes from what lies off the diagonal alone.
    off = COVARIANCE - torch.diag(COVARIANCE.diag())
    assert off.abs().max() > 0


def test_rademacher_is_exact_on_a_diagonal_and_normal_vectors_are_not() -> None:
    known = Known(GaussianOracle.diagonal([0.1, 1.0]), LOW, HIGH, HIGH**2)
    x = torch.tensor([[0.1, 0.2]], dtype=F64)
    grid = geometric(20, LOW, HIGH)
    exact = flow_log_prob(known, x, Heun(), grid, trace=Exact()).log_prob
    one = flow_log_prob(known, x, Heun(), grid, trace=Hutchinson(), noise=noise_for(0, 1))
    torch.testing.assert_close(one.log_prob, exact)
    assert one.error.isnan().all()
    normal = Hutchinson(1, gaussian=True)
    other = flow_log_prob(known, x, Heun(), grid, trace=normal, noise=noise_for(0, 1))
    assert abs(float(other.log_prob - exact)) > 0.01


def test_images_keep_their_shape_and_their_own_vectors() -> None:
    oracle = GaussianOracle.diagonal([0.2] * 8, shape=(2, 2, 2))
    known = Known(oracle, LOW, HIGH, HIGH**2)
    x = torch.randn(3, 2, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    trace, grid = Hutchinson(2, gaussian=True), geometric(10, LOW, HIGH)
    whole = flow_log_prob(known, x, Heun(), grid, trace=trace, noise=noise_for(0, 3))
    alone = flow_log_prob(known, x[1:2], Heun(), grid, trace=trace, noise=noise_for(1, 1))
    assert whole.latent.shape == x.shape
    torch.testing.assert_close(alone.log_prob, whole.log_prob[1:2])


def test_dequantised_pixels_lie_in_their_bins_evenly() -> None:
    x0 = torch.full((4, 5000), 1 / 255, dtype=F64)
    x = dequantise(x0, noise_for(0, 4), 1 / 255)
    offset = (x - x0) * 255
    assert offset.abs().max() < 1
    assert float(offset.mean()) == pytest.approx(0, abs=4 * (1 / 3 / 20000) ** 0.5)
    assert float(offset.var()) == pytest.approx(1 / 3, rel=0.03)


def test_bits_of_a_flat_density_are_the_bit_depth() -> None:
    """The density 1/2 on [-1, 1] gives 256 values log2(255) bits: their bins are 2/255 wide."""
    log_prob = torch.tensor([3 * math.log(0.5)], dtype=F64)
    nats = discrete_nats(log_prob, 3, 1 / 255)
    assert float(nats) / (3 * math.log(2)) == pytest.approx(math.log2(255))


def test_what_is_refused() -> None:
    known, x = Known(DATA, LOW, HIGH, HIGH**2), torch.zeros(1, 3, dtype=F64)
    with pytest.raises(ValueError, match="clipped denoiser"):
        flow_log_prob(Clipped(known), x, Heun(), GRID, trace=Exact())
    with pytest.raises(ValueError, match="draws noise on the way"):
        flow_log_prob(known, x, Ancestral(), GRID, trace=Exact())
    with pytest.raises(ValueError, match="pass noise=noise_for"):
        flow_log_prob(known, x, Heun(), GRID)
    with pytest.raises(ValueError, match="outside the trained range"):
        flow_log_prob(known, x, Heun(), [100.0, 1.0], trace=Exact())
    with pytest.raises(ValueError, match="at least one random vector"):
        Hutchinson(0)


def test_the_network_may_be_a_float32_one() -> None:
    """The state is float64 whatever the denoiser computes in."""

    def single(x: Tensor, sigma: Tensor) -> Gaussian:
        answer = MIXTURE(x.float(), sigma)
        return Gaussian(answer.mean.to(x.dtype), answer.var.to(x.dtype))

    x = torch.tensor([[0.3]], dtype=F64)
    known, exact = Known(single, LOW, HIGH, HIGH**2), Known(MIXTURE, LOW, HIGH, HIGH**2)
    ours = flow_log_prob(known, x, Heun(), GRID, trace=Exact())
    truth = flow_log_prob(exact, x, Heun(), GRID, trace=Exact())
    torch.testing.assert_close(ours.log_prob, truth.log_prob, rtol=0, atol=1e-4)
