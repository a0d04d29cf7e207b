"""Noise of many images at once, by the compiled kernel."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from ctypes import CDLL
from typing import cast

import numpy as np
import torch
from torch import Tensor

from sfumato.native.library import library, threads
from sfumato.native.plain import is_watched


def takes(dtype: torch.dtype) -> bool:
    """Whether `normal` can be asked for numbers of this type."""
    kept = dtype in (torch.float32, torch.float64)
    return kept and not is_watched() and _agrees()


def normal(
    shape: Sequence[int],
    dtype: torch.dtype,
    seeds: Sequence[int],
    signs: Sequence[int],
    draw: tuple[int, int, int],
) -> Tensor:
    """Standard normal numbers [len(seeds), *shape], each image's times its sign.

    To the last bit those of numpy's `Generator(Philox)` with the seed for its key, from the counter
    (0, *draw) on, drawn in float64 and rounded.
    """
    kernels = cast(CDLL, library("noise"))
    out = torch.empty((len(seeds), *shape), dtype=dtype, device="cpu")
    if out.numel() == 0:
        return out
    # Of 64 bits, whatever is asked: torch has no arithmetic of unsigned ones.
    signed = [(seed + 2**63) % 2**64 - 2**63 for seed in seeds]
    keys = torch.tensor(signed, dtype=torch.int64, device="cpu")
    turned = torch.tensor(signs, dtype=torch.float64, device="cpu")
    kernels.noise_fill(
        *(_tables().data_ptr(), out.data_ptr(), dtype == torch.float32),
        *(len(seeds), out[0].numel(), keys.data_ptr(), turned.data_ptr()),
        *(number % 2**64 for number in draw),
        threads(),
    )
    return out


@functools.cache
def _tables() -> Tensor:
    """What the kernel takes most numbers from, as it finds it in numpy's."""
    tables = torch.empty(2 * 256, dtype=torch.int64, device="cpu")
    cast(CDLL, library("noise")).noise_tables(tables.data_ptr())
    return tables


@functools.cache
def _agrees() -> bool:
    """Whether there is a kernel, and it draws what this numpy draws."""
    if library("noise") is None:
        return False
    bits = np.random.Philox(key=3, counter=np.array([0, 1, 2, 5], dtype=np.uint64))
    expected = np.random.Generator(bits).standard_normal(10_000)
    found = normal(expected.shape, torch.float64, [3], [1], (1, 2, 5))
    return np.array_equal(found[0].numpy(), expected)
