"""What an evaluation is asked to measure; torch-free, for a quick command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sfumato.errors import ConfigError

METRICS = {
    "fd": "Fréchet distance in --features",
    "fid": "Fréchet distance in Inception-v3 (FID)",
    "fd-efficientnet": "Fréchet distance in EfficientNet-Lite0",
    "kid": "kernel distance in --features, unbiased",
    "pr": "precision, recall, density, coverage in --features",
    "is": "Inception Score by the classes of --features",
    "swd": "sliced Wasserstein distance of pixels and patches",
    "tint": "shift of every channel and its histogram",
    "memorisation": "nearer to training images than to held-out ones?",
    "classes": "Fréchet distance class by class",
    "psnr": "PSNR, SSIM, MS-SSIM of pairs",
}
DEFAULT = ("fd", "kid", "pr", "swd", "tint", "memorisation")
DISTANCES = ("fd", "fid", "fd-efficientnet")
"""Metrics for which the statistics of a reference are enough."""
FILES = (".pt", ".ts", ".torchscript", ".onnx")
OF_FEATURES = ("fd", "fid", "fd-efficientnet", "kid", "pr", "is", "classes")


@dataclass(frozen=True)
class Settings:
    """What to measure, and how."""

    metrics: tuple[str, ...] = DEFAULT
    """What to measure."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 2000
    """Images to draw from a run."""
    reference_n: int = 10_000
    """Real images to compare with, a fixed random pick of the set; 0: all."""
    features: str = "efficientnet"
    """efficientnet, inception[:FILE, :download], dinov2:FILE, classifier, FILE.pt or FILE.onnx."""
    inception: Path | None = None
    """Inception-v3's weights for fid; if not given, those in the cache folder."""
    resize: Literal["", "antialiased", "tensorflow", "pytorch-fid", "clean-fid"] = ""
    """How images reach the extractor's size; its own way if not given."""
    bands: Literal["first-three", "per-band", "pca"] = "first-three"
    """How more than three channels become three."""
    feed_size: int | None = None
    """Pixels a side of what a .pt or .onnx file takes; as they are if not given."""
    feed_low: float = -1.0
    """What black is for such a file."""
    feed_high: float = 1.0
    """What white is."""
    infinity: bool = False
    """Also extrapolate the Fréchet distance to infinitely many samples."""
    repeats: int = 1
    """Draw n images so many times, from other seeds: mean and error over them."""
    explain: bool = False
    """Also recompute the Fréchet distance under other programs' conventions."""
    seed: int = 0
    """Image i is seeded with seed + i."""

    def __post_init__(self) -> None:
        """Refuse unknown metrics and counts below what makes sense."""
        check_metrics(self.metrics)
        least = {"n": 2, "reference_n": 0, "repeats": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} must be {low} or more, not {getattr(self, name)}")
        self._check_feeding()
        if self.explain and self.bands == "per-band":
            raise ConfigError("--explain recomputes one number, not one a band: leave out --bands")

    def _check_feeding(self) -> None:
        own = is_file(self.features)
        feeding = (self.feed_size, self.feed_low, self.feed_high)
        if not own and feeding != (None, -1.0, 1.0):
            raise ConfigError(
                "--feed-size, --feed-low and --feed-high are for --features FILE.pt or FILE.onnx, "
                f"not for {self.features}"
            )
        used = {self.extractor_for(metric) for metric in self.metrics if metric in OF_FEATURES}
        if own and self.resize and self.feed_size is None and self.features in used:
            raise ConfigError(
                f"--resize {self.resize} needs the size that {self.features} takes: --feed-size"
            )
        if not self.feed_low < self.feed_high:
            raise ConfigError(
                f"--feed-low must be below --feed-high, not {self.feed_low:g} and "
                f"{self.feed_high:g}"
            )

    def extractor_for(self, metric: str) -> str:
        """The words for the extractor of one metric."""
        if metric == "fid":
            if self.inception is None and self.features.startswith("inception:"):
                return self.features
            return f"inception:{self.inception}" if self.inception else "inception"
        return "efficientnet" if metric == "fd-efficientnet" else self.features


def is_file(features: str) -> bool:
    """Whether these words for features name the user's own network."""
    named = features.partition(":")[0] in ("inception", "dinov2")
    return not named and Path(features).suffix.lower() in FILES


def check_metrics(metrics: Sequence[str]) -> None:
    """ConfigError for a metric that does not exist, suggesting the nearest."""
    for name in metrics:
        if name not in METRICS:
            close = difflib.get_close_matches(name, METRICS, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"unknown metric {name!r}; {hint}known: {', '.join(METRICS)}")
