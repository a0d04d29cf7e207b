"""What sampling costs beyond the network: time at batch 64, and memory over steps and images.

    python benchmarks/sampling_overhead.py        (about five minutes; --quick for a try)

Time: the network of network_speed.py, in bf16 with channels_last, timed inside of
`sfumato.sampling.generate`; what the calls do not account for is overhead: the parameterization,
the solver, starting noise, checks. Memory: the peak of processes that draw n images in few and in
many steps, with a small network.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _networks import FULL, QUICK, SHAPE
from _shared import machine, peak_bytes, setting, write_text

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
STEPS = (10, 200)
IMAGES = (64, 256)


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
    solver: Solver[Any], config: UNetConfig, steps: int, batch: int
) -> tuple[float, float]:
    """Seconds of one network call, and of everything else a call."""
    network = Timed(network_of(config))
    denoise, grid = edm_preconditioned(network), karras(steps)
    start = time.perf_counter()
    for _ in generate(denoise, solver, grid, SHAPE, range(batch), batch=batch):
        pass
    whole = time.perf_counter() - start
    return network.seconds / network.calls, (whole - network.seconds) / network.calls


def peak(steps: int, count: int) -> int:
    """Peak resident bytes of this process after drawing so many images, and dropping them."""
    denoise = edm_preconditioned(network_of(QUICK))
    for _ in generate(denoise, Heun(), karras(steps), SHAPE, range(count), batch=32):
        pass
    return peak_bytes()


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
    config, batch, steps, rounds = (QUICK, 8, 3, 1) if options.quick else (FULL, 64, 4, 3)
    about = machine()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in SOLVERS}
    with torch.no_grad():
        overhead(DDIM(), config, 2, batch)
        for _ in range(rounds):
            for name, solver in SOLVERS.items():
                times[name].append(overhead(solver, config, steps, batch))
                call, rest = times[name][-1]
                print(f"  {name}: {call:.3f} s a call, {1000 * rest:.2f} ms beyond", flush=True)
    lines = [
        "# What sampling costs beyond the network",
        "",
        setting(about, f"{torch.get_num_threads()} threads", f"busy before: {about['busy_cores']}")
        + f" DDPM++, {config.width} channels, {config.multipliers}, {config.blocks} blocks, bf16 "
        f"with channels_last, {batch} images of 3 x 32 x 32, {steps} steps, medians of {rounds} "
        "interleaved rounds.",
        "",
        "| | network, ms a call | beyond it, ms a call | of the network's time |",
        "|---|---:|---:|---:|",
    ]
    for name, pairs in times.items():
        call = statistics.median(c for c, _ in pairs)
        rest = statistics.median(r for _, r in pairs)
        lines.append(
            f"| {name} | {1e3 * call:.1f} | {1e3 * rest:.2f} | {100 * rest / call:.2f} % |"
        )
    shown = (2, 4) if options.quick else STEPS
    lines += [
        "",
        "Peak memory of a process that draws images 32 at a time with a small network, MB:",
        "",
        "| images | " + " | ".join(f"{s} steps" for s in shown) + " |",
        "|---:|" + "---:|" * len(shown),
    ]
    for count in (32, 64) if options.quick else IMAGES:
        found = [
            int(subprocess.run([sys.executable, __file__, "--peak", str(s), str(count)],
                               capture_output=True, text=True, check=True).stdout)
            for s in shown
        ]  # fmt: skip
        lines.append(f"| {count} | " + " | ".join(f"{b / 1e6:.0f}" for b in found) + " |")
        print(f"  {lines[-1]}", flush=True)
    text = "\n".join([*lines, ""])
    write_text(options.out, text)
    print(text)


if __name__ == "__main__":
    main()
