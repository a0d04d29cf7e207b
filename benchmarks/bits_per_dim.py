"""Bits per dimension: the bound as the objective against L_simple, lossless files, other images.

    python benchmarks/bits_per_dim.py --data FOLDER --out FOLDER

FOLDER of Fashion-MNIST's IDX files; --cifar a .npy of CIFAR-10's images, to look at images unlike
those of training. What is trained and measured already is not done again.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _shared import Uint8, machine, read_idx_images, setting, write_text
from numpy.typing import NDArray
from PIL import Image

TRAIN, TEST = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"
TABLE = Path(__file__).parent / "results" / "bits_per_dim.md"


@dataclass(frozen=True)
class Run:
    """One training, and the variances it is measured with."""

    words: tuple[str, ...]
    about: str
    variances: tuple[str, ...] = ("",)


RUNS = {
    "bound": Run(("iddpm-vlb-tiny",), "the bound, loss-aware levels, learned variance"),
    "hybrid": Run(("iddpm-tiny",), "L_hybrid: L_simple, the variance learned beside it"),
    "simple": Run(
        ("iddpm-tiny", "--objective", "simple", "--variance", "zero"),
        "L_simple",
        ("zero", "unit-gaussian"),
    ),
}
BEST = "bound"


def sfumato(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "sfumato", *words], check=True)


def measure(run: Path, data: Path, out: Path, n: int, threads: int, *more: str) -> Path:
    """Bits per dimension of each image by the command line, if not there yet."""
    if not (out / "per-image.csv").exists():
        words = ["likelihood", str(run), "--data", str(data), "-n", str(n), "--no-gap"]
        words += ["--per-image", "--out", str(out), "--threads", str(threads), "--force", *more]
        sfumato(*words)
    return out


def column(folder: Path, name: str = "bound") -> NDArray[np.float64]:
    """What likelihood wrote of each image."""
    with (folder / "per-image.csv").open() as file:
        values = [row[name] for row in csv.DictReader(file)]
    return np.array([float(value) for value in values if value])


def coded(images: Uint8, form: str, header: int) -> NDArray[np.float64]:
    """Bits per dimension of each image as a file, less `header` bytes of its container."""
    options = {"WEBP": {"lossless": True, "quality": 100, "method": 6}, "PNG": {"optimize": True}}
    bits: list[float] = []
    for image in images:
        memory = io.BytesIO()
        Image.fromarray(image).save(memory, form, **options[form])
        bits.append(8 * (memory.tell() - header) / image.size)
    return np.array(bits)


def others(test: Uint8, cifar: Path | None) -> dict[str, Uint8]:
    """Images unlike those of training, of the same shape."""
    made = {"upside down": test[:, ::-1].copy(), "inverted": 255 - test}
    made["pixels shuffled"] = (
        np.random.default_rng(0).permuted(test.reshape(len(test), -1), axis=1).reshape(test.shape)
    )
    if cifar is not None:
        colour = np.load(cifar)[: len(test), 2:30, 2:30].astype(np.float64)
        made["CIFAR-10, grey, 28 x 28 of it"] = np.round(
            colour @ np.array([0.299, 0.587, 0.114])
        ).astype(np.uint8)
    return made


def auc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """How often an image from outside needs more bits than one from inside."""
    return float((outside[:, None] > inside[None]).mean())


def mean(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=96_000)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    about = machine()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, run in RUNS.items():
        if not (args.out / name).exists():
            words = ["train", *run.words, "--data", str(args.data / TRAIN)]
            words += ["--images", str(args.images), "--no-report", "--keep", "1"]
            words += ["--threads", str(args.threads), "--out", str(args.out / name)]
            sfumato(*words)
    test = read_idx_images(args.data / TEST)[: args.n]
    held_out = args.out / "test.npy"
    np.save(held_out, test)
    bits: dict[tuple[str, str], NDArray[np.float64]] = {}
    for name, run in RUNS.items():
        for variance in run.variances:
            more = ("--variance", variance) if variance else ()
            out = args.out / f"{name}-{variance or 'own'}"
            measure(args.out / name, held_out, out, args.n, args.threads, *more)
            bits[name, variance] = column(out)
    best = bits[BEST, ""]
    rows = [
        f"| {RUNS[name].about}{f', variance {variance}' if variance else ''} | {mean(values)} | "
        + ("" if name == BEST else mean(values - best))
        + " |"
        for (name, variance), values in bits.items()
    ]
    for form, header in (("WEBP", 0), ("WEBP", 20), ("PNG", 0)):
        values = coded(test, form, header)
        less = f", less its {header} bytes of container" if header else ""
        rows.append(f"| lossless {form}{less} | {mean(values)} | {mean(values - best)} |")
    flow = column(args.out / f"{BEST}-own", "flow")
    facts = json.loads((args.out / f"{BEST}-own" / "likelihood.json").read_text())["facts"]
    outside: list[str] = []
    for name, images in others(test, args.cifar).items():
        file = args.out / f"{name.split(',')[0].replace(' ', '-')}.npy"
        np.save(file, images)
        out = args.out / f"other-{file.stem}"
        measure(args.out / BEST, file, out, args.n, args.threads, "--flow", "0")
        values = column(out)
        webp = coded(images, "WEBP", 0)
        outside.append(
            f"| {name} | {mean(values)} | {auc(best, values):.3f} | {mean(webp)} | "
            f"{auc(best - coded(test, 'WEBP', 0), values - webp):.3f} |"
        )
    lines = [
        "# Bits per dimension: Fashion-MNIST",
        "",
        setting(about),
        "",
        f"One network (`iddpm-tiny`'s, 1,000 cosine levels), {args.images:,} training images for "
        f"each objective, the same seed; {args.n:,} test images, {facts['levels']}. ± is one "
        "standard error; differences are paired, image by image.",
        "",
        "| trained by / coded as | bits per dimension | more than the bound's |",
        "|---|---:|---:|",
        *rows,
        "",
        f"The flow of the model trained by its bound gives {mean(flow)} on the first "
        f"{len(flow)} images, where its bound is {mean(best[: len(flow)])}.",
        "",
        "## Images unlike those of training",
        "",
        "The same model. AUC: how often an image from outside needs more bits than a test image; "
        "in the last column, more bits *than WebP takes for the same image*, for a simple image "
        "needs few bits of any model.",
        "",
        "| images | bits per dimension | AUC | lossless WEBP | AUC, less WebP's bits |",
        "|---|---:|---:|---:|---:|",
        f"| test images | {mean(best)} | 0.5 | {mean(coded(test, 'WEBP', 0))} | 0.5 |",
        *outside,
        "",
    ]
    write_text(TABLE, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
