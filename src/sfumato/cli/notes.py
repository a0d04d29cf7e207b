"""What is said on stderr while something else is under way: notes of the library, errors."""

from __future__ import annotations

import logging
import os
import sys


class Notes(logging.Handler):
    """Writes what the library notes above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one note."""
        from tqdm import tqdm

        tqdm.write(f"warning: {record.getMessage()}", file=sys.stderr)


def show_notes() -> None:
    """Show what the library notes, from now on and once."""
    log = logging.getLogger("sfumato")
    if not any(isinstance(handler, Notes) for handler in log.handlers):
        log.addHandler(Notes())


def complain(verb: str, what: str) -> None:
    """Say on stderr why a verb ends.

    Where torchrun started several processes, each begins a line of its own, for another one's bar
    may stand there, and writes it at once.
    """
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    rank = os.environ.get("RANK", "0")
    here = f" (process {rank})" if rank != "0" else ""
    start = "\n" if several else ""
    sys.stderr.write(f"{start}sfumato {verb}{here}: {what}\n")
    sys.stderr.flush()
