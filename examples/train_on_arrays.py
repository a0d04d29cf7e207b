"""Train on an array of your own (any number of bands, any depth) and draw new ones.

python examples/train_on_arrays.py --minutes 5
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import sfumato


def blobs(count: int, size: int = 16) -> np.ndarray:
    """Make 16-bit images of two bands: a bright disc, and its distance to the centre."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1)
    centre = rng.uniform(4, size - 4, (count, 1, 1, 2))
    distance = np.linalg.norm(grid - centre, axis=-1)
    disc = 1 / (1 + np.exp(2 * (distance - rng.uniform(2, 4, (count, 1, 1)))))
    bands = np.stack([disc, np.exp(-distance / 5)], 1)
    return np.rint(bands * 65535).astype(np.uint16)  # [count, 2, size, size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path("runs/blobs"))
    options = parser.parse_args()

    options.out.parent.mkdir(parents=True, exist_ok=True)
    path = options.out.parent / "blobs.npy"
    np.save(path, blobs(2000))
    images = sfumato.open_images(path, layout="NCHW")
    recipe = replace(sfumato.recipe("edm-tiny"), flip=True)
    run = sfumato.train(recipe, images, options.out, minutes=options.minutes, report=False)
    for record in run:
        if record.step % 50 == 0:
            print(f"{record.images:,} images, loss {record.loss:.4f}")

    model = sfumato.load(options.out)
    paths = sfumato.save_images(model.sample(16, seed=0), model.format, options.out / "new")
    print(f"16 new images of {model.format.describe()}: {paths[0].parent}")


if __name__ == "__main__":
    main()
