"""Our side of a benchmark: `sfumato train` and `sfumato sample`, as a user would run them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _shared import Uint8, machine


def train_and_sample(
    recipe: str,
    data: Path,
    out: Path,
    name: str,
    minutes: float,
    n: int,
    options: Sequence[str] = (),
) -> tuple[Uint8, dict[str, Any]]:
    """Train `recipe` on `data` for some minutes; return n samples and what the run recorded."""
    record: dict[str, Any] = {"label": f"sfumato {recipe}", **machine()}
    run, folder = out / f"{name}-run", out / f"{name}-samples"
    if run.exists() or folder.exists():
        raise SystemExit(f"{run} or {folder} exists already: remove them, or give another --out")
    # Only training, as the peer does: no previews, no report.
    quiet = ["--no-report", "--no-tensorboard", "--sample-every", "1000000000", "--out", str(run)]
    start = time.perf_counter()
    length = ["--minutes", str(minutes), "--images", "1000000000"]
    _sfumato("train", recipe, "--data", str(data), *length, *quiet, *options)
    record["command_seconds"] = time.perf_counter() - start
    _sfumato("sample", str(run), "-n", str(n), "--out", str(folder))
    return _read_folder(folder), record | _ours_record(run, folder)


def _sfumato(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "sfumato", *arguments], check=True)


def _ours_record(run: Path, folder: Path) -> dict[str, Any]:
    import tomllib

    from sfumato.recipes.loading import load
    from sfumato.training.checkpoint import read_description

    sampled = tomllib.loads((folder / "sample.toml").read_text())
    sampler, model = sampled["sampler"], load(str(run))
    trained = read_description(model.path)
    seconds = trained["describe"]["seconds"]
    calls = sampler["steps"] * 2 - 1 if sampler["solver"] == "heun" else sampler["steps"]
    return {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "arithmetic": sampled["precision"],
        "threads": sampled["environment"].get("threads"),
        "steps": trained["step"],
        "images": trained["images"],
        "training_seconds": seconds,
        "images_per_second": trained["images"] / seconds,
        "sampler": f"{sampler['solver']} {sampler['steps']}",
        "network_calls": calls,
        "seconds_per_1000": 1000 * sampled["seconds"] / sampled["images"],
        "config": (run / "config.toml").read_text(),
    }


def _read_folder(folder: Path) -> Uint8:
    from PIL import Image

    paths = sorted(path for path in folder.glob("*.png") if path.name != "grid.png")
    return np.stack([np.asarray(Image.open(path)) for path in paths])
