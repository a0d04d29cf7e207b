"""Noise of many images at once, by the compiled kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.native.library import library


def takes(dtype: torch.dtype) -> bool:
    """Whether `normal` can be asked for numbers of this type."""
    return dtype in (torch.float32, torch.float64) and library("noise") is not None


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
    kernels = library("noise")
    assert kernels is not None
    out = torch.empty((len(seeds), *shape), dtype=dtype)
    if out.numel() == 0:
        return out
    # Of 64 bits, whatever is asked: torch has no arithmetic of unsigned ones.
    keys = torch.tensor([(seed + 2**63) % 2**64 - 2**63 for seed in seeds])
    turned = torch.tensor(signs, dtype=torch.float64)
    failed = kernels.noise_fill(
        *(out.data_ptr(), dtype == torch.float32, len(seeds), out[0].numel()),
        *(keys.data_ptr(), turned.data_ptr(), *(number % 2**64 for number in draw)),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError(f"no memory for noise of shape {tuple(out.shape)}")
    return out
