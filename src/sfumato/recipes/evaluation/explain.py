"""The same images under other programs' conventions: which one moves the number, and how far."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato.metrics.frechet import FeatureStatistics, frechet_distance
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.evaluation.extractors import RESIZES
from sfumato.recipes.evaluation.plan import Reference
from sfumato.recipes.evaluation.sets import ImageSet
from sfumato.recipes.evaluation.table import FeatureTable
from sfumato.recipes.evaluation.workbench import Workbench

_USERS = {
    "antialiased": "ours",
    "tensorflow": "EDM, ADM, torch-fidelity",
    "pytorch-fid": "pytorch-fid",
    "clean-fid": "clean-fid",
}
_JPEG = (95, 75)


@dataclass(frozen=True)
class Convention:
    """The Fréchet distance when one thing is done differently."""

    name: str
    value: float
    change: float
    """Against the number of the table."""


def explain(
    bench: Workbench, metric: str, samples: ImageSet, reference: Reference
) -> list[Convention]:
    """Recompute one Fréchet distance under other conventions; empty in all processes but the first.

    Resizes change both sets (not possible for extractors with a size of their own); compression,
    truncation and the number of images change the samples only.
    """
    assert reference.images is not None
    words = bench.settings.extractor_for(metric)
    ours, target = bench.table(samples, words), bench.table(reference.images, words)
    pairs: list[tuple[str, FeatureTable, FeatureTable]] = []
    for resize in _others(bench, words):
        name = f"resize: {RESIZES[resize].name} ({_USERS[resize]})"
        there = bench.table(reference.images, words, resize)
        pairs.append((name, bench.table(samples, words, resize), there))
    for name, altered in _altered(bench, samples, words):
        pairs.append((name, altered, target))
    if not bench.processes.first:
        return []
    real = target.statistics()
    whole = frechet_distance(ours.statistics(), real)
    title = "as in the table" if bench.settings.repeats == 1 else "the first repeat, as it is"
    found = [Convention(title, whole, 0.0)]
    for name, a, b in pairs:
        value = frechet_distance(a.statistics(), real if b is target else b.statistics())
        found.append(Convention(name, value, value - whole))
    if len(samples) >= 4:
        half = FeatureStatistics(real.dimensions)
        half.update(ours.rows(len(samples) // 2))
        value = frechet_distance(half, real)
        found.append(Convention(f"half as many samples ({half.count})", value, value - whole))
    return found


def _others(bench: Workbench, words: str) -> list[str]:
    """The resizes other than the one in use, where the extractor has a choice."""
    if words != "efficientnet" and not words.startswith(("inception", "dinov2:")):
        return []
    used = bench.extractor(words)
    if not hasattr(used, "resize"):  # a TorchScript file resizes by itself
        return []
    return [name for name in RESIZES if bench.extractor(words, name).name != used.name]


def _altered(bench: Workbench, samples: ImageSet, words: str) -> list[tuple[str, FeatureTable]]:
    """Features of the samples saved differently."""
    made: list[tuple[str, FeatureTable]] = []
    form = samples.format
    if form.dtype == "uint8" and form.levels == 256 and form.channels in (1, 3):
        for quality in _JPEG:
            name = f"samples saved as JPEG, quality {quality}"

            def compress(x: Tensor, quality: int = quality) -> Tensor:
                return _jpeg(x, quality)

            made.append((name, bench.table(samples, words, alter=(name, compress))))
    if isinstance(samples, Drawn) and form.levels is not None:
        name = "samples truncated to whole levels instead of rounded"
        made.append((name, bench.table(Truncated(samples), words)))
    return made


class Truncated:
    """Drawn images cut off at the level below, as a plain cast to integers does."""

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn
        self.name, self.format, self.classes = "truncated samples", drawn.format, drawn.classes
        self.description = {**drawn.description, "rounding": "down"}

    def __len__(self) -> int:
        return len(self._drawn)

    def chunk(self, number: int) -> NDArray[Any]:
        """Raw images [n, C, H, W]."""
        form = self.format
        x = self._drawn.before_rounding(number).double().clamp(-1, 1)
        raw = (x + 1) * ((form.high - form.low) / 2) + form.low
        return raw.floor().numpy().astype(form.dtype)

    def labels(self) -> NDArray[np.int64] | None:
        """The class each image was asked to be."""
        return self._drawn.labels()


def _jpeg(x: Tensor, quality: int) -> Tensor:
    """8-bit images [n, C, H, W] in [-1, 1] after JPEG (4:2:0 as programs do by default)."""
    levels = ((x + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()
    out: list[NDArray[np.uint8]] = []
    for image in levels:
        memory = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            memory, "JPEG", quality=quality
        )
        read = np.asarray(Image.open(memory))
        out.append(read[..., None] if read.ndim == 2 else read)
    return torch.from_numpy(np.stack(out)).movedim(-1, 1).float() / 127.5 - 1
