"""The compiled kernels: built once for a machine, kept in the user's cache, loaded on first use.

Everything works without them, more slowly: they need Linux and a C++ compiler (`g++`, or what CXX
names). SFUMATO_NATIVE=0 leaves them out.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from ctypes import c_double, c_int, c_long, c_uint32, c_uint64, c_void_p
from pathlib import Path

SOURCE = Path(__file__).with_name("norm.cpp")
# No -ffast-math: linked into a library, it would flush the whole process's small numbers to zero.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
_SHAPE = [c_long, c_long, c_long, c_long]
_ACT = [c_int, c_uint32, c_uint64, c_int]
ARGUMENTS = {
    "norm_forward": [*[c_void_p] * 4, c_long, *[c_void_p] * 2, *_SHAPE, c_double, *_ACT],
    "norm_backward": [*[c_void_p] * 4, c_long, *[c_void_p] * 6, *_SHAPE, *_ACT],
}
TYPES = ("bfloat16", "float32")


def unavailable() -> str:
    """Why there are no kernels here, as a sentence that says what to do; "" where there are."""
    return _loaded()[1]


def library() -> ctypes.CDLL | None:
    """The kernels, compiled if they are not yet (2 s); None where that is not possible."""
    return _loaded()[0]


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("SFUMATO_NATIVE") == "0":
        return None, "SFUMATO_NATIVE=0 leaves them out: unset it"
    if sys.platform != "linux":
        return None, "they are written for Linux"
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        return None, f"there is no {os.environ.get('CXX') or 'g++'}: install a C++ compiler"
    try:
        kernels = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        why = f"{compiler} could not build them ({told[0] if told else error})"
        warnings.warn(f"layers run without Sfumato's kernels: {why}", RuntimeWarning, stacklevel=2)
        return None, why
    for name, arguments in ARGUMENTS.items():
        for kind in TYPES:
            kernel = getattr(kernels, f"{name}_{kind}")
            kernel.argtypes, kernel.restype = arguments, c_int
    return kernels, ""


def _compiled(compiler: str) -> Path:
    """The shared library's file, compiled into a temporary name and renamed."""
    asked = [SOURCE.read_bytes(), " ".join((compiler, *FLAGS)).encode(), _processor().encode()]
    name = hashlib.sha256(b"\0".join(asked)).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato"
    file = folder / f"kernels-{name}.so"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / "kernels.so"
        command = [compiler, *FLAGS, "-o", str(made), str(SOURCE)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        made.replace(file)
    return file


def _processor() -> str:
    """What `-march=native` depends on: a home may be shared by machines that differ."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))}
    return "\n".join([platform.machine(), *sorted(told)])
