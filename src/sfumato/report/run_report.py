"""What the page of a training run may show, as plain arrays and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sfumato.report.grid import Images
from sfumato.report.html import Cell


@dataclass(frozen=True)
class LevelLoss:
    """Loss [n] per noise level sigma [n], the training density [n] of ln sigma, and advice."""

    sigma: Sequence[float]
    loss: Sequence[float]
    density: Sequence[float] | None = None
    advice: str = ""
    """For instance a P_mean and P_std that would fit better."""


@dataclass(frozen=True)
class Neighbours:
    """Some samples beside their nearest training images, and all distances."""

    samples: Images
    """[m, C, H, W], those to show."""
    nearest: Images
    """[m, C, H, W], the nearest training image of each."""
    distances: Sequence[float]
    """[n] of all samples to their nearest training image; the first m belong to `samples`."""
    unit: str = "root mean square per value, images in [-1, 1]"
    ratio: float | None = None
    """Median distance to training images over that to as many held-out ones."""
    closer_share: float | None = None
    """Share of samples nearer to training than to as many held-out images; 0.5 by chance."""
    closer_share_error: float | None = None
    searched: int | None = None
    """Among how many training images the nearest were looked for, picked at random ..."""
    total: int | None = None
    """... of so many."""


@dataclass(frozen=True)
class FrechetRow:
    """A Fréchet distance with what is needed to compare it."""

    name: str
    """What was compared, such as 'samples against held-out images'."""
    value: float
    n: int
    reference_n: int
    extractor: str
    real_vs_real: float | None = None
    """The same number for real images: the floor, where `real_n` is about n."""
    real_n: int | None = None
    """How many real images that was measured with; None: n of them."""


@dataclass(frozen=True)
class ClassRow:
    """How often a class is drawn, and how sure the classifier is of it (both 0 to 1)."""

    name: str
    share: float
    confidence: float | None = None
    real_share: float | None = None


@dataclass(frozen=True)
class RunReport:
    """Everything the page of a training run may show; what is empty or None is left out."""

    name: str
    subtitle: str = ""
    recipe: Mapping[str, Cell] = field(default_factory=dict[str, Cell])
    commands: Sequence[str] = ()
    """Command lines that reproduce the run."""
    log: Sequence[Mapping[str, Any]] = ()
    """Records with 'images' and 'loss'; also read: 'images_per_second', 'waited_share' (the share
    of time spent waiting for data, 0 to 1)."""
    images_seen: int | None = None
    """By the run; None: what the log's last record says."""
    levels: LevelLoss | None = None
    samples: Images | None = None
    real: Images | None = None
    trajectory: Sequence[Images] = ()
    """The same few images at successive steps, noise first; shown without enlargement."""
    neighbours: Neighbours | None = None
    frechet: Sequence[FrechetRow] = ()
    classes: Sequence[ClassRow] = ()
    class_note: str = ""
    """Which classifier, and its held-out accuracy."""
    timings: Mapping[str, float] = field(default_factory=dict[str, float])
    """Name: seconds."""
    environment: Mapping[str, Cell] = field(default_factory=dict[str, Cell])
    warnings: Sequence[str] = ()
