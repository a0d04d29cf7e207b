"""Time per step beyond the network: ours against diffusers' schedulers, interleaved.

    python benchmarks/solver_overhead.py

64 x 3 x 32 x 32, float32, a network that returns at once, 18 steps, medians of 15 rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from _shared import machine, setting, write_text

from sfumato.gaussian import Gaussian
from sfumato.noise import NoiseLevels, linear_betas, uniform
from sfumato.protocols import Solver
from sfumato.sampling import sample
from sfumato.solvers import DDIM, Heun, Multistep, UniPC

TABLE = Path(__file__).parent / "results" / "solver_overhead.md"
STEPS, ROUNDS = 18, 15
SHAPE = (64, 3, 32, 32)
LEVELS = NoiseLevels.from_betas(linear_betas(1000))
GRID = LEVELS.descending(uniform(1000, STEPS))


def ours(solver: Solver[object]) -> Callable[[], int]:
    """Walk the grid; returns the number of steps."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * float(GRID[0])
    answer = Gaussian(torch.zeros(SHAPE), torch.zeros(()))

    def run() -> int:
        return sum(1 for _ in sample(lambda x, sigma: answer, solver, GRID, x))

    return run


def theirs(scheduler: object) -> Callable[[], int]:
    """The usual loop: scale, network, step."""
    x0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    answer = torch.zeros(SHAPE)

    def run() -> int:
        scheduler.set_timesteps(STEPS)  # type: ignore[attr-defined]
        x = x0 * scheduler.init_noise_sigma  # type: ignore[attr-defined]
        for t in scheduler.timesteps:  # type: ignore[attr-defined]
            scheduler.scale_model_input(x, t)  # type: ignore[attr-defined]
            x = scheduler.step(answer, t, x).prev_sample  # type: ignore[attr-defined]
        return STEPS  # of the grid: Heun's two calls are one step here as there

    return run


def main() -> None:
    about = machine()
    torch.set_grad_enabled(False)
    pairs = {
        "DDIM": (ours(DDIM()), theirs(diffusers.DDIMScheduler(clip_sample=False))),
        "Heun": (ours(Heun()), theirs(diffusers.HeunDiscreteScheduler())),
        "DPM-Solver++ 2M": (
            ours(Multistep(2, published=True)),
            theirs(diffusers.DPMSolverMultistepScheduler()),
        ),
        "UniPC": (ours(UniPC(2)), theirs(diffusers.UniPCMultistepScheduler())),
    }
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
    for _ in range(ROUNDS):
        for name, runs in pairs.items():
            for kept, run in zip(times[name], runs, strict=True):
                start = time.perf_counter()
                steps = run()
                kept.append((time.perf_counter() - start) / steps)
    rows = [
        (name, *(1000 * statistics.median(values) for values in both))
        for name, both in times.items()
    ]
    lines = [
        "# Time per step beyond the network",
        "",
        setting(about, f"busy before: {about['busy_cores']}")
        + f" {' x '.join(map(str, SHAPE))} float32, a network that "
        f"returns at once, {STEPS} steps, medians of {ROUNDS} interleaved rounds.",
        "",
        "| | ours, ms a step | diffusers, ms a step | ratio |",
        "|---|---:|---:|---:|",
        *(f"| {name} | {a:.2f} | {b:.2f} | {a / b:.2f} |" for name, a, b in rows),
        "",
        "A step is one of the grid's: Heun's has two network calls, here as there.",
        "",
    ]
    write_text(TABLE, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
