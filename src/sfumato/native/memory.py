"""Freed memory, kept for the next step: glibc else gives much of it back and clears it anew."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

_TRIM, _MMAP = -1, -3  # of glibc's malloc.h


def keep_freed_memory(most: int = 2**30) -> bool:
    """Let the whole process keep up to `most` bytes that it has freed; return whether it does.

    For a program to call as it starts, not for a library. Blocks over 32 MiB, to which glibc goes
    by itself, are given back all the same: more of them would fall to pieces. Leaves alone what is
    not glibc, and who has chosen thresholds by the environment.
    """
    chosen = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if sys.platform != "linux" or any(name in os.environ for name in chosen):
        return False
    with contextlib.suppress(OSError, AttributeError):
        change = ctypes.CDLL(None).mallopt
        return change(_MMAP, 2**25) == 1 and change(_TRIM, min(most, 2**31 - 1)) == 1
    return False
