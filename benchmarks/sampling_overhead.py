"""What sampling costs beyond the network: time at batch 64, and memory over steps and images.

    python benchmarks/sampling_overhead.py        (about two minutes; --quick for a try)

Time: the network of network_speed.py, in bf16 with channels_last, timed inside of
`sfumato.sampling.generate`; what the calls do not account for is overhead: the parameterization,
the solver, noise, checks. Memory: the peak of processes that draw n images in few and in many
steps, with one convolution for a network, so that states which were kept would show. What is
measured is kept in a JSON file beside the table until that is written: interrupted, the same
command goes on.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _networks import FULL, QUICK, SHAPE
from _shared import Kept, machine, peak_bytes, setting, write_text

from sfumato.networks.build import build_network
from sfumato.networks.config import UNetConfig
from sfumato.noise import karras
from sfumato.parameterization import edm_preconditioned
from sfumato.protocols import Solver
from sfumato.sampling import generate
from sfumato.solvers import DDIM, Ancestral, Heun, Multistep, UniPC

TABLE = Path(__file__).parent / "results" / "sampling_overhead.md"
SOLVERS: dict[str, Solver[Any]] = {
    "DDIM": DDIM(),
    "Ancestral": Ancestral(),
    "Heun": Heun(),
    "DPM-Solver++ 2M": Multistep(2),
    "UniPC": UniPC(2),
}
AT_ONCE = 32
"""Images in a batch where memory is measured."""
MEGABYTES = AT_ONCE * SHAPE[0] * SHAPE[1] * SHAPE[2] * 4 / 1e6
"""Of one state of them."""


@dataclass(frozen=True)
class Plan:
    """What is measured: time by solver in some rounds, memory for numbers of images and steps."""

    config: UNetConfig
    batch: int
    steps: int
    rounds: int
    images: tuple[int, int]
    grids: tuple[int, int]


WHOLE = Plan(FULL, 64, 4, 5, (64, 256), (10, 200))
TRY = Plan(QUICK, 8, 3, 1, (32, 64), (2, 4))


class Convolution(torch.nn.Module):
    """The least of networks."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(SHAPE[0], SHAPE[0], 3, padding=1)

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.convolution(x)


class Timed(torch.nn.Module):
    """A network that adds up what its calls take."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.seconds, self.calls = network, 0.0, 0

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        out = self.network(x, label)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return out


def network_of(config: UNetConfig) -> Any:
    torch.manual_seed(0)
    network = build_network(config, in_channels=3, out_channels=3, height=32, width=32)
    network.eval().requires_grad_(False).set_compute(torch.bfloat16, channels_last=True)
    return network


def overhead(
    solver: Solver[Any], network: torch.nn.Module, steps: int, batch: int
) -> tuple[float, float]:
    """Seconds of one network call, and of everything else a call."""
    timed = Timed(network)
    denoise, grid = edm_preconditioned(timed), karras(steps)
    start = time.perf_counter()
    for _ in generate(denoise, solver, grid, SHAPE, range(batch), batch=batch):
        pass
    whole = time.perf_counter() - start
    return timed.seconds / timed.calls, (whole - timed.seconds) / timed.calls


def peak(steps: int, count: int) -> int:
    """Peak resident bytes of this process after drawing so many images, and dropping them."""
    denoise = edm_preconditioned(Convolution())
    for _ in generate(denoise, Heun(), karras(steps), SHAPE, range(count), batch=AT_ONCE):
        pass
    return peak_bytes()


def times(plan: Plan, kept: Kept) -> None:
    """Rounds of all solvers in turns; what is kept is not measured again."""
    missing = [
        (f"{name}, round {number}", solver)
        for number in range(plan.rounds)
        for name, solver in SOLVERS.items()
    ]
    missing = [(key, solver) for key, solver in missing if key not in kept]
    if not missing:
        return
    network = network_of(plan.config)
    with torch.no_grad():
        overhead(DDIM(), network, 2, plan.batch)
        for key, solver in missing:
            call, rest = overhead(solver, network, plan.steps, plan.batch)
            kept.add(key, [call, rest])
            print(f"  {key}: {call:.3f} s a call, {1000 * rest:.2f} ms beyond", flush=True)


def memory(plan: Plan, kept: Kept) -> None:
    """A process for each peak."""
    for count in plan.images:
        for steps in plan.grids:
            key = f"peak of {count} in {steps}"
            if key in kept:
                continue
            command = [sys.executable, __file__, "--peak", str(steps), str(count)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            kept.add(key, int(done.stdout))
            print(f"  {key}: {kept[key] / 1e6:.0f} MB", flush=True)


def table(plan: Plan, kept: Kept, about: dict[str, Any]) -> str:
    config, most, longest = plan.config, plan.images[-1], plan.grids[-1]
    busy = "busy before: " + ", ".join(map(str, kept["busy"]))
    lines = [
        "# What sampling costs beyond the network",
        "",
        setting(about, f"{torch.get_num_threads()} threads", busy)
        + f" DDPM++, {config.width} channels, {config.multipliers}, {config.blocks} blocks, bf16 "
        f"with channels_last, {plan.batch} images of 3 x 32 x 32, {plan.steps} steps, the noise "
        f"they start from included; medians of {plan.rounds} interleaved rounds.",
        "",
        "| | network, ms a call | beyond it, ms a call | of the network's time |",
        "|---|---:|---:|---:|",
    ]
    for name in SOLVERS:
        pairs = [kept[f"{name}, round {number}"] for number in range(plan.rounds)]
        call, rest = (statistics.median(column) for column in zip(*pairs, strict=True))
        lines.append(
            f"| {name} | {1e3 * call:.1f} | {1e3 * rest:.2f} | {100 * rest / call:.2f} % |"
        )
    lines += [
        "",
        f"Peak memory of a process that draws images, {AT_ONCE} at a time, by Heun with one "
        f"convolution for a network, MB. Kept, the states of {longest} steps would "
        f"add {longest * MEGABYTES:.0f} MB, {most} images {most / AT_ONCE * MEGABYTES:.1f} MB.",
        "",
        "| images | " + " | ".join(f"{steps} steps" for steps in plan.grids) + " |",
        "|---:|" + "---:|" * len(plan.grids),
    ]
    for count in plan.images:
        found = [kept[f"peak of {count} in {steps}"] / 1e6 for steps in plan.grids]
        lines.append(f"| {count} | " + " | ".join(f"{mb:.0f}" for mb in found) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small network and few steps")
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(*options.peak))
        return
    plan = TRY if options.quick else WHOLE
    about = machine()
    settings = {
        "plan": repr(plan), "threads": torch.get_num_threads(),
        **{name: about[name] for name in ("date", "processor", "cores", "versions")},
    }  # fmt: skip
    kept = Kept(options.out.with_suffix(".json"), settings)
    kept.add("busy", [*kept.values.get("busy", []), about["busy_cores"]])
    times(plan, kept)
    memory(plan, kept)
    text = table(plan, kept, about)
    write_text(options.out, text)
    kept.path.unlink()
    print(text)


if __name__ == "__main__":
    main()
