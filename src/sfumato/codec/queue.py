"""Whole numbers in a queue of bits: constriction's range coder, as the lossy coder uses it."""

from __future__ import annotations

from typing import Any

from sfumato.codec.stack import Words, constriction
from sfumato.errors import CodecError

OTHERWISE = (
    "this file did not decode to what was coded: it is damaged, or this machine computes other "
    "last digits than the one it was made on"
)


class Sink:
    """A queue of numbers on their way into words."""

    def __init__(self) -> None:
        self._coder: Any = constriction().stream.queue.RangeEncoder()

    def put(self, numbers: Any, model: Any, *parameters: Any) -> None:
        """Append a number, or int32 numbers [n], under a model."""
        self._coder.encode(numbers, model, *parameters)

    def words(self) -> Words:
        """Return all of it."""
        return self._coder.get_compressed()


class Source:
    """Words on their way back into numbers; `mirrored` where they may be the beginning only.

    What was read is then coded again, which tells how many words it took.
    """

    def __init__(self, words: Words, *, mirrored: bool = False) -> None:
        queue = constriction().stream.queue
        self._coder: Any = queue.RangeDecoder(words)
        self._mirror: Any = queue.RangeEncoder() if mirrored else None
        self._length = len(words)

    @property
    def cut_short(self) -> bool:
        """Whether the words may be the beginning only."""
        return self._mirror is not None

    @property
    def sure(self) -> bool:
        """Whether all that was read stood in the words: the coder looks two words ahead."""
        return self._mirror is None or self._mirror.num_words() + 2 <= self._length

    def take(self, model: Any, *parameters: Any) -> Any:
        """Read what `Sink.put` appended."""
        try:
            numbers = self._coder.decode(model, *parameters)
        except (AssertionError, ValueError):
            raise CodecError(OTHERWISE) from None
        if self._mirror is not None:
            self._mirror.encode(numbers, model, *parameters)
        return numbers

    def finish(self) -> None:
        """Raise CodecError unless everything was read."""
        if not self._coder.maybe_exhausted():
            raise CodecError(OTHERWISE)
