"""A sample of q sent to who knows p: relative entropy coding of Gaussian vectors.

Both sides share a long sequence of standard normal numbers; a candidate is a window of it, under p
mapped to x. The sender takes the candidate that comes first in a race whose speeds are the ratios
q / p (the Poisson functional representation, Li & El Gamal 2018), and sends its place. What it
costs is KL(q || p), and about 3 bits for what a place tells besides (the ratio's own spread).

Windows of one sequence make all scores one correlation, so 2^18 candidates cost three Fourier
transforms; a signed permutation of each chunk keeps the chunks' windows unlike one another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.codec.stack import Real, Whole

CANDIDATES_LOG2 = 18
_SEED = 0x5F0
_LN2 = math.log(2)


@dataclass(frozen=True)
class Chunks:
    """How the values of an image at one level are shared out: `order` [d], cut at `edges`.

    `signs` [d] belong to places in that order. The same on both sides: of the image's and the
    level's number, and of what both expect to be sent.
    """

    order: Whole
    signs: Real
    edges: tuple[int, ...]

    @classmethod
    def of(cls, expected: Real, count: int, seed: int) -> Chunks:
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
        return cls(order, signs, (*edges, len(expected)))

    def __len__(self) -> int:
        return len(self.edges) - 1

    def slices(self) -> list[slice]:
        """Return the places of each chunk in the order."""
        return [slice(a, b) for a, b in zip(self.edges, self.edges[1:], strict=False)]


class Codebook:
    """Windows of length up to `longest` of one sequence of standard normal numbers."""

    def __init__(self, longest: int, candidates_log2: int = CANDIDATES_LOG2) -> None:
        self.count = 2**candidates_log2
        self.longest = longest
        generator = np.random.Generator(np.random.Philox(_SEED))
        self._numbers = generator.standard_normal(self.count + longest, dtype=np.float32)

    @cached_property
    def _spectra(self) -> tuple[int, Tensor, Tensor]:
        size = 1 << (len(self._numbers) - 1).bit_length()
        numbers = torch.from_numpy(self._numbers)
        return size, torch.fft.rfft(numbers, size), torch.fft.rfft(numbers.square(), size)

    def window(self, index: int, length: int) -> Real:
        """Return candidate `index` of 0..count-1, [length]."""
        return self._numbers[index : index + length].astype(np.float64)

    def scores(self, square: Real, linear: Real) -> NDArray[np.float32]:
        """Return sum(square z^2 + linear z) of every candidate z, [count]."""
        size, first, second = self._spectra
        both = torch.from_numpy(np.stack([linear, square]).astype(np.float32))
        spectrum = torch.fft.rfft(both, size).conj()
        whole = torch.fft.irfft(spectrum[0] * first + spectrum[1] * second, size)
        return whole[: self.count].numpy()


def choose(book: Codebook, mean: Real, ratio: Real, generator: np.random.Generator) -> int:
    """Return the place 0..count-1 of a candidate z, N(0, 1) under p, drawn from q.

    Under q each z [d] is N(mean, ratio^2), ratio at most 1. The sender's own generator tells the
    race's clock. With fewer candidates than exp of the largest log ratio, what is drawn is short of
    q's far side.
    """
    square = 0.5 * (1 - ratio**-2)
    score = book.scores(square, mean * ratio**-2)
    clock = np.log(np.cumsum(generator.standard_exponential(book.count)))
    return int(np.argmin(clock - score))


def kl_bits(mean: Real, ratio: Real) -> Real:
    """Return KL(N(mean, ratio^2) || N(0, 1)) in bits, value by value."""
    return (0.5 * (mean**2 + ratio**2 - 1) - np.log(ratio)) / _LN2


@lru_cache(4096)
def place_model(expected_bits: float) -> tuple[float, float]:
    """Return mean and deviation of floor(log2(place + 1)) where so many bits are expected.

    The place is the ratio q / p of what was drawn, times an exponential number: in bits the former
    has mean K and variance 2 K / ln 2 for Gaussians, the latter -0.83 and 1.85^2. What a chunk
    really costs differs from what was expected, which widens it.
    """
    spread = 2 * expected_bits / _LN2 + 1.85**2 + (0.35 * expected_bits) ** 2
    return expected_bits - 0.83 - 0.5, math.sqrt(spread)
