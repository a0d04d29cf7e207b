"""How far each restoration method's answers are from the exact posterior, on Gaussian images.

    python benchmarks/restoration_bias.py

Images of 8 x 8 pixels from a smooth Gaussian field; 40 % of the pixels are missing, and the others
have noise of a tenth of the field's deviation. The denoiser is exact, so all error is the method's
(and, for few steps, the solver's).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from _shared import machine, setting, write_text
from torch import Tensor

from sfumato.gaussian import Gaussian
from sfumato.noise import F64, NoiseRange, karras
from sfumato.parameterization import Spectral
from sfumato.protocols import Denoiser
from sfumato.randomness import noise_for
from sfumato.recipes.restoring import How, usual_sampler
from sfumato.recipes.restoring.names import METHODS
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.recipes.samplers import solver_of
from sfumato.restoration import DAPS, Mask, Measured, MomentMatching, Restored
from sfumato.sampling import sample
from sfumato.solvers import DDIM

RESULTS = Path(__file__).parent / "results"
SIDE, STD, NOISE, COUNT = 8, 0.5, 0.05, 1000
LOW, HIGH = 5e-3, 60.0


@dataclass(frozen=True, eq=False)
class Field:
    """The exact denoiser of N(0, covariance) images [B, 1, 8, 8]."""

    covariance: Tensor

    @property
    def range(self) -> NoiseRange:
        return NoiseRange(LOW, HIGH)

    @property
    def prior(self) -> Gaussian:
        return Gaussian(torch.zeros((), dtype=F64), torch.tensor(HIGH**2 + STD**2, dtype=F64))

    @property
    def decoder_var(self) -> None:
        return None

    def on(self, sigmas: Tensor) -> Field:
        return self

    def __call__(self, x: Tensor, sigma: Tensor) -> Gaussian:
        eye = torch.eye(len(self.covariance), dtype=F64)
        gain = torch.linalg.solve(self.covariance + sigma**2 * eye, self.covariance)
        return Gaussian((x.flatten(1) @ gain).reshape(x.shape), torch.zeros((), dtype=F64))


def field() -> Field:
    place = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    square = torch.cdist(place, place).square()
    covariance = STD**2 * torch.exp(-square / (2 * 1.5**2))
    return Field(covariance + 1e-3 * torch.eye(SIDE**2, dtype=F64))


def main() -> None:
    torch.set_num_threads(1)
    about, denoise = machine(), field()
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(1, SIDE, SIDE, generator=generator) > 0.4
    root = torch.linalg.cholesky(denoise.covariance)
    x0 = (root @ torch.randn(SIDE**2, generator=generator, dtype=F64)).reshape(1, 1, SIDE, SIDE)
    y = known * (x0 + NOISE * torch.randn(x0.shape, generator=generator, dtype=F64))
    measured = Measured(Mask(known), y, NOISE)

    seen = known.flatten()
    c = denoise.covariance
    gain = torch.linalg.solve(
        c[seen][:, seen] + NOISE**2 * torch.eye(int(seen.sum()), dtype=F64), c[seen]
    ).T
    mean, covariance = gain @ y.flatten()[seen], c - gain @ c[seen]

    def row(name: str, bent: Denoiser, solver: object, steps: int, rho: float = 7.0) -> str:
        start = time.perf_counter()
        noise = noise_for(0, COUNT)
        x = HIGH * torch.randn(COUNT, 1, SIDE, SIDE, generator=generator, dtype=F64)
        for step in sample(bent, solver, karras(steps, LOW, HIGH, rho=rho), x, noise):  # type: ignore[arg-type]
            x = step.x
        flat = x.flatten(1)
        off = float((flat.mean(0) - mean).norm() / covariance.trace().sqrt())
        wide = float(torch.cov(flat.T).trace() / covariance.trace())
        shape = float((torch.cov(flat.T) - covariance).norm() / covariance.norm())
        rest = float((y - flat.reshape(x.shape))[:, known].square().mean()) ** 0.5
        seconds = time.perf_counter() - start
        line = f"| {name} | {steps} | {off:.3f} | {wide:.2f} | {shape:.2f} | {rest / NOISE:.2f} |"
        print(line, f"{seconds:.1f} s", flush=True)
        return line

    spectral = Spectral(1, SIDE, SIDE)
    draws = torch.randn(5000, SIDE**2, generator=generator, dtype=F64) @ root.T
    spectral.measure([draws.reshape(-1, 1, SIDE, SIDE)])

    rows: list[str] = []
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
                rows.append(row(name, *bent, steps, rho))
    exact = Restored(denoise, measured, MomentMatching(rounds=40))
    rows.append(row("moment-matching, 40 rounds", exact, DDIM(), 200))
    daps = DAPS(measured, DDIM(1.0), 60, MomentMatching(rounds=40))
    rows.append(row("daps, the denoiser's covariance, 60 steps down", denoise, daps, 12))
    lines = [
        "# Restoration against the exact posterior",
        "",
        setting(about, "1 thread", f"busy before: {about['busy_cores']}"),
        "",
        f"A Gaussian field of {SIDE} x {SIDE} pixels, {int((~known).sum())} of them missing, the "
        f"others with noise of deviation {NOISE} (the field's: {STD}); {COUNT:,} answers by "
        "what `sfumato restore` takes: dpm++2m-sde for the first and moment-matching, else DDIM "
        "with eta 1 (the second to last: the flow's). Mean: its distance from the exact one, in "
        "posterior deviations "
        f"({COUNT**-0.5:.3f} is chance). Variance: over the exact one. Covariance: relative error "
        "of the matrix. Residual: of what is known, over its noise.",
        "",
        "| method | steps | mean | variance | covariance | residual |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
        "",
    ]
    write_text(RESULTS / "restoration_bias.md", "\n".join(lines))


if __name__ == "__main__":
    main()
