"""log.jsonl and TensorBoard events: one line for a window of steps, exact across resumption."""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sfumato.report.grid import UInt8
from sfumato.training.loop import Record


class RunLog:
    """Writes a line for every `every` steps: the mean loss of the window, rates and speed.

    `window` holds the sums of the unfinished window, so that a resumed run logs what an
    uninterrupted one would.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path = path_of(folder)
        self.folder, self.every = folder, max(every, 1)
        self.window: dict[str, float] = _empty()
        self._file: TextIO | None = None
        self._board: Any = None
        self._step = 0

    def resume(self, step: int, window: dict[str, float]) -> None:
        """Go back to `step`: later lines of the interrupted run are dropped."""
        self.window = {**_empty(), **window}
        self._step = step
        kept = [line for line in read(self.path) if line["step"] <= step]
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)

    @contextmanager
    def opened(self, *, tensorboard: bool) -> Generator[None]:
        """Keep the files open; TensorBoard's only where it is installed."""
        self._board = _writer(self.folder, self._step) if tensorboard else None
        try:
            with self.path.open("a", encoding="utf-8") as self._file:
                yield
        finally:
            self._file = None
            if self._board is not None:
                self._board.close()

    def add(self, record: Record, seconds: float) -> None:
        """Note one step; write a line where a window is full, or something is to be said."""
        w = self.window
        if not record.skipped and math.isfinite(record.loss):
            w["loss"] += record.loss
            w["norm"] += record.gradient_norm
            w["steps"] += 1
        w["images"] += record.batch
        w["seconds"] += record.seconds
        w["waited"] += record.waited
        if record.message:
            self._write({"step": record.step, "images": record.images, "message": record.message})
        if record.step % self.every == 0 and w["steps"]:
            self._write(
                {
                    "step": record.step,
                    "images": record.images,
                    "loss": w["loss"] / w["steps"],
                    "gradient_norm": w["norm"] / w["steps"],
                    "learning_rate": record.learning_rate,
                    "images_per_second": w["images"] / max(w["seconds"], 1e-9),
                    "waited_share": w["waited"] / max(w["seconds"], 1e-9),
                    "seconds": seconds,
                }
            )
            self.window = _empty()

    def picture(self, grid: UInt8, step: int) -> None:
        """Add a sample grid to TensorBoard."""
        if self._board is not None:
            self._board.add_image("samples", grid, step, dataformats="HWC")

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"train/{name}", value, line["step"])


def path_of(folder: Path) -> Path:
    """Return where a run's log is."""
    return folder / "log.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; a last line cut short by a crash is left out."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _empty() -> dict[str, float]:
    return {"loss": 0.0, "norm": 0.0, "steps": 0, "images": 0, "seconds": 0.0, "waited": 0.0}


def _writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
