"""Every metric on images spoilt in known ways: does it move, and in the right direction?

    python benchmarks/corruptions.py [-n 1000] [--out TABLE]

Reference: the built-in Fashion-MNIST training images. Clean and spoilt: its test images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _shared import write_text
from numpy.typing import NDArray
from torch.nn import functional as F

from sfumato.data import InMemory, as_arrays, open_images
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.job import carry_out
from sfumato.recipes.evaluation.plan import Reference
from sfumato.recipes.evaluation.sets import Stored
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.task import Places, Task

TABLE = Path(__file__).parent / "results" / "corruptions.md"
METRICS = ("fd", "kid", "pr", "is", "swd", "tint", "memorisation")
Pixels = NDArray[np.uint8]


def blur(x: Pixels, sigma: float) -> Pixels:
    """Gaussian blur."""
    at = torch.arange(-4, 5, dtype=torch.float32)
    line = (-(at**2) / (2 * sigma**2)).exp()
    line = line / line.sum()
    y = torch.from_numpy(x).float()
    y = F.conv2d(F.pad(y, (4, 4, 0, 0), mode="replicate"), line.view(1, 1, 1, -1))
    y = F.conv2d(F.pad(y, (0, 0, 4, 4), mode="replicate"), line.view(1, 1, -1, 1))
    return y.round().clamp(0, 255).byte().numpy()


def noise(x: Pixels, std: float) -> Pixels:
    """White noise of `std` levels of 255."""
    added = np.random.default_rng(0).normal(0, std, x.shape)
    return (x + added).round().clip(0, 255).astype(np.uint8)


def dropped(x: Pixels, labels: NDArray[np.int64], classes: tuple[int, ...]) -> Pixels:
    """Some classes left out, the others repeated in their place."""
    kept = x[~np.isin(labels, classes)]
    return np.resize(kept, x.shape)


def copied(training: Pixels, count: int) -> Pixels:
    """Some training images, and not just those that a metric picks where it looks at some."""
    return training[np.random.default_rng(1).permutation(len(training))[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-n", type=int, default=1000, help="images judged, at most 1000")
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    test, labels = as_arrays(open_images("fashion-mnist:test", labels=True))
    training, _ = as_arrays(open_images("fashion-mnist:train"))
    assert labels is not None
    x, labels, held_out = test[: args.n], labels[: args.n], test[1000:]
    spoilt: dict[str, Callable[[], Pixels]] = {
        "clean": lambda: x,
        "blurred, 1 px": lambda: blur(x, 1.0),
        "noisy, 10 of 255": lambda: noise(x, 10),
        "3 of 10 classes missing": lambda: dropped(x, labels, (0, 3, 7)),
        "50 images over and over": lambda: np.resize(x[:50], x.shape),
        "brighter by 8 of 255": lambda: (x.astype(int) + 8).clip(0, 255).astype(np.uint8),
        "copies of training images": lambda: copied(training, len(x)),
    }
    columns: dict[str, dict[str, float]] = {}
    known, unseen = stored(training, "training images"), stored(held_out, "held-out images")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name, make in spoilt.items():
            task = Task(
                name,
                [stored(make(), name)],
                [Reference("training images", known)],
                known,
                unseen,
                Settings(METRICS),
                Places(),
                Cache(out),
                out,
                "cpu",
                asked=True,
            )
            done = carry_out(task, print)
            assert done is not None
            columns[name] = {row.metric: row.value for row in done[0].evaluation.rows}
    metrics = list(columns["clean"])
    lines = [
        f"# {len(x):,} images spoilt in known ways",
        "",
        f"Fashion-MNIST test images against {len(training):,} training images; features of "
        "EfficientNet-Lite0 at 96 px. `python benchmarks/corruptions.py` makes this table.",
        "",
        "| | " + " | ".join(metrics) + " |",
        "|---" * (len(metrics) + 1) + "|",
        *(
            f"| {name} | " + " | ".join(f"{values[m]:.3g}" for m in metrics) + " |"
            for name, values in columns.items()
        ),
        "",
    ]
    write_text(args.out, "\n".join(lines))
    print("\n".join(lines))


def stored(pixels: Pixels, name: str) -> Stored:
    """A set in memory."""
    return Stored(InMemory(pixels, None, layout="NCHW", source=name), name)


if __name__ == "__main__":
    main()
