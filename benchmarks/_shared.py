"""What the benchmarks share: the machine's description, files, and the Fréchet distance."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Uint8 = NDArray[np.uint8]
PACKAGES = ("torch", "diffusers", "sfumato", "numpy")


def read_idx_images(path: Path) -> Uint8:
    """Images [n, H, W] of an unsigned-byte IDX file, gzipped or not."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:4] != b"\0\0\x08\x03":
        raise SystemExit(f"{path}: expected an IDX file of 8-bit images")
    shape = np.frombuffer(content, ">u4", 3, offset=4)
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape)


def machine() -> dict[str, Any]:
    """Date, processor, usable cores, one-minute load at this moment, and versions."""
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if load > 0.5:
        print(f"warning: the machine is not idle (load {load:.1f}); speeds will be too low")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": cores,
        "load": round(load, 2),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
    }


def _processor() -> str:
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        pairs = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        fields = {key.strip(): value.strip() for key, _, value in pairs}
    name = fields.get("model name") or platform.processor() or platform.machine()
    # Virtual machines hide the marketing name; family and model still tell the generation.
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if fields else name


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_result(out: Path, name: str, images: Uint8, record: Mapping[str, Any]) -> None:
    """Write OUT/NAME.npz (`samples`, uint8) and then OUT/NAME.json."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f"{name}.tmp.npz"
    np.savez_compressed(temporary, samples=images)
    temporary.replace(out / f"{name}.npz")
    write_text(out / f"{name}.json", json.dumps(record, indent=2) + "\n")
    print(f"{name}: {len(images)} images and their record in {out / name}.npz and .json")


class FrechetScore:
    """Fréchet distance of uint8 images to one reference set, in EfficientNet-Lite0 features."""

    def __init__(self, reference: Uint8) -> None:
        from sfumato.metrics.efficientnet import efficientnet_features

        self.extractor = efficientnet_features()
        self.reference = self._statistics(reference)

    def __call__(self, images: Uint8) -> float:
        """Squared Fréchet distance of images [n, H, W] or [n, H, W, C] to the reference."""
        from sfumato.metrics.frechet import frechet_distance

        return frechet_distance(self._statistics(images), self.reference)

    def _statistics(self, images: Uint8, batch: int = 512) -> Any:
        import torch

        from sfumato.metrics.features import extract

        stack = images[..., None] if images.ndim == 3 else images
        start = time.perf_counter()
        statistics = extract(
            (
                torch.from_numpy(stack[i : i + batch]).permute(0, 3, 1, 2).float() / 127.5 - 1
                for i in range(0, len(stack), batch)
            ),
            self.extractor,
        )
        print(f"  features of {len(stack)} images in {time.perf_counter() - start:.0f} s")
        return statistics
