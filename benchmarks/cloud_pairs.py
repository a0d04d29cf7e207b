"""Pairs to train a model against clouds, of the kind that restoration.py tests.

    python benchmarks/cloud_pairs.py --data TRAIN --test TEST --out PAIRS [--draws 4] [--mask]
    sfumato train edm-tiny --data PAIRS/train --test PAIRS/test --condition image

TRAIN and TEST are .npy, .zip or folders. Every training image is clouded `--draws` times, covers
drawn between 10 and 60 %, without shadows; test pairs once. Writes input.npy and target.npy; with
`--mask` the input's last channel says which pixels are not the ground as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from _damage import COVERS, TRAINING_SEED, training_pairs
from _shared import write_text
from tqdm import tqdm

from sfumato.data.sources import Subset, open_images

SOFTNESS = 0.5


def write_pairs(
    data: str, out: Path, draws: int, softness: float, seed: int, limit: int, *, mask: bool = False
) -> None:
    images = open_images(data)
    form = images.format
    count = len(images) if not limit else min(limit, len(images))
    if count < len(images):
        images = Subset(images, range(count), images.source)
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    total, size = draws * count, (form.height, form.width)
    inputs, targets = (
        np.lib.format.open_memmap(
            temporary / f"{half}.npy", "w+", np.dtype(form.dtype), (total, *size, channels)
        )
        for half, channels in (("input", form.channels + mask), ("target", form.channels))
    )
    pairs = training_pairs(images, draws, softness, seed)
    for i, (seen, raw, clouded) in enumerate(tqdm(pairs, total=total, unit="pair")):
        inputs[i, ..., : form.channels] = seen.transpose(1, 2, 0)
        if mask:
            inputs[i, ..., -1] = np.where(clouded, form.high, form.low)
        targets[i] = raw.transpose(1, 2, 0)
    inputs.flush()
    targets.flush()
    about = {
        "images": data, "count": count, "draws": draws, "covers": COVERS, "softness": softness,
        "shadow": 0.0, "first_seed": TRAINING_SEED + seed, "mask": mask,
    }  # fmt: skip
    write_text(temporary / "clouds.json", json.dumps(about, indent=2) + "\n")
    if out.exists():
        shutil.rmtree(out)
    temporary.rename(out)
    print(f"{total:,} pairs: {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--test")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--softness", type=float, default=SOFTNESS)
    parser.add_argument("-n", type=int, default=0, help="the first so many images; 0 is all")
    parser.add_argument("--mask", action="store_true", help="the mask as the input's last channel")
    args = parser.parse_args()
    for half in ("train", "test"):
        there = args.out / half
        if there.exists() and not (there / "clouds.json").is_file():
            raise SystemExit(f"{there} holds something else than these pairs: choose another --out")
    write_pairs(args.data, args.out / "train", args.draws, args.softness, 0, args.n, mask=args.mask)
    if args.test:
        write_pairs(
            args.test, args.out / "test", 1, args.softness, 5_000_000, args.n, mask=args.mask
        )


if __name__ == "__main__":
    main()
