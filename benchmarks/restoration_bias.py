"""How far each restoration method's answers are from the exact posterior.

    python benchmarks/restoration_bias.py

Images of 8 x 8 pixels, from a smooth Gaussian field and from a mixture of two such fields, one with
a bright and one with a dark spot; some of the pixels are missing, and the others have noise. The
denoiser is exact, so all error is the method's (and, for few steps, the solver's).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from _shared import machine, setting, write_text
from torch import Tensor

from sfumato.gaussian import Gaussian
from sfumato.noise import F64, NoiseRange, karras
from sfumato.parameterization import Spectral
from sfumato.protocols import Denoiser
from sfumato.randomness import Purpose, noise_for
from sfumato.recipes.restoring import How, usual_sampler
from sfumato.recipes.restoring.names import METHODS
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.recipes.samplers import solver_of
from sfumato.restoration import DAPS, Mask, Measured, MomentMatching, Restored
from sfumato.sampling import sample
from sfumato.solvers import DDIM

RESULTS = Path(__file__).parent / "results"
SIDE, NOISE, COUNT = 8, 0.05, 1000
PIXELS = SIDE**2
LOW, HIGH = 5e-3, 60.0


@dataclass(frozen=True, eq=False)
class Fields:
    """Images [B, 1, 8, 8]: one of Gaussian fields of one covariance [64, 64], and its denoiser.

    means [K, 64], weights [K] of the fields.
    """

    means: Tensor
    weights: Tensor
    covariance: Tensor

    @property
    def range(self) -> NoiseRange:
        return NoiseRange(LOW, HIGH)

    @property
    def prior(self) -> Gaussian:
        return Gaussian(torch.zeros((), dtype=F64), torch.tensor(HIGH**2, dtype=F64))

    @property
    def decoder_var(self) -> None:
        return None

    def on(self, sigmas: Tensor) -> Fields:
        return self

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        return torch.linalg.eigh(self.covariance)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Images [count, 1, 8, 8]."""
        which = torch.multinomial(self.weights, count, True, generator=generator)
        white = torch.randn(count, PIXELS, generator=generator, dtype=F64)
        flat = self.means[which] + white @ torch.linalg.cholesky(self.covariance).T
        return flat.reshape(-1, 1, SIDE, SIDE)

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        values, axes = self._axes
        total = values + sigma**2
        turned = (x.flatten(1)[:, None] - self.means) @ axes  # [B, K, 64]
        odds = (self.weights.log() - (turned.square() / total).sum(-1) / 2).softmax(-1)
        means = self.means + (turned * (values / total)) @ axes.T
        mean = (odds[..., None] * means).sum(1)
        return Gaussian(mean.reshape(x.shape), torch.zeros((), dtype=F64))

    def given(self, seen: Tensor, y: Tensor) -> Fields:
        """The exact posterior given pixels `seen` [64] with values y [n] and their noise."""
        c = self.covariance
        noisy = c[seen][:, seen] + NOISE**2 * torch.eye(len(y), dtype=F64)
        gain = torch.linalg.solve(noisy, c[seen]).T
        off = y - self.means[:, seen]
        fit = (off * torch.linalg.solve(noisy, off.T).T).sum(1)
        weights = (self.weights.log() - fit / 2).softmax(0)
        return Fields(self.means + off @ gain.T, weights, c - gain @ c[seen])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [64] and covariance [64, 64] of all."""
        mean = self.weights @ self.means
        apart = self.means - mean
        return mean, self.covariance + (self.weights * apart.T) @ apart

    def shares(self, x: Tensor) -> Tensor:
        """Share [K] of images [n, 64] that are nearest to each field's mean."""
        nearest = torch.cdist(x, self.means).argmin(1)
        return torch.bincount(nearest, minlength=len(self.means)) / len(x)


@dataclass(frozen=True, eq=False)
class Case:
    """Where images come from, and what is known of one [1, 1, 8, 8]."""

    about: str
    fields: Fields
    known: Tensor
    y: Tensor

    @cached_property
    def exact(self) -> Fields:
        return self.fields.given(self.known.flatten(), self.y[0][self.known])

    def row(self, name: str, steps: int, x: Tensor) -> str:
        """How far answers [n, 1, 8, 8] are from the posterior."""
        flat = x.flatten(1)
        mean, covariance = self.exact.moments()
        off = float((flat.mean(0) - mean).norm() / covariance.trace().sqrt())
        wide = float(torch.cov(flat.T).trace() / covariance.trace())
        shape = float((torch.cov(flat.T) - covariance).norm() / covariance.norm())
        rest = float((self.y - x)[:, self.known].square().mean()) ** 0.5
        line = f"| {name} | {steps} | {off:.3f} | {wide:.2f} | {shape:.2f} | {rest / NOISE:.2f} |"
        if len(self.exact.weights) > 1:
            line += f" {float(self.exact.shares(flat)[0]):.2f} |"
        return line

    def chance(self) -> str:
        """What the exact posterior's own answers would be off."""
        covariance = self.exact.moments()[1]
        shape = (1 + float(covariance.trace() ** 2 / covariance.square().sum())) ** 0.5
        mean, covariance = COUNT**-0.5, shape * COUNT**-0.5
        return f"Chance alone: mean {mean:.3f}, covariance {covariance:.2f}."

    def header(self) -> list[str]:
        several = len(self.exact.weights) > 1
        told = f" bright, {float(self.exact.weights[0]):.2f} |" if several else ""
        return [
            "| method | steps | mean | variance | covariance | residual |" + told,
            "|---|---:|---:|---:|---:|---:|" + ("---:|" if several else ""),
        ]


def smooth(std: float) -> Tensor:
    """Covariance [64, 64] of a smooth field."""
    place = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    square = torch.cdist(place, place).square()
    covariance = std**2 * torch.exp(-square / (2 * 1.5**2))
    return covariance + 1e-3 * torch.eye(PIXELS, dtype=F64)


def measured_case(about: str, fields: Fields, known: Tensor, generator: torch.Generator) -> Case:
    x0 = fields.draw(1, generator)
    y = known * (x0 + NOISE * torch.randn(x0.shape, generator=generator, dtype=F64))
    about += f" {int((~known).sum())} pixels are missing; the others have noise of {NOISE}."
    return Case(about, fields, known, y)


def one_field(generator: torch.Generator) -> Case:
    known = torch.rand(1, SIDE, SIDE, generator=generator) > 0.4
    one = Fields(torch.zeros(1, PIXELS, dtype=F64), torch.ones(1, dtype=F64), smooth(0.5))
    return measured_case("A Gaussian field of deviation 0.5.", one, known, generator)


def two_fields(generator: torch.Generator) -> Case:
    """What is left around the hole makes the spot's sign likely, not certain."""
    across = torch.arange(SIDE) - (SIDE - 1) / 2
    hole = torch.maximum(across.abs()[:, None], across.abs()) < 2
    spot = torch.exp(-(across.square()[:, None] + across.square()) / 2).double().flatten()
    weights = torch.tensor([0.6, 0.4], dtype=F64)
    two = Fields(torch.stack([spot, -spot]), weights, smooth(0.25))
    about = (
        "A field of deviation 0.25 with a spot of deviation 1 pixel in the middle, in 60 % of "
        "images bright (1) and in 40 % dark (-1)."
    )
    return measured_case(about, two, ~hole[None], generator)


def answers(bent: Denoiser, solver: object, steps: int, rho: float = 7.0) -> Tensor:
    noise = noise_for(0, COUNT)
    x = HIGH * noise.normal((1, SIDE, SIDE), Purpose.START).double()
    for step in sample(bent, solver, karras(steps, LOW, HIGH, rho=rho), x, noise):  # type: ignore[arg-type]
        x = step.x
    return x


def rows(case: Case, generator: torch.Generator) -> Iterator[str]:
    denoise, measured = case.fields, Measured(Mask(case.known), case.y, NOISE)
    spectral = Spectral(1, SIDE, SIDE)
    spectral.measure([denoise.draw(5000, generator)])
    for steps in (18, 100):
        for method in METHODS:
            how = How(method=method)  # type: ignore[arg-type]
            usual = usual_sampler(SamplerConfig(), method)  # type: ignore[arg-type]
            solvers = {method: (solver_of(usual), usual.rho)}
            if method == "spectral":
                solvers["spectral by DDIM"] = (DDIM(1.0), 7.0)
            for name, (solver, rho) in solvers.items():
                noise = noise_for(1, COUNT)
                bent = how.bend(denoise, solver, measured, noise, spectral.covariance)
                yield case.row(name, steps, answers(*bent, steps, rho))
    usual = usual_sampler(SamplerConfig(), "moment-matching")
    better = Restored(denoise, measured, MomentMatching(rounds=5))
    found = answers(better, solver_of(usual), 18, usual.rho)
    yield case.row("moment-matching, 5 rounds", 18, found)
    exact = Restored(denoise, measured, MomentMatching(rounds=40))
    yield case.row("moment-matching, 40 rounds", 200, answers(exact, DDIM(), 200))
    for steps, walk in ((12, 60), (48, 60)):
        daps = DAPS(measured, DDIM(1.0), walk, MomentMatching(rounds=40))
        told = f"daps, the denoiser's covariance, {walk} steps down"
        yield case.row(told, steps, answers(denoise, daps, steps))


def main() -> None:
    torch.set_num_threads(1)
    about = machine()
    generator = torch.Generator().manual_seed(1)
    lines = [
        "# Restoration against the exact posterior",
        "",
        setting(about, "1 thread", f"busy before: {about['busy_cores']}"),
        "",
        f"Images of {SIDE} x {SIDE} pixels, an exact denoiser, {COUNT:,} answers by what `sfumato "
        "restore` takes: dpm++2m-sde for spectral and moment-matching, else DDIM with eta 1 (of 40 "
        "rounds the flow's). Mean: its distance from the exact one, in posterior deviations. "
        "Variance: over the exact one. Covariance: relative error "
        "of the matrix. Residual: of what is known, over its noise.",
    ]
    for case in (one_field(generator), two_fields(generator)):
        print(case.about)
        lines += ["", f"{case.about} {case.chance()}", "", *case.header()]
        for row in rows(case, generator):
            print(row, flush=True)
            lines.append(row)
    write_text(RESULTS / "restoration_bias.md", "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
