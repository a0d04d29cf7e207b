"""The network's speed in sampling and training, against plain torch and against peers, in turns.

    python benchmarks/network_speed.py            (about ten minutes; --quick for a try)

DDPM++ with 64 channels, (1, 2, 2), 2 blocks, 32x32x3, dropout 0.13, batch 32. Peers that are not
installed are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from _networks import (
    BFLOAT16,
    FLOAT32,
    FULL,
    QUICK,
    SHAPE,
    Contestant,
    contestants,
    forward_step,
    training_step,
)
from _shared import machine, peak_bytes, setting, write_text
from torch.utils.flop_counter import FlopCounterMode

from sfumato.networks.config import UNetConfig
from sfumato.speed.steps import inputs
from sfumato.speed.timing import Timing, interleaved

TABLE = Path(__file__).parent / "results" / "network_speed.md"
Times = dict[str, Timing]
TURN = 1.5  # seconds: several steps in a row, as one trains and samples


def race(racing: list[Contestant], config: UNetConfig, batch: int, rounds: int, kind: str) -> Times:
    """Median-worthy times of everybody's step, in turns."""
    x, label, _ = inputs(SHAPE, batch)
    make = forward_step if kind == "forward" else training_step
    calls = {c.title: make(c.network(config), x, label) for c in racing}

    def told(name: str, seconds: float) -> None:
        print(f"  {kind}, {name}: {batch / seconds:.1f} images/s", flush=True)

    return interleaved(calls, 0.0, rounds=rounds, least=TURN, told=told)


def peak(title: str, config: UNetConfig, batch: int) -> int:
    """Peak resident bytes of two training steps; asked in a process of its own."""
    chosen = next(c for c in contestants() if c.title == title)
    step = training_step(chosen.network(config), *inputs(SHAPE, batch)[:2])
    for _ in range(2):
        step()
    return peak_bytes()


def measured_apart(options: list[str]) -> str:
    out = subprocess.run(
        [sys.executable, __file__, *options], capture_output=True, text=True, check=True
    )
    return out.stdout.splitlines()[-1]


def import_seconds(package: str) -> float:
    """Median of three: `import torch`, then what its network needs, in new processes."""
    what = {"torch": "pass", "sfumato": "from sfumato.networks.build import build_network",
            "diffusers": "from diffusers import UNet2DModel", "azula": "import azula.nn.unet",
            "smalldiffusion": "from smalldiffusion import Unet"}[package]  # fmt: skip
    stub = "import sys; from unittest.mock import MagicMock as M; "
    stub += "sys.modules['torchvision'] = M(); " if package == "smalldiffusion" else ""
    code = f"{stub}import time, torch; t = time.perf_counter(); {what}; "
    code += "print(time.perf_counter() - t)"
    return statistics.median(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                             check=True).stdout.split()[-1])
        for _ in range(3)
    )  # fmt: skip


def gigaflops(network: torch.nn.Module) -> float:
    """GFLOP of one image's way forward; run, for not every peer knows a device without memory."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*inputs(SHAPE, 1)[:2])
    return counter.get_total_flops() / 1e9


def rate(times: Times, title: str, batch: int) -> float:
    return times[title].rate(batch) if title in times else 0.0


def over(times: Times, title: str, other: str) -> float:
    """How many times as fast: the median of the rounds' ratios, within each of which the machine
    was about as busy for both."""
    pairs = zip(times[title].seconds, times[other].seconds, strict=True)
    return statistics.median(theirs / mine for mine, theirs in pairs)


def fastest(times: Times, titles: list[str]) -> str:
    return min(titles, key=lambda title: times[title].median)


def verdict(racing: list[Contestant], kinds: dict[str, Times]) -> list[str]:
    """Ours, in its faster arithmetic, over what the goals compare with."""
    ours = [c.title for c in racing if c.package == "sfumato"]
    rivals = {
        "plain float32, NCHW": [f"plain torch, {FLOAT32}"],
        "plain with bf16 autocast and channels_last": [f"plain torch, {BFLOAT16}"],
        "the best peer": [c.title for c in racing if c.package not in ("torch", "sfumato")],
    }
    lines = ["| ours over | forward | training |", "|---|---:|---:|"]
    for name, titles in rivals.items():
        if not titles:
            continue
        words: list[str] = []
        for times in kinds.values():
            rival = fastest(times, titles)
            told = f" ({rival})" if len(titles) > 1 else ""
            words.append(f"{over(times, fastest(times, ours), rival):.2f}{told}")
        lines.append(f"| {name} | " + " | ".join(words) + " |")
    return lines


def report(
    about: dict[str, object], config: UNetConfig, batch: int, rounds: int,
    racing: list[Contestant], kinds: dict[str, Times], memory: dict[str, int],
    imports: dict[str, float],
) -> str:  # fmt: skip
    plain = f"plain torch, {FLOAT32}"
    lines = [
        "# The network's speed", "",
        setting(about, f"{torch.get_num_threads()} threads", f"busy before: {about['busy_cores']}")
        + f" DDPM++, {config.width} channels, {config.multipliers}, {config.blocks} blocks, "
        f"32x32x3, dropout {config.dropout}, batch {batch}; medians of {rounds} interleaved "
        f"rounds, turns of at least {TURN} s, ratios the medians of the rounds' own. Forward is a "
        "call of sampling; training is forward, backward, fused Adam and the moving average. "
        "bf16 is autocast for everybody else, `set_compute` for us. Import is on top of "
        "torch; peak memory is of a process that trains.", "",
        "| | arithmetic | parameters, M | GFLOP an image | forward, images/s | over plain | "
        "training, images/s | over plain | peak MB | import, s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for c in racing:
        network = c.network(config)
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        forward, training = (rate(kinds[k], c.title, batch) for k in ("forward", "training"))
        megabytes = f"{memory[c.title] / 1e6:,.0f}" if c.title in memory else ""
        lines.append(
            f"| {c.name} | {c.arithmetic} | {millions:.2f} | {gigaflops(network):.2f} | "
            f"{forward:.1f} | {over(kinds['forward'], c.title, plain):.2f} | "
            f"{training:.1f} | {over(kinds['training'], c.title, plain):.2f} | "
            f"{megabytes} | {imports[c.package]:.2f} |"
        )
    return "\n".join([*lines, "", *verdict(racing, kinds), ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small network, to try the script")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    config, batch = (QUICK, 4) if options.quick else (FULL, 32)
    if options.peak:
        print(json.dumps(peak(options.peak, config, batch)))
        return
    about = machine()
    racing = contestants()
    for package in sorted({c.package for c in racing} - set(about["versions"])):
        about["versions"][package] = version(package)
    start = time.perf_counter()
    kinds = {
        kind: race(racing, config, batch, options.rounds, kind) for kind in ("forward", "training")
    }
    quick = ["--quick"] if options.quick else []
    memory = {c.title: int(measured_apart(["--peak", c.title, *quick])) for c in racing}
    imports = {package: import_seconds(package) for package in {c.package for c in racing}}
    text = report(about, config, batch, options.rounds, racing, kinds, memory, imports)
    write_text(options.out, text)
    print(text + f"\nin {time.perf_counter() - start:.0f} s: {options.out}")


if __name__ == "__main__":
    main()
