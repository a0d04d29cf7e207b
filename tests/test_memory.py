"""The program keeps the memory it frees; the library changes nothing of its process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from sfumato import cli
from sfumato.native import memory

needed = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="asks glibc 2.33 or newer",
)

ASKED = """
import ctypes

libc = ctypes.CDLL(None)
for name in ("malloc", "sbrk"):
    getattr(libc, name).restype = ctypes.c_void_p

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd",
        "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]

libc.mallinfo2.restype = Info
by_themselves = libc.mallinfo2().hblks
blocks = [libc.malloc(ctypes.c_size_t(20 * 2**20)) for _ in range(8)]
end = libc.sbrk(0)
print(libc.mallinfo2().hblks - by_themselves)
for block in blocks[::-1]:
    libc.free(ctypes.c_void_p(block))
print(libc.sbrk(0) == end)
"""


def asked(before: str, **environment: str) -> list[str]:
    """How many of 8 blocks of 20 MiB the system was asked for by themselves; were all kept?"""
    others = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", before + ASKED],
        capture_output=True,
        text=True,
        check=True,
        env=others | environment,
    )
    return done.stdout.split()


KEEP = "from sfumato.native.memory import keep_freed_memory as keep\nassert keep() is {}\n"


@needed
def test_what_is_freed_is_kept():
    assert asked(KEEP.format(True)) == ["0", "True"]
    assert asked("import sfumato.cli\n")[0] == "8"


@needed
def test_who_has_chosen_by_the_environment_is_left_alone():
    assert asked(KEEP.format(False), MALLOC_MMAP_THRESHOLD_="65536")[0] == "8"


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_freed_memory()


def test_the_program_asks_for_it_and_its_function_does_not(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr(sys, "argv", ["sfumato", "--version"])
    assert cli.main() == 0
    assert not calls
    assert cli.command() == 0
    assert calls == ["kept"]
