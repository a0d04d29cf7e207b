"""Noise as a pure function of (seed of the image, purpose, draw number).

No stream is consumed, so a skipped draw, a resumed run, another batch size or another number of
processes never changes a picture. Drawn on the host in float64 from the counter-based Philox
generator: CPU and CUDA, float32 and float64 states see the same noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sfumato.native.noise import normal, takes


class Purpose(IntEnum):
    """What a draw is for; draws of different purposes are independent."""

    START = 0
    TRANSITION = 1
    CHURN = 2
    CORRECTOR = 3
    MEASUREMENT = 4
    RESTART = 5
    BOUND = 6
    LEVELS = 7
    TRACE = 8
    DEQUANTISE = 9


@dataclass(frozen=True)
class Noise:
    """Standard normal noise for a batch of images, one seed an image.

    `number` is the draw's index (the sampling loop sets it to the step's index by `at`). With
    `antithetic` an odd seed's noise is that of the even seed below it with its sign turned: what
    such a pair is led to lies on two sides of the mean, which their own mean is then near.
    """

    seeds: tuple[int, ...]
    number: int = 0
    antithetic: bool = False

    def at(self, number: int) -> Self:
        """Return the same noise at another draw number."""
        return replace(self, number=number)

    def like(self, x: Tensor, purpose: Purpose) -> Tensor:
        """Return noise with the shape [B, *data], dtype and device of x.

        Raises ValueError where x has another batch size than there are seeds.
        """
        if len(x) != len(self.seeds):
            raise ValueError(f"noise has {len(self.seeds)} seeds, the batch {len(x)} images")
        return self.normal(tuple(x.shape[1:]), purpose, x.dtype, x.device)

    def between(self, x: Tensor, purpose: Purpose, start: float, end: float) -> Tensor:
        """Return noise, as `like` does, for a stretch of a stochastic solver's clock.

        Here every draw is new and the clock does not matter; see `BrownianNoise`.
        """
        return self.like(x, purpose)

    def normal(
        self,
        shape: Sequence[int],
        purpose: Purpose,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return [B, *shape] independent standard normal numbers."""
        if takes(dtype):
            seeds, signs = zip(*self._signed(), strict=True) if self.seeds else ((), ())
            draw = (0, int(purpose), self.number)
            return normal(shape, dtype, seeds, signs, draw).to(device)
        out = np.empty((len(self.seeds), *shape))
        source = _Source()
        for row, (seed, sign) in zip(out, self._signed(), strict=True):
            source.fill(row, seed, 0, int(purpose), self.number)
            if sign < 0:
                np.negative(row, out=row)
        return torch.from_numpy(out).to(device=device, dtype=dtype)

    def _signed(self) -> list[tuple[int, int]]:
        """The seed that each image's noise comes from, and its sign."""
        if not self.antithetic:
            return [(seed, 1) for seed in self.seeds]
        return [(seed - seed % 2, 1 - 2 * (seed % 2)) for seed in self.seeds]


# Draws of a Brownian path differ from those of `Noise` in the counter's second word, there 0.
_OCTAVE = 2**60
_BITS = 52


@dataclass(frozen=True)
class BrownianNoise(Noise):
    """Noise that follows one Brownian path of each image, whatever the grid: W of a solver's clock.

    `between` returns (W(end) - W(start)) / sqrt|end - start|, W a pure function of (seed of the
    image, purpose) on the clock's positive numbers, so that a finer grid refines the same path and
    the solver converges to one picture. W is exact, in distribution and for any two clock times: a
    Brownian bridge in each octave [2^k, 2^(k+1)], halved until the time, a binary fraction, is hit.
    A draw costs up to a hundred of `Noise`'s. Everything but `between` is as in `Noise`.
    """

    def between(self, x: Tensor, purpose: Purpose, start: float, end: float) -> Tensor:
        """Return the path's step from start to end of the clock, scaled to variance 1.

        Raises ValueError unless start and end are different, positive and finite.
        """
        if len(x) != len(self.seeds):
            raise ValueError(f"noise has {len(self.seeds)} seeds, the batch {len(x)} images")
        if not (0 < start < math.inf and 0 < end < math.inf and start != end):
            raise ValueError(
                f"a Brownian path steps between two positive times, not {start} and {end}"
            )
        first, last = min(start, end), max(start, end)
        out, source = np.empty(x.shape), _Source()
        for row, (seed, sign) in zip(out, self._signed(), strict=True):
            row[...] = sign * _Path(seed, int(purpose), row.shape, source).step(first, last)
        out *= math.copysign(1 / math.sqrt(last - first), end - start)
        return torch.from_numpy(out).to(device=x.device, dtype=x.dtype)


@dataclass(frozen=True)
class _Path:
    """One image's Brownian motion on the positive numbers."""

    seed: int
    purpose: int
    shape: tuple[int, ...]
    source: _Source

    def step(self, first: float, last: float) -> np.ndarray:
        """Return W(last) - W(first), first < last, octave by octave."""
        low, high = math.frexp(first)[1] - 1, math.frexp(last)[1] - 1
        out = self._since(high, last) - self._since(low, first)
        for octave in range(low, high):
            out += self._length(octave)
        return out

    def _length(self, octave: int) -> np.ndarray:
        """Return W(2^(octave + 1)) - W(2^octave)."""
        return math.sqrt(2.0**octave) * self._normal(_OCTAVE, octave)

    def _since(self, octave: int, time: float) -> np.ndarray:
        """Return W(time) - W(2^octave), time in [2^octave, 2^(octave + 1))."""
        rest = int(math.ldexp(time, _BITS - octave)) - 2**_BITS  # of the octave, in 2^-52
        left = np.zeros(self.shape)
        if not rest:
            return left
        right, cell, width, half = self._length(octave), 1, 2.0**octave, 2**_BITS
        while True:
            middle = (left + right) / 2 + math.sqrt(width / 4) * self._normal(cell, octave)
            width, half = width / 2, half // 2
            if rest == half:
                return middle
            if rest > half:
                left, cell, rest = middle, 2 * cell + 1, rest - half
            else:
                right, cell = middle, 2 * cell

    def _normal(self, cell: int, octave: int) -> np.ndarray:
        out = np.empty(self.shape)
        self.source.fill(out, self.seed, cell, self.purpose, octave % 2**64)
        return out


class _Source:
    """A Philox generator that is set to where a draw begins: a new one costs three times that."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state  # of a new one: nothing drawn ahead
        self._key, self._counter = (self._state["state"][name] for name in ("key", "counter"))

    def fill(self, out: np.ndarray, seed: int, cell: int, purpose: int, number: int) -> None:
        """Fill `out` with the standard normal numbers that belong to these four."""
        self._key[0] = seed % 2**64
        self._counter[:] = 0, cell, purpose, number
        self._bits.state = self._state
        self._generator.standard_normal(out=out)


def noise_for(seed: int, count: int, first: int = 0) -> Noise:
    """Return noise for `count` images, image i being seeded with seed + first + i."""
    return Noise(tuple(range(seed + first, seed + first + count)))


def brownian_for(seed: int, count: int, first: int = 0) -> BrownianNoise:
    """Return noise as `noise_for` does, of steps along one path however fine the grid is."""
    return BrownianNoise(noise_for(seed, count, first).seeds)


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all parts, for generators that want one number."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
