"""Noise as a pure function of (seed of the image, purpose, draw number).

No stream is consumed, so a skipped draw, a resumed run, another batch size or another number of
processes never changes a picture. Drawn on the host in float64 from the counter-based Philox
generator: CPU and CUDA, float32 and float64 states see the same noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a draw is for; draws of different purposes are independent."""

    START = 0
    TRANSITION = 1
    CHURN = 2
    CORRECTOR = 3
    MEASUREMENT = 4


@dataclass(frozen=True)
class Noise:
    """Standard normal noise for a batch of images, one seed an image.

    `number` is the draw's index (the sampling loop sets it to the step's index by `at`).
    """

    seeds: tuple[int, ...]
    number: int = 0

    def at(self, number: int) -> Noise:
        """Return the same noise at another draw number."""
        return Noise(self.seeds, number)

    def like(self, x: Tensor, purpose: Purpose) -> Tensor:
        """Return noise with the shape [B, *data], dtype and device of x.

        Raises ValueError where x has another batch size than there are seeds.
        """
        if len(x) != len(self.seeds):
            raise ValueError(f"noise has {len(self.seeds)} seeds, the batch {len(x)} images")
        return self.normal(tuple(x.shape[1:]), purpose, x.dtype, x.device)

    def normal(
        self,
        shape: Sequence[int],
        purpose: Purpose,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return [B, *shape] independent standard normal numbers."""
        out = np.empty((len(self.seeds), *shape))
        for row, seed in zip(out, self.seeds, strict=True):
            counter = np.array([0, 0, int(purpose), self.number], dtype=np.uint64)
            bits = np.random.Philox(key=np.uint64(seed % 2**64), counter=counter)
            np.random.Generator(bits).standard_normal(out=row)
        return torch.from_numpy(out).to(device=device, dtype=dtype)


def noise_for(seed: int, count: int, first: int = 0) -> Noise:
    """Return noise for `count` images, image i being seeded with seed + first + i."""
    return Noise(tuple(range(seed + first, seed + first + count)))


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all parts, for generators that want one number."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
