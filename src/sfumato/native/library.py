"""The compiled kernels: built once for a machine, kept in the user's cache, loaded on first use.

Everything works without them, more slowly: they need Linux and a C++ compiler (`g++`, or what CXX
names). SFUMATO_NATIVE=0 leaves them out.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from ctypes import c_double, c_float, c_int, c_long, c_uint32, c_uint64, c_void_p
from pathlib import Path

import numpy as np
import torch

# No -ffast-math: linked into a library, it would flush the whole process's small numbers to zero.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
_SIZES = [c_long, c_long, c_long, c_long]
_ACT = [c_int, c_uint32, c_uint64, c_int]
_FORWARD = [*[c_void_p] * 4, c_long, *[c_void_p] * 2, *_SIZES, c_double, *_ACT]
_BACKWARD = [*[c_void_p] * 4, c_long, *[c_void_p] * 6, *_SIZES, *_ACT]
_IMAGES = [*_SIZES, c_long, c_int, c_int]
# What each source file offers.
KERNELS = {
    "norm": {
        "norm_forward_bfloat16": _FORWARD,
        "norm_forward_float32": _FORWARD,
        "norm_backward_bfloat16": _BACKWARD,
        "norm_backward_float32": _BACKWARD,
    },
    "conv": {
        "conv_weights": [c_void_p, c_long, c_long, c_int, c_float, c_long, c_long, c_void_p, c_int],
        "conv_bfloat16": [*[c_void_p] * 4, c_float, c_void_p, *_IMAGES],
        "conv_gradient": [*[c_void_p] * 4, *_IMAGES],
    },
    "noise": {
        "noise_tables": [c_void_p],
        "noise_fill": [
            *[c_void_p] * 2,
            c_int,
            *[c_long] * 2,
            *[c_void_p] * 2,
            *[c_uint64] * 3,
            c_int,
        ],
    },
}


_LOADED_BY = os.getpid()


def library(name: str) -> ctypes.CDLL | None:
    """The kernels of `name`.cpp, compiled if they are not yet (2 s); None where that cannot be."""
    return _loaded(name)[0]


def in_words() -> str:
    """Which kernels there are, for a record of how something was computed."""
    return ", ".join(name for name in KERNELS if library(name)) or f"none: {unavailable('norm')}"


def unavailable(name: str) -> str:
    """Why `library` has none, as a sentence that says what to do; "" where it has."""
    return _loaded(name)[1]


@functools.cache
def _loaded(name: str) -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("SFUMATO_NATIVE") == "0":
        return None, "SFUMATO_NATIVE=0 leaves them out: unset it"
    if sys.platform != "linux":
        return None, "they are written for Linux"
    asked = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    compiler = shutil.which(asked[0])
    if compiler is None:
        return None, f"there is no {asked[0]}: install a C++ compiler"
    others = _numpy() if name == "noise" else ()
    if others is None:
        return None, "this numpy comes without its static libraries: install it from PyPI"
    try:
        if name == "conv" and not _multiplies_bfloat16():
            return None, "this processor multiplies no bfloat16, or in units that torch uses better"
        kernels = _opened(name, (compiler, *asked[1:], *FLAGS), others)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        why = f"{compiler} could not build them ({told[0] if told else error})"
        warnings.warn(f"Sfumato's kernels are left out: {why}", RuntimeWarning, stacklevel=2)
        return None, why
    for function, arguments in KERNELS[name].items():
        kernel = getattr(kernels, function)
        kernel.argtypes, kernel.restype = arguments, c_int
    return kernels, ""


def threads() -> int:
    """How many to use: torch's, but one in a forked child, where OpenMP would wait for ever."""
    return torch.get_num_threads() if os.getpid() == _LOADED_BY else 1


def _opened(name: str, compile_by: tuple[str, ...], others: tuple[str, ...]) -> ctypes.CDLL:
    """The shared library, from the user's cache or made anew."""
    source = Path(__file__).with_name(f"{name}.cpp")
    headers = sorted(source.parent.glob("*.h"))
    asked = [file.read_text() for file in (source, *headers)]
    asked += [*compile_by, *others, np.__version__, _processor(), *platform.libc_ver()]
    key = hashlib.sha256("\0".join(asked).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato"
    file = folder / f"{name}-{key}.so"
    if file.exists():
        with contextlib.suppress(OSError):  # Damaged: made anew.
            return ctypes.CDLL(str(file))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / "kernels.so"
        command = [*compile_by, "-o", str(made), str(source), *others]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        with made.open("rb") as written:
            os.fsync(written.fileno())
        made.replace(file)
    return ctypes.CDLL(str(file))


def _numpy() -> tuple[str, ...] | None:
    """Where numpy's headers and its distributions, to be linked, are; None where they are not."""
    headers, random = Path(np.get_include()), Path(np.random.__file__).parent
    parts = random / "lib" / "libnpyrandom.a", headers.parent / "lib" / "libnpymath.a"
    if not all(part.exists() for part in parts):
        return None
    return (f"-I{headers}", *map(str, parts))


def _multiplies_bfloat16() -> bool:
    """Whether vectors do (AVX-512 BF16) and no matrix unit does (AMX), which torch knows."""
    flags = set(_processor().split())
    return "avx512_bf16" in flags and "amx_bf16" not in flags


@functools.cache
def _processor() -> str:
    """What `-march=native` depends on: a home may be shared by machines that differ."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))}
    return "\n".join([platform.machine(), *sorted(told)])
