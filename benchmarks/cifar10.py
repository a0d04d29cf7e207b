"""CIFAR-10 with our tiny recipe alone: a baseline to improve on.

    python benchmarks/cifar10.py --data FOLDER --out FOLDER

FOLDER holds zips of PNG images: cifar10-train*.zip and cifar10-test.zip.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from _ours import train_and_sample
from _shared import FrechetScore, Uint8, write_result, write_text

TABLE = Path(__file__).parent / "results" / "cifar10.md"


def unpack(archives: list[Path], target: Path) -> Uint8:
    """Gather the images of some zips in one .npy and return them, [n, 32, 32, 3]."""
    from sfumato.data.sources import open_images

    if not target.exists():
        sets = [open_images(archive) for archive in archives]
        arrays = [images.read(range(len(images))) for images in sets]
        np.save(target, np.concatenate(arrays).transpose(0, 2, 3, 1))
    return np.load(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--recipe", default="edm-tiny")
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train_file = args.out / "cifar10-train.npy"
    training = unpack(sorted(args.data.glob("cifar10-train*.zip")), train_file)
    test = unpack([args.data / "cifar10-test.zip"], args.out / "cifar10-test.npy")

    samples, r = train_and_sample(
        args.recipe, train_file, args.out, "cifar10", args.minutes, args.n, ["--flip"]
    )
    write_result(args.out, "cifar10", samples, r)
    draw = np.random.default_rng(0)
    real = training[draw.choice(len(training), args.n, replace=False)]
    against_test = FrechetScore(test)
    against_train = FrechetScore(training[draw.choice(len(training), len(test), replace=False)])
    versions = ", ".join(f"{name} {number}" for name, number in r["versions"].items())
    text = f"""# CIFAR-10, ours alone

{r["date"]}; {r["processor"]}, {r["cores"]} cores; busy before: {r["busy_cores"]}. {versions}.

`sfumato train {args.recipe} --flip` for {r["training_seconds"] / 60:.1f} minutes on \
{len(training):,} training images, without classes; {args.n:,} samples. Fréchet distance in \
{against_test.extractor.name} (weights {against_test.extractor.fingerprint}).

| | |
|---|---:|
| parameters | {r["parameters"]:,} |
| arithmetic | {r["arithmetic"]} |
| training images/s | {r["images_per_second"]:.1f} |
| images seen | {r["images"]:,} |
| sampler (network calls) | {r["sampler"]} ({r["network_calls"]}) |
| seconds per 1,000 samples | {r["seconds_per_1000"]:.0f} |
| Fréchet distance to {len(test):,} test images | {against_test(samples):.1f} |
| the same for {args.n:,} real training images | {against_test(real):.1f} |
| Fréchet distance to {len(test):,} training images | {against_train(samples):.1f} |
"""
    write_text(args.table, text)
    print(text)


if __name__ == "__main__":
    main()
