"""How long an evaluation takes: features of 10,000 images, and the Fréchet distance itself.

python benchmarks/evaluation_speed.py
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import torch
from _shared import machine, setting, write_text

from sfumato.metrics.efficientnet import efficientnet_features
from sfumato.metrics.features import extract
from sfumato.metrics.frechet import FeatureStatistics, frechet_distance

TABLE = Path(__file__).parent / "results" / "evaluation_speed.md"
IMAGES = 10_000


def main() -> None:
    about = machine()
    draw = torch.Generator().manual_seed(0)
    batches = [torch.rand(500, 3, 32, 32, generator=draw) * 2 - 1 for _ in range(IMAGES // 500)]
    extractor = efficientnet_features()
    start = time.perf_counter()
    made = extract(batches, extractor)
    features = time.perf_counter() - start
    rows = [("features of 10,000 images 32 x 32, EfficientNet-Lite0 at 96 px", features)]
    for dimensions in (made.dimensions, 2048):
        sets = [gaussian(dimensions, seed) for seed in (0, 1)]
        times: list[float] = []
        for _ in range(5):
            start = time.perf_counter()
            frechet_distance(*sets)
            times.append(time.perf_counter() - start)
        rows.append(
            (f"Fréchet distance, {dimensions}-d, both at full rank", statistics.median(times))
        )
    lines = [
        "# Time of an evaluation",
        "",
        setting(about, f"busy before: {about['busy_cores']}"),
        "",
        "| | seconds |",
        "|---|---:|",
        *(f"| {name} | {seconds:.1f} |" for name, seconds in rows),
        "",
    ]
    write_text(TABLE, "\n".join(lines))
    print("\n".join(lines))


def gaussian(dimensions: int, seed: int) -> FeatureStatistics:
    """Statistics of correlated features, more of them than dimensions."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dimensions, dimensions)) / dimensions**0.5
    made = FeatureStatistics(dimensions)
    made.update(rng.normal(size=(2 * dimensions, dimensions)) @ mixing)
    return made


if __name__ == "__main__":
    main()
