"""Whether bfloat16 draws the same pictures: distances to real images, and pixels, by seed.

    python benchmarks/precision.py --run RUN --data TEST.npy --name cifar-10 [-n 500] [--sets 4]

TEST.npy holds images [n, H, W(, C)], 8 bits, of the run's size. Every set of seeds is drawn in
float32 and in bfloat16. The two distances of a set differ by what the arithmetic does; those of the
sets in float32 differ by chance alone. Sets are kept in a JSON file beside the table as they come:
interrupted, or asked for more sets, the same command goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from _shared import FrechetScore, Kept, Uint8, machine, setting, write_text

from sfumato.data.pixels import to_model
from sfumato.metrics.paired import psnr
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model

RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("float32", "bfloat16")
APART = 100_000
"""Between the first seeds of two sets."""
Score = Callable[[Uint8], float]


def drawn(model: Model, precision: str, seeds: range) -> tuple[Uint8, float]:
    """8-bit images [n, C, H, W], one a seed, and the seconds one took."""
    start = time.perf_counter()
    images = np.concatenate(list(model.with_precision(precision).samples(seeds)))
    return images, (time.perf_counter() - start) / len(seeds)


def measured(model: Model, score: Score, seeds: range) -> dict[str, Any]:
    """What there is to say of one set of seeds."""
    row: dict[str, Any] = {}
    found = {}
    for precision in PRECISIONS:
        images, seconds = drawn(model, precision, seeds)
        found[precision] = images
        row[precision] = {"frechet": score(images.transpose(0, 2, 3, 1)), "seconds": seconds}
    return {**row, **apart(model, *found.values())}


def apart(model: Model, first: Uint8, second: Uint8) -> dict[str, Any]:
    """How far pictures [n, C, H, W] of the same seeds are: levels of 255, share of pixels, dB."""
    levels = np.abs(first.astype(np.int16) - second)
    decibels = psnr(to_model(first, model.format), to_model(second, model.format))
    differ = decibels[decibels.isfinite()]
    return {
        "levels": float(levels.mean()),
        "beyond": float((levels > 1).mean()),
        "psnr": float(differ.mean()) if len(differ) else None,
        "lowest": float(differ.min()) if len(differ) else None,
        "identical": len(first) - len(differ),
    }


HEADER = [
    "| seeds | Fréchet, float32 | Fréchet, bfloat16 | bfloat16 - float32 | levels of 255 | "
    "beyond one level | PSNR, dB | lowest PSNR | s an image, float32 | bfloat16 |",
    "|---|" + "---:|" * 9,
]


def line(name: str, row: dict[str, Any]) -> str:
    here, there = (row[precision] for precision in PRECISIONS)
    decibels = ["" if row[key] is None else f"{row[key]:.2f}" for key in ("psnr", "lowest")]
    cells = [
        f"{here['frechet']:.2f}",
        f"{there['frechet']:.2f}",
        f"{there['frechet'] - here['frechet']:+.2f}",
        f"{row['levels']:.3f}",
        f"{100 * row['beyond']:.2f} %",
        *decibels,
        f"{here['seconds']:.3f}",
        f"{there['seconds']:.3f}",
    ]
    return f"| {' | '.join([name, *cells])} |"


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Means over the sets, and the difference beside what chance does."""
    here, there = ([row[name]["frechet"] for row in rows] for name in PRECISIONS)
    lines = []
    for name, values in zip(PRECISIONS, (here, there), strict=True):
        lines.append(f"- {name}: {spread(values)} over {len(values)} sets.")
    gaps = [b - a for a, b in zip(here, there, strict=True)]
    mean, chance = fmean(gaps), stdev(here)
    error = stdev(gaps) / len(gaps) ** 0.5
    return [
        *lines,
        f"- bfloat16 - float32, the same seeds: {mean:+.3f}, standard error {error:.3f}: a shift "
        f"of {100 * mean / fmean(here):+.2f} %.",
        f"- That is {abs(mean) / chance:.2f} of the standard deviation between sets of other seeds "
        f"in float32 ({chance:.2f}).",
    ]


def spread(values: list[float]) -> str:
    return f"{fmean(values):.2f} +- {stdev(values):.2f}"


def report(
    about: dict[str, Any], args: argparse.Namespace, model: Model, kept: Kept, names: list[str]
) -> str:
    where = "cpu" if args.device == "cpu" else torch.cuda.get_device_name()
    sampler, busy = model.recipe.sampler, ", ".join(map(str, kept["busy"]))
    words = (f"{torch.get_num_threads()} threads", f"model on {where}", f"busy before: {busy}")
    lines = [
        f"# The same pictures in bfloat16: {args.name}",
        "",
        setting(about, *words),
        "",
        f"`{model.recipe.name}`, {model.images_seen:,} training images; {sampler.solver}, "
        f"{sampler.steps} steps. {args.n:,} images a set, the same seeds in both precisions, "
        "channels last in both. "
        f"Fréchet distance to {kept.settings['reference']:,} test images in "
        "EfficientNet-Lite0 features; so few images bias it upwards, in both precisions alike. "
        "Levels: the mean difference of a pixel's 8-bit values for the same seed; PSNR: of one "
        "picture to the other, mean and lowest of those that differ.",
        "",
        *HEADER,
        *(line(name, kept[name]) for name in names),
        "",
        "Fréchet distance, mean and standard deviation of a set:",
        "",
        *summary([kept[name] for name in names]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("-n", type=int, default=500, help="images a set")
    parser.add_argument("--sets", type=int, default=4, help="at least 2")
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--reference-n", type=int, default=10_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.sets < 2:
        parser.error("a spread takes two sets at least: --sets 2")
    about = machine()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load(args.run, device=args.device)
    if model.format.dtype != "uint8":
        raise SystemExit(f"{args.run}: expected a model of 8-bit images")
    sampler = replace(model.recipe.sampler, solver="heun", steps=args.steps, batch=args.batch)
    model = replace(model, recipe=replace(model.recipe, sampler=sampler))
    test = np.array(np.load(args.data, mmap_mode="r")[: args.reference_n])
    settings = {
        "model": model.fingerprint, "data": args.data.name, "reference": len(test), "n": args.n,
        "sampler": str(sampler), "device": args.device, "threads": torch.get_num_threads(),
        "processor": about["processor"], "versions": about["versions"],
    }  # fmt: skip
    kept = Kept(args.results / f"precision_{args.name}.json", settings)
    names = {f"{APART * i} to {APART * i + args.n - 1}": APART * i for i in range(args.sets)}
    missing = [name for name in names if name not in kept]
    if missing:
        kept.add("busy", [*kept.values.get("busy", []), about["busy_cores"]])
        score = FrechetScore(test)
    for name in missing:
        kept.add(name, measured(model, score, range(names[name], names[name] + args.n)))
        print(line(name, kept[name]), flush=True)
    where = kept.path.with_suffix(".md")
    write_text(where, report(about, args, model, kept, list(names)))
    print(where)


if __name__ == "__main__":
    main()
