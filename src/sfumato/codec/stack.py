"""Whole numbers on a stack of bits, and in a queue of them: constriction's coders, checked.

A push costs -log2 of a probability; a pop gives such bits back as a number with that distribution
(bits-back coding). Numbers are cells of a lattice under Gaussians in units of it, so both sides
need the same means and deviations to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import CodecError, MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType

Whole = NDArray[np.int64]
Real = NDArray[np.float64]
Words = NDArray[np.uint32]

_REACH, _MOST = 512, 1 << 20
"""Cells either side of a mean that a number may lie from it: so many, or its distribution's tail,
but never more than the coder's probabilities are fine enough for."""
_TAIL = 9.0
_MARGIN = 4


class OutOfReachError(Exception):
    """A number lies so far from its mean that the coder has no code for it."""


def constriction() -> ModuleType:
    """Return the package; MissingExtraError names the extra that installs it."""
    try:
        import constriction as package  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise MissingExtraError("constriction", "codec", "compressing") from None
    return package


class Stack:
    """A stack of bits that numbers are pushed to and popped from."""

    def __init__(self, words: Words, *, fresh: bool = False) -> None:
        """Take words from the bottom up; `fresh` ones are any, others were another stack's."""
        self._stream: Any = constriction().stream
        try:
            self._coder: Any = self._stream.stack.AnsCoder(words, fresh)
        except ValueError:  # a last word of 0, as no encoder leaves it
            raise CodecError("this file is damaged: a stream does not end like one") from None
        self._lowest = len(words)

    def push(self, numbers: Whole, mean: Real, std: Real) -> None:
        """Push numbers [n] under N(mean, std^2) of cells of width 1.

        Raises OutOfReachError, and changes nothing, where one lies too many cells off.
        """
        check_finite(mean, std)
        self._push(numbers, mean, std, _reach(std))

    def _push(self, numbers: Whole, mean: Real, std: Real, reach: int) -> None:
        centre = np.rint(mean)
        offset = numbers - centre.astype(np.int64)
        if len(offset) and int(np.abs(offset).max()) > reach:
            raise OutOfReachError
        self._coder.encode_reverse(offset.astype(np.int32), self._within(reach), mean - centre, std)

    def pop(self, mean: Real, std: Real) -> Whole:
        """Pop numbers [n] of that distribution."""
        check_finite(mean, std)
        return self._pop(mean, std, _reach(std))

    def push_near(self, numbers: Whole, mean: Real, std: float) -> None:
        """Push numbers that `pop_near` gave."""
        spread = np.full(mean.shape, std)
        check_finite(mean, spread)
        self._push(numbers, mean, spread, _tail(std))

    def pop_near(self, mean: Real, std: float) -> Whole:
        """Pop numbers of which none is farther off than a Gaussian's ever are."""
        spread = np.full(mean.shape, std)
        check_finite(mean, spread)
        return self._pop(mean, spread, _tail(std))

    def _pop(self, mean: Real, std: Real, reach: int) -> Whole:
        centre = np.rint(mean)
        offset = self._popped(self._coder.decode(self._within(reach), mean - centre, std))
        return offset + centre.astype(np.int64)

    def push_values(self, values: Whole, mean: Real, std: Real, top: int) -> None:
        """Push values [n] in 0..top, the ends' cells open-ended."""
        check_finite(mean, std)
        model = self._stream.model.QuantizedGaussian(0, top)
        self._coder.encode_reverse(values.astype(np.int32), model, mean, std)

    def pop_values(self, mean: Real, std: Real, top: int) -> Whole:
        """Pop such values."""
        check_finite(mean, std)
        model = self._stream.model.QuantizedGaussian(0, top)
        return self._popped(self._coder.decode(model, mean, std))

    def _popped(self, numbers: NDArray[np.int32]) -> Whole:
        self._lowest = min(self._lowest, self._coder.num_words())
        if self._lowest <= _MARGIN:
            raise CodecError("this file is damaged: it ends before its images do")
        return numbers.astype(np.int64)

    def copy(self) -> Stack:
        """Return a stack that changes by itself."""
        other = object.__new__(Stack)
        other._stream, other._coder, other._lowest = self._stream, self._coder.clone(), self._lowest
        return other

    def words(self, *, all_of_it: bool = False) -> Words:
        """Return what it holds, without the words at the bottom that no pop has come near."""
        whole: Words = self._coder.get_compressed()
        return whole if all_of_it else whole[max(self._lowest - _MARGIN - 1, 0) :]

    def _within(self, reach: int) -> Any:
        return self._stream.model.QuantizedGaussian(-reach, reach)


def _tail(std: float) -> int:
    return int(np.ceil(_TAIL * std)) + 1


def _reach(std: Real) -> int:
    return min(max(_REACH, _tail(float(std.max(initial=0.0)))), _MOST)


def check_finite(mean: Real, std: Real) -> None:
    """Raise CodecError for parameters that no coder can use: a NaN would be coded in silence."""
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise CodecError(
            "the model's answer is not finite, so it cannot tell how likely pixels are: its "
            "training diverged, or it was asked in a precision too low for it"
        )
