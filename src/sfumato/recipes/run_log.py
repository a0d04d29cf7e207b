"""log.jsonl and TensorBoard events: one line for a window of steps, exact across resumption."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sfumato.files import finite, write_text
from sfumato.report.grid import UInt8
from sfumato.training.loop import Record


class RunLog:
    """Writes a line for every `every` steps: the mean loss of the window, rates and speed.

    The first step has a line of its own, and what is left of a window when the run ends.
    `window` holds the sums of the unfinished window, so that a resumed run logs what an
    uninterrupted one would. Where the disk is full it says so once and keeps the lines until they
    can be written: a log must not end a training.
    """

    def __init__(self, folder: Path, every: int, say: Callable[[str], None]) -> None:
        self.path = path_of(folder)
        self.folder, self.every, self.say = folder, max(every, 1), say
        self.window: dict[str, float] = _empty()
        self._unwritten: list[dict[str, Any]] = []
        self._failing = False
        self._board: Any = None
        self._step = 0

    def resume(self, step: int, window: dict[str, float]) -> None:
        """Go back to `step`: later lines of the interrupted run are dropped."""
        self.window = {**_empty(), **window}
        self._step = step
        known = (*read(self.path), *self._unwritten)
        kept = [line for line in known if line["step"] <= step]
        write_text(self.path, _text(kept))
        self._unwritten = []

    def go_back(self, step: int) -> None:
        """Forget what came after `step`, which a rollback abandoned."""
        try:
            self.resume(step, {})
        except OSError as error:
            self._complain(error)
        if self._board is not None:
            with suppress(OSError):
                self._board.close()
            self._open_board()

    @contextmanager
    def opened(self, *, tensorboard: bool) -> Generator[None]:
        """Keep TensorBoard's file open, where it is wanted and installed."""
        if tensorboard:
            self._open_board()
        try:
            yield
        finally:
            if self._board is not None:
                with suppress(OSError):
                    self._board.close()
                self._board = None

    def add(self, record: Record, seconds: float, *, last: bool = False) -> None:
        """Note one step; write a line where a window is full, or something is to be said.

        `seconds` of training so far; `last`: the run ends with this step.
        """
        if record.rolled_back:
            self.go_back(record.step)
        w = self.window
        if not record.skipped and math.isfinite(record.loss):
            w["loss"] += record.loss
            w["norm"] += record.gradient_norm
            w["steps"] += 1
        w["images"] += record.batch
        w["seconds"] += record.seconds
        w["waited"] += record.waited
        if record.message:
            self.note(record, record.message)
        full = last or record.step % self.every == 0
        if (full or record.step == 1) and w["steps"]:
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
        if full and w["steps"]:
            self.window = _empty()

    def note(self, record: Record, message: str) -> None:
        """Write a line that says something about a step."""
        self._write({"step": record.step, "images": record.images, "message": message})

    def measured(self, line: Mapping[str, Any]) -> None:
        """Write a line of measurements; it names its step."""
        self._write(dict(line))

    def picture(self, grid: UInt8, step: int) -> None:
        """Add a sample grid to TensorBoard."""
        self._show(lambda board: board.add_image("samples", grid, step, dataformats="HWC"))

    def _write(self, line: dict[str, Any]) -> None:
        self._unwritten.append(line)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_text(self._unwritten))
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, size)  # no half lines: all are written anew
            self._complain(error)
        else:
            self._unwritten, self._failing = [], False
        for name, value in line.items():
            if isinstance(value, float):
                self._show(
                    lambda board, n=name, v=value: board.add_scalar(f"train/{n}", v, line["step"])
                )

    def _complain(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            self.say(
                f"warning: {self.path} cannot be written ({error.strerror or error}): training "
                "goes on, and its lines are kept until they can be"
            )

    def _show(self, draw: Callable[[Any], None]) -> None:
        """Do something with TensorBoard, or do without it from now on."""
        if self._board is None:
            return
        try:
            draw(self._board)
        except OSError as error:
            self._board = None
            self.say(f"warning: no more TensorBoard events: {error.strerror or error}")

    def _open_board(self) -> None:
        self._board = None
        try:
            self._board = _writer(self.folder, self._step)
        except OSError as error:
            self.say(f"warning: no TensorBoard events: {error.strerror or error}")


class Unwritten(RunLog):
    """The log of a process that leaves writing to the first."""

    def resume(self, step: int, window: dict[str, float]) -> None:
        """Do nothing."""

    @contextmanager
    def opened(self, *, tensorboard: bool) -> Generator[None]:
        """Open nothing."""
        del tensorboard
        yield

    def _write(self, line: dict[str, Any]) -> None:
        del line


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


def _text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(finite(line), allow_nan=False) + "\n" for line in lines)


def _empty() -> dict[str, float]:
    return {"loss": 0.0, "norm": 0.0, "steps": 0, "images": 0, "seconds": 0.0, "waited": 0.0}


def _writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
