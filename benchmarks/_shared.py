"""What the benchmarks share: the machine's description, files, and the Fréchet distance."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import platform
import time
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Uint8 = NDArray[np.uint8]
PACKAGES = ("torch", "diffusers", "sfumato", "numpy")


def read_idx_images(path: Path) -> Uint8:
    """Images [n, H, W] of an unsigned-byte IDX file, gzipped or not."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:4] != b"\0\0\x08\x03":
        raise SystemExit(f"{path}: expected an IDX file of 8-bit images")
    shape = np.frombuffer(content, ">u4", 3, offset=4)
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape).copy()


def machine() -> dict[str, Any]:
    """Date, processor, usable cores, how many of them others keep busy right now, and versions."""
    busy = _busy_cores()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if busy > 0.2:
        print(f"warning: the machine is not idle ({busy:.1f} cores busy); speeds will be too low")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": cores,
        "busy_cores": round(busy, 2),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
    }


def setting(about: Mapping[str, Any], *more: str) -> str:
    """When and on what, as a sentence: `machine()`'s description, and more of it."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    words = "; ".join([f"{about['cores']} cores", *more])
    return f"{about['date']}; {about['processor']}, {words}. {versions}."


def peak_bytes() -> int:
    """Peak resident memory of this process so far.

    Not ru_maxrss, which on Linux begins with what the parent had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _busy_cores(seconds: float = 5.0) -> float:
    """Cores busy over the next seconds; not the load average, which remembers the part before."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return os.getloadavg()[0]

    def times() -> tuple[int, int]:
        user, nice, system, idle, wait = map(int, stat.read_text().split("\n")[0].split()[1:6])
        return user + nice + system, idle + wait

    before = times()
    time.sleep(seconds)
    busy, idle = (b - a for a, b in zip(before, times(), strict=True))
    return (os.cpu_count() or 1) * busy / max(1, busy + idle)


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
        return _of_source_tree() if package == "sfumato" else "not installed"


def _of_source_tree() -> str:
    about = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    return f"{about['project']['version']} (source tree)"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class Kept:
    """Values by name in a JSON file, written as they come: interrupted, a script goes on.

    Ends the script where the file holds values of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.values: dict[str, Any] = {}
        if not path.is_file():
            return
        kept = json.loads(path.read_text("utf-8"))
        if kept["settings"] != self.settings:
            raise SystemExit(
                f"{path} holds values of {kept['settings']}, and these would be of "
                f"{self.settings}: remove it to begin anew"
            )
        self.values = kept["values"]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def add(self, name: str, value: Any) -> None:
        """Keep one more."""
        self.values[name] = value
        write_text(self.path, json.dumps({"settings": self.settings, "values": self.values}))


def write_result(out: Path, name: str, images: Uint8, record: Mapping[str, Any]) -> None:
    """Write OUT/NAME.npz (`samples`, uint8), NAME.png to look at, and last NAME.json."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f"{name}.tmp.npz"
    np.savez_compressed(temporary, samples=images)
    temporary.replace(out / f"{name}.npz")
    _contact_sheet(images).save(out / f"{name}.png")
    write_text(out / f"{name}.json", json.dumps(record, indent=2) + "\n")
    print(f"{name}: {len(images)} images and their record in {out / name}.npz and .json")


def _contact_sheet(images: Uint8, rows: int = 8, columns: int = 16) -> Image.Image:
    shown = images[: rows * columns]
    blank = np.zeros((rows * columns - len(shown), *images.shape[1:]), np.uint8)
    cells = np.concatenate([shown, blank]).reshape(rows, columns, *images.shape[1:])
    height, width = images.shape[1:3]
    sheet = np.moveaxis(cells, 2, 1).reshape(rows * height, columns * width, *images.shape[3:])
    return Image.fromarray(sheet)


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
