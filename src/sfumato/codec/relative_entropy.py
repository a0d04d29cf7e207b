"""A sample of q sent to who knows p: relative entropy coding of Gaussian vectors.

Both sides share a torus of standard normal numbers, and of each chunk of values, where on it each
value begins to read; a candidate is one turn of the torus further. The sender takes the candidate
that comes first in a race whose speeds are the ratios q / p (the Poisson functional representation,
Li & El Gamal 2018), and sends its place. What it costs is KL(q || p), and about 2.6 bits for what a
place tells besides (the ratio's own spread).

So all candidates' scores are one correlation, and 2^20 of them cost three Fourier transforms of a
square, small enough for the cache row by row. Two candidates share numbers only where two pairs of
beginnings are as far apart: hardly ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.codec.stack import Real, Whole

CANDIDATES_LOG2 = 20
SEARCH = range(10, 23)
"""How many candidates a chunk may be searched among, as powers of two."""
_SEED = 0x5F0
_BLOCK = 1024
_SPARE_BITS = 7
"""Candidates beyond 2 to the bits of a chunk: enough for most of what is drawn."""
_LN2 = math.log(2)


@dataclass(frozen=True)
class Chunks:
    """How the values of an image at one level are shared out: `order` [d], cut at `edges`.

    `signs` [d] and `begins` [d] belong to places in that order: where on the torus each value
    begins, and with what sign it is read. The same on both sides: of the image's and the level's
    number, and of what both expect to be sent.
    """

    order: Whole
    signs: Real
    begins: Whole
    edges: tuple[int, ...]

    @classmethod
    def of(cls, expected: Real, count: int, seed: int, candidates: int) -> Chunks:
        """Cut values [d] into `count` chunks that are expected to cost the same bits."""
        generator = np.random.Generator(np.random.Philox(seed))
        order = generator.permutation(len(expected))
        signs = 2 * generator.integers(0, 2, len(expected)).astype(np.float64) - 1
        share = np.cumsum(expected[order])
        inner = np.searchsorted(share, share[-1] * np.arange(1, count) / count)
        # Every chunk has at least one value.
        edges = [0]
        for i, edge in enumerate(inner.tolist()):
            edges.append(min(max(edge, edges[-1] + 1), len(expected) - (count - 1 - i)))
        few = len(expected) <= candidates // 4
        begins = generator.choice(candidates, len(expected), replace=not few)
        return cls(order, signs, begins, (*edges, len(expected)))

    def __len__(self) -> int:
        return len(self.edges) - 1

    def slices(self) -> list[slice]:
        """Return the places of each chunk in the order."""
        return [slice(a, b) for a, b in zip(self.edges, self.edges[1:], strict=False)]


class Codebook:
    """The torus of standard normal numbers, of as many numbers as there are candidates.

    Scores are computed on `device`: of the sender alone, so to the last bit they need not agree.
    """

    def __init__(
        self, candidates_log2: int = CANDIDATES_LOG2, device: torch.device | str = "cpu"
    ) -> None:
        if candidates_log2 not in SEARCH:
            raise ValueError(
                f"candidates go from 2^{SEARCH[0]} to 2^{SEARCH[-1]}, not 2^{candidates_log2}"
            )
        self.count, self._device = 1 << candidates_log2, device
        self.chunk_bits = candidates_log2 - _SPARE_BITS
        self._rows = 1 << candidates_log2 // 2
        self._columns = self.count // self._rows
        generator = np.random.Generator(np.random.Philox(_SEED))
        numbers = generator.standard_normal(self.count, dtype=np.float32)
        self._numbers = numbers.reshape(self._rows, self._columns)

    @cached_property
    def _spectra(self) -> tuple[Tensor, Tensor]:
        numbers = torch.from_numpy(self._numbers).to(self._device)
        return torch.fft.rfft2(numbers), torch.fft.rfft2(numbers.square())

    def candidate(self, place: int, begins: Whole) -> Real:
        """Return candidate `place` of 0..count-1, [d]."""
        row, column = (
            (at + turn) % size
            for at, turn, size in zip(
                divmod(begins, self._columns),
                divmod(place, self._columns),
                (self._rows, self._columns),
                strict=True,
            )
        )
        return self._numbers[row, column].astype(np.float64)

    def scores(self, square: Real, linear: Real, begins: Whole) -> NDArray[np.float32]:
        """Return sum(square z^2 + linear z) of every candidate z, [count]."""
        first, second = self._spectra
        both = np.zeros((2, self.count), np.float32)
        np.add.at(both[0], begins, linear)
        np.add.at(both[1], begins, square)
        parts = torch.from_numpy(both).to(self._device).view(2, self._rows, self._columns)
        spectrum = torch.fft.rfft2(parts)
        total = spectrum[0].conj() * first
        total += spectrum[1].conj() * second
        return torch.fft.irfft2(total, (self._rows, self._columns)).flatten().cpu().numpy()


def choose(
    book: Codebook, mean: Real, ratio: Real, begins: Whole, generator: np.random.Generator
) -> int:
    """Return the place 0..count-1 of a candidate z [d], N(0, 1) under p, drawn from q.

    Under q each z is N(mean, ratio^2), ratio at most 1. The sender's own generator tells the race's
    clock. With fewer candidates than exp of the largest log ratio, what is drawn is short of q's
    far side.
    """
    square = 0.5 * (1 - ratio**-2)
    return _first(book.scores(square, mean * ratio**-2, begins), generator)


def _first(scores: NDArray[np.float32], generator: np.random.Generator) -> int:
    """Return where log(arrival) - score is least, for the arrivals of a Poisson process of rate 1.

    Arrivals are drawn in blocks, whose ends alone mostly tell that the least is not in them.
    """
    blocks = scores.reshape(-1, _BLOCK)
    took = generator.standard_gamma(_BLOCK, len(blocks))
    starts = np.cumsum(took) - took
    starts[0] = 0
    with np.errstate(divide="ignore"):
        earliest = np.log(starts) - blocks.max(axis=1)
    place, least = 0, math.inf
    for block in np.argsort(earliest).tolist():
        if earliest[block] >= least:
            break
        waits = np.cumsum(generator.standard_exponential(_BLOCK))
        times = np.log(starts[block] + took[block] * waits / waits[-1]) - blocks[block]
        here = int(np.argmin(times))
        if times[here] < least:
            place, least = block * _BLOCK + here, float(times[here])
    return place


def kl_bits(mean: Real, ratio: Real) -> Real:
    """Return KL(N(mean, ratio^2) || N(0, 1)) in bits, value by value."""
    return (0.5 * (mean**2 + ratio**2 - 1) - np.log(ratio)) / _LN2


def place_model(bits: float, candidates_log2: int) -> tuple[float, float]:
    """Return mean and deviation of floor(log2(place + 1)) where a chunk costs so many bits.

    The place is about the ratio q / p of what was drawn times an exponential number; in bits the
    former has mean K and variance 2 K / ln 2, the latter -0.83 and 1.85^2. These lines are nearer
    to it for the few bits of a chunk, where places start at 0 and end with the candidates.
    """
    return 0.875 * bits - 0.35, min(1.25 + 0.58 * bits, 4.6 + 0.15 * (candidates_log2 - 18))
