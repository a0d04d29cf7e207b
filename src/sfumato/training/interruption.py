"""Ctrl-C and SIGTERM as a wish: the step at hand is finished, then the caller saves and leaves."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Interruption:
    """A context in which the first signal only sets `requested`; a second one acts as usual.

    Enter it in the main thread. `name` is the signal's, for the message. `patient`: further signals
    change nothing either, for a launcher passes on what the terminal has sent already.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.name: str | None = None
        self._patient = patient
        self._before: dict[signal.Signals, signal._HANDLER] = {}  # pyright: ignore[reportPrivateUsage]

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.name is not None

    def __enter__(self) -> Interruption:
        """Take the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        self._give_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.name = signal.Signals(number).name
        if not self._patient:
            self._give_back()

    def _give_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
