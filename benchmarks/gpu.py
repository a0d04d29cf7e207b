"""One GPU, one command, under ten minutes: EDM's DDPM++ (55.7 M) against diffusers, interleaved.

    python benchmarks/gpu.py --minutes 9 --out gpu.md
    python benchmarks/gpu.py --device cpu --quick        (a try without a GPU, at a tiny size)

Training images/s and model-FLOP utilisation at batch 512, Heun-18 sampling images/s (35 network
calls), against the matrix rate measured in the same run. What matters most comes first: ours as
`sfumato train` and `sample` run it beside diffusers as it is, training and then sampling; then
diffusers compiled. Rows are printed as they are measured; what the time does not suffice for is
named, not waited for.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.util
import os
import platform
import statistics
import sys
import threading
import time
import warnings
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from _contestants import FULL, LOADER, QUICK, Call, Contestant, Size, ours, peers

from sfumato.speed.ceilings import ceilings
from sfumato.speed.timing import interleaved, synchronize, timed

COMPILING = {"training": 180.0, "sampling": 75.0}
"""Seconds that a compiled contestant may need before its first number."""
ROUNDS = 5


@dataclass
class Entry:
    """A contestant in the race: its call, what it took, and what is to be said about it."""

    who: Contestant
    call: Call | None = None
    seconds: list[float] = field(default_factory=list[float])
    gigabytes: float = 0.0
    started: float = 0.0
    first: float = 1.0
    micro: int = 0
    note: str = ""

    @property
    def rate(self) -> float:
        return self.who.images / statistics.median(self.seconds) if self.seconds else 0.0


class Race:
    """Everybody's times, and the table of them."""

    def __init__(
        self, device: str, size: Size, minutes: float, out: Path | None, *, ahead: bool
    ) -> None:
        self.device, self.size, self.out = device, size, out
        self.cuda = torch.device(device).type == "cuda"
        self.begun = time.perf_counter()
        self.end = self.begun + 60 * minutes
        self.entries: list[Entry] = []
        self.rates: dict[str, float] = {}
        self.facts: list[str] = []
        self.ahead = ahead
        self.lock = threading.Lock()

    @property
    def left(self) -> float:
        return self.end - time.perf_counter()

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.begun:5.0f} s] {text}", flush=True)

    def measure_ceilings(self) -> None:
        """Matrix products, convolutions like the network's, and a copy."""
        quick = self.size is QUICK
        works = ceilings(
            self.device,
            batch=8 if quick else self.size.batch,
            channels=32 if quick else self.size.peer_channels[0],
        )
        times = interleaved(
            {name: work.call for name, work in works.items()}, 0.5 if quick else 5.0,
            device=self.device, least=0.02,
        )  # fmt: skip
        for name, work in works.items():
            self.rates[name] = times[name].rate(work.amount)
            unit = "GB/s" if work.unit == "B" else "TFLOP/s"
            scale = 1e9 if work.unit == "B" else 1e12
            self.say(f"{name}: {self.rates[name] / scale:.1f} {unit}")
        del works, times
        self._tidy()

    def enter(self, who: Contestant) -> Entry:
        """Build, warm up and time once; halve the images a call where memory is short."""
        entry = Entry(who, micro=who.images)
        with self.lock:
            self.entries.append(entry)
        needed = COMPILING[who.kind] / (4 if self.ahead else 1)
        if who.compiled and self.left < needed:
            entry.note = "no time left"
            self.say(f"{who.kind}, {who.name}: not measured, no time left")
            return entry
        while True:
            try:
                self._start(entry)
                break
            except torch.OutOfMemoryError:
                entry.call = None
                self._tidy()
                if entry.micro == 1 or who.compiled:  # which would take as long again
                    entry.note = f"out of memory with {entry.micro} images a call"
                    return entry
                entry.micro //= 2
            except Exception as error:  # The others' rows are worth having without this one.
                entry.call, entry.note = None, f"failed: {type(error).__name__}: {error}"[:200]
                self.say(f"{who.kind}, {who.name}: {entry.note}")
                self._tidy()
                return entry
        if entry.micro < who.images:
            entry.note = f"{entry.micro} images a network call, more do not fit"
        self.say(self._row(entry))
        self.write()
        return entry

    def _start(self, entry: Entry) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if self.cuda else 0
        start = time.perf_counter()
        entry.call = entry.who.prepare(entry.micro)
        for _ in range(2):
            entry.call()
            synchronize(self.device)
            entry.started = entry.started or time.perf_counter() - start
        entry.call()
        entry.first = timed(entry.call, self.device)
        entry.seconds.append(entry.first)
        if self.cuda:
            entry.gigabytes = (torch.cuda.max_memory_allocated() - before) / 1e9

    def rounds(self, entries: list[Entry], seconds: float) -> None:
        """Times in turns, until the seconds are over or everybody has ROUNDS of them."""
        racing = [e for e in entries if e.call is not None]
        for entry in racing:
            entry.seconds.clear()
        end = min(time.perf_counter() + seconds, self.end)
        for number in range(ROUNDS):
            for entry in racing:
                assert entry.call is not None
                # Where memory is short, the first call takes it from those before.
                entry.call()
                # A second in a row: a training step begins while the last one's end is worked on.
                repeat = max(1, min(10, round(1 / entry.first)))
                entry.seconds.append(timed(entry.call, self.device, repeat))
            self.write()
            if time.perf_counter() > end or (number and self.left < 0):
                break
        for entry in racing:
            self.say(self._row(entry))

    def synchronisations(self, entry: Entry) -> None:
        """How often the host waits for the device in a step, as torch's debug mode counts it."""
        if entry.call is None:
            return
        if not self.cuda:
            self.facts.append("Host synchronisations a training step: not counted without CUDA.")
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                entry.call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found = [w for w in caught if "called a synchronizing" in str(w.message)]
        places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in found})
        self.facts.append(
            f"Host synchronisations a training step of {entry.who.name}: {len(found)}"
            + (f" ({', '.join(places[:8])})." if found else " (passes).")
        )
        self.say(self.facts[-1])

    def release(self, entries: list[Entry]) -> None:
        """Give the memory of their networks back."""
        for entry in entries:
            entry.call = None
        self._tidy()

    def _tidy(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def _utilisation(self, entry: Entry) -> float:
        gemm = self.rates.get("gemm bfloat16")
        return entry.rate * entry.who.flops / gemm if gemm else 0.0

    def _row(self, entry: Entry) -> str:
        return (
            f"{entry.who.kind}, {entry.who.name}: {entry.rate:.1f} images/s, "
            f"{100 * self._utilisation(entry):.1f} % of the bf16 matrix rate, "
            f"{entry.gigabytes:.1f} GB, first step after {entry.started:.1f} s"
        )

    def table(self) -> str:
        """Everything measured so far, as Markdown."""
        lines = ["# One GPU: training and sampling against diffusers", "", about(self.device), ""]
        if self.rates:
            lines += ["| ceiling | measured |", "|---|---:|"]
            for name, rate in self.rates.items():
                copy = name == "copy"
                amount = f"{rate / 1e9:,.0f} GB/s" if copy else f"{rate / 1e12:.1f} TFLOP/s"
                lines.append(f"| {name} | {amount} |")
            lines.append("")
        lines += [
            f"EDM's DDPM++, {self.size.ours.width} channels, 32x32x3; training batch "
            f"{self.size.batch}; sampling by Heun, {self.size.steps} steps, "
            f"{2 * self.size.steps - 1} network calls, batch {self.size.sampling_batch}.",
            "",
            "| | | images/s | times the best diffusers so far | of the bf16 matrix rate | "
            "GFLOP an image | peak GB | first step after | |",
            "|---|---|---:|---:|---:|---:|---:|---:|---|",
        ]
        for entry in sorted(self.entries, key=lambda e: e.who.kind, reverse=True):
            if not entry.seconds:
                lines.append(f"| {entry.who.kind} | {entry.who.name} | | | | | | | {entry.note} |")
                continue
            peer = max(
                (
                    e.rate
                    for e in self.entries
                    if e.who.kind == entry.who.kind and e.who.name.startswith("diffusers")
                ),
                default=0.0,
            )
            lines.append(
                f"| {entry.who.kind} | {entry.who.name} | {entry.rate:,.1f} | "
                + (f"{entry.rate / peer:.2f} | " if peer else " | ")
                + f"{100 * self._utilisation(entry):.1f} % | {entry.who.flops / 1e9:.1f} | "
                f"{entry.gigabytes:.1f} | {entry.started:.1f} s | {entry.note} |"
            )
        lines += [
            "",
            "Medians of up to "
            f"{ROUNDS} interleaved rounds, the device waited for around each. TF32 and cudnn's "
            "search for algorithms are on for everybody. Ours trains with the preset `edm`: its "
            "augmentation included, through `sfumato.training.loop.train` and "
            + ("the data loader." if LOADER else "batches in memory (pillow is not installed)."),
            "",
            *self.facts,
            "",
        ]
        return "\n".join(lines)

    def write(self) -> None:
        if self.out is None:
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.out.with_name(self.out.name + ".tmp")
        temporary.write_text(self.table(), encoding="utf-8")
        temporary.replace(self.out)


def about(device: str) -> str:
    """Date, device and versions, as a sentence."""
    cuda = torch.device(device).type == "cuda"
    hardware = torch.cuda.get_device_name() if cuda else platform.processor() or "CPU"
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("triton", "diffusers", "sfumato"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    words = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"{datetime.date.today().isoformat()}; {hardware}, {os.cpu_count()} CPU cores. {words}."


def watch(race: Race) -> None:
    """End the process when the time is up, whatever it is at, with what was measured."""

    def end() -> None:
        race.say("the time is up: this is what was measured")
        race.write()
        print(race.table(), flush=True)
        os._exit(0)

    timer = threading.Timer(max(race.left, 1.0), end)
    timer.daemon = True
    timer.start()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try the script")
    parser.add_argument("--minutes", type=float, default=8.0, help="hard limit of the whole run")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--compiled-before", action="store_true", help="torch.compile's cache knows diffusers"
    )
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--out", type=Path, help="the table as Markdown, rewritten as it grows")
    return parser.parse_args()


def first(size: Size, device: str, kind: str, options: argparse.Namespace) -> list[Contestant]:
    """Who races: ours, as a user gets it, and diffusers."""
    others = [] if options.no_peers else peers(size, device, compiled=False)
    return of_kind([*ours(size, device), *others], kind)


def last(size: Size, device: str, kind: str, options: argparse.Namespace) -> list[Contestant]:
    """Who joins once these have their times: diffusers compiled, which takes minutes to start."""
    if options.no_compile or options.no_peers:
        return []
    return of_kind(peers(size, device, compiled=True), kind)


def of_kind(contestants: list[Contestant], kind: str) -> list[Contestant]:
    return [one for one in contestants if one.kind == kind]


def main() -> None:
    options = arguments()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: give --device cpu --quick to try the script")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    size = QUICK if options.quick else FULL
    race = Race(options.device, size, options.minutes, options.out, ahead=options.compiled_before)
    race.say(about(options.device))
    if not options.no_peers and importlib.util.find_spec("diffusers") is None:
        options.no_peers = True
        race.facts.append("diffusers is not installed: ours alone.")
        race.say(race.facts[-1])
    watch(race)
    if options.compiled_before:
        race.facts.append("torch.compile had compiled these networks before: its start is shorter.")
    race.measure_ceilings()

    for kind in ("training", "sampling"):
        entries = [race.enter(who) for who in first(size, options.device, kind, options)]
        race.rounds(entries, 20.0)
        if kind == "training":
            race.synchronisations(entries[0])
        race.release(entries)
    for kind in ("training", "sampling"):
        entries = [race.enter(who) for who in last(size, options.device, kind, options)]
        race.rounds(entries, 15.0)
        race.release(entries)
    race.write()
    print(race.table(), flush=True)
    if options.out:
        print(f"table: {options.out}")


if __name__ == "__main__":
    main()
