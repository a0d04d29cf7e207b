"""Restoration against exact posteriors, operators against their adjoints and definitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from likelihood_helpers import Known
from oracles import GaussianOracle, Mixture
from sfumato import noise_for, sample
from sfumato.denoiser import Counted
from sfumato.errors import ConfigError
from sfumato.noise import F64, karras
from sfumato.protocols import Solver
from sfumato.recipes.restoring.tasks import inside
from sfumato.restoration import (
    DAPS,
    DDRM,
    DPS,
    GREY,
    Average,
    Blur,
    Composed,
    DiffPIR,
    Identity,
    Mask,
    Measured,
    Method,
    Mix,
    MomentMatching,
    Operator,
    PiGDM,
    Repaint,
    Replacement,
    Restored,
    check_adjoint,
)
from sfumato.restoration.operators import conjugate_gradients, is_spectral, solve
from sfumato.solvers import DDIM, Heun

LOW, HIGH = 2e-3, 60.0
SIZE = 5


@dataclass(frozen=True, eq=False)
class Matrix:
    """y = M x, [B, D] -> [B, K]: an operator of a user, who tells no spectrum."""

    matrix: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y)


def prior() -> GaussianOracle:
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(SIZE, SIZE, generator=generator, dtype=F64)
    mean = 0.3 * torch.randn(SIZE, generator=generator, dtype=F64)
    return GaussianOracle.full(mean, 0.2 * root @ root.T / SIZE + 0.02 * torch.eye(SIZE, dtype=F64))


def known(oracle: object) -> Known:
    return Known(oracle, LOW, HIGH, HIGH**2 + 1)  # type: ignore[arg-type]


ROWS = torch.tensor([[0.5, 0.4, 0.3, -0.2, 0.1], [1.0, -0.5, 0.0, 0.3, 0.7]], dtype=F64)
OPERATORS: dict[str, Operator] = {
    "mask": Mask(torch.tensor([True, False, True, True, False])),
    "matrix": Matrix(ROWS),
}
STD = 0.15


def exact(oracle: GaussianOracle, operator: Operator, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x0 | y."""
    matrix = operator(torch.eye(SIZE, dtype=F64)).T
    seen = matrix.abs().sum(1) > 0  # rows that a mask hides
    matrix, y = matrix[seen], y[..., seen]
    covariance = oracle.covariance
    gain = (
        covariance
        @ matrix.T
        @ torch.linalg.inv(
            matrix @ covariance @ matrix.T + STD**2 * torch.eye(len(matrix), dtype=F64)
        )
    )
    mean = oracle.mean + (y - oracle.mean @ matrix.T) @ gain.T
    return mean, covariance - gain @ matrix @ covariance


def measurement(operator: Operator) -> Measured:
    x0 = prior().mean + torch.linalg.cholesky(prior().covariance) @ torch.tensor(
        [1.0, -1.2, 0.8, 0.3, -0.7], dtype=F64
    )
    z = torch.tensor([0.4, -1.0, 0.2, 1.1, -0.3], dtype=F64)
    y = operator(x0[None])
    return Measured(operator, y + STD * operator(z[None]).sign() * 0.7, STD)


def drawn(denoise: object, solver: Solver, steps: int, count: int, seed: int = 0) -> Tensor:  # type: ignore[type-arg]
    noise = noise_for(seed, count)
    grid = karras(steps, LOW, HIGH)
    x = HIGH * torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed), dtype=F64)
    for step in sample(denoise, solver, grid, x, noise):  # type: ignore[arg-type]
        x = step.x
    return x


def errors(x: Tensor, mean: Tensor, covariance: Tensor) -> tuple[float, float]:
    """Of the mean, in posterior deviations; of the covariance, relative."""
    off = (x.mean(0) - mean).norm() / covariance.trace().sqrt()
    return float(off), float((torch.cov(x.T) - covariance).norm() / covariance.norm())


@pytest.mark.parametrize("name", OPERATORS)
def test_moment_matching_draws_the_exact_posterior(name: str) -> None:
    operator, count = OPERATORS[name], 6000
    measured = measurement(operator)
    mean, covariance = exact(prior(), operator, measured.y)
    bent = Restored(known(prior()), measured, MomentMatching(rounds=30))
    off, spread = errors(drawn(bent, Heun(), 40, count), mean[0], covariance)
    assert off < 4 / count**0.5
    assert spread < 0.06
    # The prior itself is nowhere near: the test can tell.
    off, spread = errors(drawn(known(prior()), Heun(), 20, 500), mean[0], covariance)
    assert off > 0.5
    assert spread > 0.5


def test_the_score_of_moment_matching_is_the_exact_one() -> None:
    """Against the posterior's own denoiser, point by point."""
    for operator in OPERATORS.values():
        measured = measurement(operator)
        mean, covariance = exact(prior(), operator, measured.y)
        oracle = GaussianOracle.full(mean[0], covariance)
        bent = Restored(known(prior()), measured, MomentMatching(rounds=30))
        x = torch.randn(7, SIZE, generator=torch.Generator().manual_seed(0), dtype=F64)
        for sigma in (0.05, 0.5, 5.0):
            level = torch.tensor(sigma, dtype=F64)
            there = oracle((1 + sigma) * x, level).mean
            assert torch.allclose(bent((1 + sigma) * x, level).mean, there, atol=1e-5)


@pytest.mark.parametrize("name", OPERATORS)
def test_daps_with_the_networks_covariance_converges_to_the_posterior(name: str) -> None:
    operator, count = OPERATORS[name], 1500
    measured = measurement(operator)
    mean, covariance = exact(prior(), operator, measured.y)
    found: list[tuple[float, float]] = []
    for steps in (6, 48):
        daps = DAPS(measured, DDIM(1.0), steps, MomentMatching(rounds=30))
        found.append(errors(drawn(known(prior()), daps, 6, count), mean[0], covariance))
    assert found[1][0] < 4 / count**0.5
    assert found[1][1] < 0.17
    assert found[0][1] > 2.5 * found[1][1]


@pytest.mark.parametrize("walk", [1, 3])
def test_daps_asks_the_network_once_at_x_and_once_a_step_below(walk: int) -> None:
    measured = measurement(OPERATORS["mask"])
    x = torch.zeros(2, SIZE, dtype=F64)
    counted = Counted(known(prior()))
    daps = DAPS(measured, DDIM(1.0), walk, MomentMatching(rounds=3))
    steps = list(sample(counted, daps, karras(2), x, noise_for(0, 2)))
    # The last step's walk down has one level only.
    assert counted.evaluations == (len(steps) - 1) * walk + 1


METHODS: dict[str, Callable[[int], Method]] = {
    "replace": lambda count: Replacement(noise_for(5, count)),
    "ddrm": lambda count: DDRM(),
    "dps": lambda count: DPS(),
    "pigdm": lambda count: PiGDM(),
    "diffpir": lambda count: DiffPIR(),
    "moments": lambda count: MomentMatching(3),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_nearer_the_posterior_than_the_prior_and_agrees_with_y(name: str) -> None:
    count = 400
    operator = OPERATORS["mask"]
    measured = measurement(operator)
    mean, covariance = exact(prior(), operator, measured.y)
    x = drawn(Restored(known(prior()), measured, METHODS[name](count)), DDIM(), 60, count)
    before = errors(drawn(known(prior()), DDIM(), 60, count), mean[0], covariance)
    after = errors(x, mean[0], covariance)
    assert after[0] < 0.65 * before[0]
    rest = measured.rest(x)[:, OPERATORS["mask"].known]  # type: ignore[attr-defined]
    # Theirs is a residual of two deviations where the exact one is nearly one: where noise is small
    # beside the data's spread, their steps end before y is explained. The prior's is five.
    bound = 2.0 if name in ("dps", "pigdm") else 1.6
    assert float(rest.square().mean()) ** 0.5 < bound * STD


def test_without_noise_what_is_known_comes_back_as_it_is() -> None:
    mask = Mask(torch.tensor([True, False, True, True, False]))
    y = mask(torch.linspace(-0.5, 0.7, SIZE, dtype=F64)[None])
    for method in (Replacement(noise_for(1, 20)), DDRM()):
        x = drawn(Restored(known(prior()), Measured(mask, y), method), DDIM(), 30, 20)
        assert torch.allclose(x[:, mask.known], y[:, mask.known].expand(20, -1), atol=1e-12)
    x = drawn(Restored(known(prior()), Measured(mask, y), PiGDM()), DDIM(), 60, 20)
    assert torch.allclose(x[:, mask.known], y[:, mask.known].expand(20, -1), atol=2e-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_of_nothing_is_sampling(name: str) -> None:
    nothing = Measured(Mask(torch.zeros(SIZE, dtype=torch.bool)), torch.zeros(1, SIZE).double())
    bent = Restored(known(prior()), nothing, METHODS[name](8))
    assert torch.equal(drawn(bent, DDIM(), 12, 8), drawn(known(prior()), DDIM(), 12, 8))


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_of_everything_returns_the_image(name: str) -> None:
    y = torch.linspace(-0.5, 0.7, SIZE, dtype=F64)[None]
    whole = Measured(Mask(torch.ones(SIZE, dtype=torch.bool)), y)
    x = drawn(Restored(known(prior()), whole, METHODS[name](8)), DDIM(), 60, 8)
    assert torch.allclose(x, y.expand(8, -1), atol=0.02)


def test_repaint_agrees_better_with_what_surrounds() -> None:
    """Replacement leaves unknown values too free; going over levels again mends it."""
    count, operator = 500, OPERATORS["mask"]
    y = operator(prior().mean[None] + torch.tensor([[0.6, 0.0, -0.5, 0.5, 0.0]], dtype=F64))
    measured = Measured(operator, y, 0.0)
    matrix = torch.eye(SIZE, dtype=F64)[[0, 2, 3]]
    covariance = prior().covariance
    gain = covariance @ matrix.T @ torch.linalg.inv(matrix @ covariance @ matrix.T)
    mean = prior().mean + gain @ (matrix @ (y[0] - prior().mean))
    spread = covariance - gain @ matrix @ covariance
    bent = Restored(known(prior()), measured, Replacement(noise_for(5, count)))
    plain = errors(drawn(bent, DDIM(1.0), 30, count), mean, spread)
    again = errors(drawn(bent, Repaint(DDIM(1.0), times=6), 30, count), mean, spread)
    jumps = errors(drawn(bent, Repaint(DDIM(1.0), times=6, jump=3), 30, count), mean, spread)
    assert again[0] < 0.5 * plain[0]
    assert jumps[0] < 0.5 * plain[0]
    with pytest.raises(ValueError, match="must be 1 or more"):
        Repaint(DDIM(), times=0)


def test_a_mixture_is_restored_to_the_right_modes() -> None:
    """One value of a pair is known, and both come from one mixture: noise decides the mode."""
    mixture = Mixture()
    y = torch.tensor([[0.9]], dtype=F64)
    measured = Measured(Identity(), y, 0.6)
    weights = torch.tensor(mixture.weights, dtype=F64)
    centres = torch.tensor(mixture.centres, dtype=F64)
    total = mixture.width**2 + 0.6**2
    log = weights.log() - (0.9 - centres).square() / (2 * total)
    odds = log.softmax(0)
    count = 4000
    noise = noise_for(0, count)
    x = HIGH * torch.randn(count, 1, generator=torch.Generator().manual_seed(1), dtype=F64)
    bent = Restored(known(mixture), measured, MomentMatching(3))
    for step in sample(bent, Heun(), karras(60, LOW, HIGH), x, noise):
        x = step.x
    nearest = (x - centres).abs().argmin(1)
    share = torch.bincount(nearest, minlength=3) / count
    assert torch.allclose(share.double(), odds, atol=0.12)
    assert float((share.double() - weights).abs().max()) > 0.2


# --- operators


def image_operators() -> dict[str, tuple[Operator, tuple[int, ...]]]:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.rand(3, 5, generator=generator, dtype=F64)
    hole = torch.rand(8, 12, generator=generator) > 0.3
    return {
        "mask": (Mask(hole), (3, 8, 12)),
        "identity": (Identity(), (2, 4, 4)),
        "average": (Average(4), (3, 8, 12)),
        "blur": (Blur(kernel), (3, 8, 12)),
        "blur of odd width": (Blur(kernel), (1, 7, 9)),
        "mix": (Mix(torch.randn(2, 4, generator=generator, dtype=F64)), (4, 5, 3)),
        "grey": (GREY, (3, 6, 6)),
        "grey of a blur": (Composed(Blur(kernel), GREY), (3, 8, 12)),
        "matrix": (OPERATORS["matrix"], (SIZE,)),
    }


@pytest.mark.parametrize("name", image_operators())
def test_adjoints_and_spectra(name: str) -> None:
    operator, shape = image_operators()[name]
    check_adjoint(operator, shape)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *shape, generator=generator, dtype=F64)
    y = operator(x)
    gain, floor = torch.tensor(0.7, dtype=F64), torch.tensor(0.2, dtype=F64)
    solved = solve(operator, y, gain, floor, rounds=200)
    back = gain * operator(operator.adjoint(solved)) + floor * solved
    assert torch.allclose(back, y, atol=1e-4)
    if is_spectral(operator):
        assert torch.allclose(
            operator.spectral(lambda value: value, y), operator(operator.adjoint(y)), atol=1e-10
        )
        least = solve(operator, y, torch.ones((), dtype=F64), torch.zeros((), dtype=F64))
        assert torch.allclose(operator(operator.adjoint(least)), y, atol=1e-8)


def test_operators_are_what_they_are_called() -> None:
    x = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(2), dtype=F64)
    assert torch.allclose(Average(4)(x)[0, 1, 1, 2], x[0, 1, 4:8, 8:12].mean())
    kernel = torch.rand(3, 5, generator=torch.Generator().manual_seed(3), dtype=F64)
    blurred = ndimage.convolve(x[0, 0].numpy(), kernel.numpy(), mode="wrap")
    assert np.allclose(Blur(kernel)(x)[0, 0].numpy(), blurred)
    grey = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    assert torch.allclose(GREY(x)[:, 0], grey)


def test_conjugate_gradients_solve_image_by_image() -> None:
    generator = torch.Generator().manual_seed(4)
    root = torch.randn(3, 6, 6, generator=generator, dtype=F64)
    matrices = root @ root.transpose(1, 2) + torch.eye(6, dtype=F64)
    y = torch.randn(3, 6, generator=generator, dtype=F64)
    y[1] = 0
    v = conjugate_gradients(lambda v: torch.einsum("bij,bj->bi", matrices, v), y, 30)
    assert torch.allclose(v, torch.linalg.solve(matrices, y), atol=1e-5)
    # One that is not positive is left, and harms no other.
    matrices[0] = -matrices[0]
    v = conjugate_gradients(lambda v: torch.einsum("bij,bj->bi", matrices, v), y, 30)
    assert torch.equal(v[0], torch.zeros(6, dtype=F64))
    assert torch.allclose(v[2], torch.linalg.solve(matrices[2], y[2]), atol=1e-5)


def test_each_image_is_restored_by_its_own_level() -> None:
    """As an adaptive solver asks: sigma [B]."""
    x = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(5), dtype=F64)
    sigma = torch.tensor([5.0, 0.5, 0.03], dtype=F64)
    for name, method in METHODS.items():
        for operator in OPERATORS.values():
            if name == "ddrm" and not is_spectral(operator):
                continue
            one = Restored(known(prior()), measurement(operator), method(3))
            if name == "replace":  # its noise is each row's own
                one = Restored(known(prior()), measurement(operator), Replacement(noise_for(5, 3)))
            together = one(x, sigma).mean
            for row in range(3):
                alone = one(x, sigma[row]).mean[row]
                assert torch.allclose(together[row], alone, atol=1e-7), name


@pytest.mark.parametrize("name", ["replace", "ddrm", "pigdm"])
def test_what_a_blur_has_lost_is_not_blown_up(name: str) -> None:
    """A measurement rounded to 8 bits: its smallest singular values tell nothing."""
    line = torch.exp(-0.5 * (torch.arange(-4, 5).double() / 1.5) ** 2)
    kernel = torch.outer(line, line)
    blur = Blur(kernel / kernel.sum())
    x0 = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(6)) * 2 - 1
    y = ((blur(x0) + 1) * 127.5).round() / 127.5 - 1
    oracle = GaussianOracle.diagonal([0.3] * 1024, shape=(1, 32, 32))
    measured = Measured(blur, y, 12**-0.5 / 127.5)
    bent = Restored(known(oracle), measured, METHODS[name](1))
    mean = bent(torch.zeros(1, 1, 32, 32), torch.tensor(1.0, dtype=F64)).mean
    assert float(mean.abs().max()) < 20


def test_wrong_operators_and_measurements_are_refused() -> None:
    class Wrong(Matrix):
        def adjoint(self, y: Tensor) -> Tensor:
            return 2 * super().adjoint(y)

    class Short(Matrix):
        def adjoint(self, y: Tensor) -> Tensor:
            return super().adjoint(y)[:, 1:]

    class Bent(Matrix):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x.abs())

        def adjoint(self, y: Tensor) -> Tensor:
            return super().adjoint(y)

    matrix = torch.eye(SIZE, dtype=F64)
    with pytest.raises(ValueError, match="adjoint is wrong: <A x, y> is"):
        check_adjoint(Wrong(matrix), (SIZE,))
    with pytest.raises(ValueError, match="must return the images' shape"):
        check_adjoint(Short(matrix), (SIZE,))
    with pytest.raises(ValueError, match=r"adjoint is wrong|not linear"):
        check_adjoint(Bent(matrix), (SIZE,))
    with pytest.raises(ValueError, match="kernel, 3 x 5, is larger than the image, 4 x 4"):
        Blur(torch.ones(3, 5))(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="do not divide 6 x 8"):
        Average(4)(torch.zeros(1, 1, 6, 8))
    with pytest.raises(ValueError, match="0 or more, not -1"):
        Measured(Identity(), torch.zeros(1, 2), -1.0)
    with pytest.raises(ValueError, match="mask such values"):
        Measured(Identity(), torch.tensor([[float("nan")]]))
    noisy = Measured(Matrix(matrix), torch.zeros(1, SIZE), 0.1)
    with pytest.raises(ValueError, match="knows its singular values"):
        Restored(known(prior()), noisy, DDRM())(torch.zeros(1, SIZE), torch.tensor(1.0))
    with pytest.raises(ValueError, match="one step at least"):
        DAPS(noisy, DDIM(), 0)


def test_pixels_that_see_beyond_the_image_are_not_believed() -> None:
    """Inside, a part of a blurred scene is the blurred part; at its borders it is not."""
    rng = np.random.default_rng(0)
    kernel = torch.from_numpy(rng.random((4, 5)) ** 3)
    kernel /= kernel.sum()
    scene = torch.from_numpy(rng.uniform(-1, 1, (1, 1, 40, 40)))
    rows, columns = slice(10, 30), slice(9, 28)
    seen = Blur(kernel)(scene)[..., rows, columns]
    off = (Blur(kernel)(scene[..., rows, columns]) - seen).abs()[0, 0]
    known = inside(kernel, (20, 19))
    assert float(off[known].max()) <= 2 * 2 * 0.002
    assert int(known.sum()) >= (20 - 3) * (19 - 4)
    assert float(off[~known].mean()) > 0.05
    # What each pixel sees of the image, one by one.
    shares = torch.nn.functional.conv2d(
        torch.nn.functional.pad(torch.ones(1, 1, 20, 19, dtype=F64), (2, 2, 1, 2)),
        kernel.flip(0, 1)[None, None],
    )
    assert torch.equal(known, shares[0, 0] >= 0.998)
    with pytest.raises(ConfigError, match="from everywhere"):
        inside(torch.ones(4, 6), (4, 5))
