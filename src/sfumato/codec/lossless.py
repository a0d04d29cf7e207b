"""Images to bits and back, exactly: bits-back coding through the noise levels, one after another.

To push an image: pop x at the lowest level from q(x | x0), push x0 under the discretised decoder;
then for every level upwards pop x there from q(x | x below), and push x below under the model's
p(x below | x). At the top push x under the prior. What popping takes is what the image's noise is
worth, so that the length is the variational bound's; only the stack's first bits, those of the
lowest level or two, are not regained (Ho et al. 2020, section 4.3; Kingma, Abbeel & Ho 2019,
"Bit-Swap"; Kingma et al. 2021, appendix on compression).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sfumato.codec.lattice import Answer, Asker, Lattice
from sfumato.codec.queue import OTHERWISE
from sfumato.codec.stack import OutOfReachError, Stack, Whole, Words
from sfumato.errors import CodecError

_FIRST_BITS = 64
"""Bits a value that the stack starts with: more than is ever popped before something is pushed."""


@dataclass(frozen=True, eq=False)
class Lossless:
    """A coder of images with values 0..top, several streams at a time.

    `streams` images are coded at once, each on a stack of its own: the network then runs on as
    many, and each stack has first bits to pay.
    """

    ask: Asker
    lattice: Lattice
    top: int
    prior_std: float

    @property
    def streams(self) -> int:
        """How many images are coded at once."""
        return self.ask.batch

    def encode(
        self, images: Whole, tick: Callable[[int], object] = lambda n: None
    ) -> tuple[list[Words], list[int]]:
        """Return the streams of images [n, d], and the places of those that could not be coded.

        Those are so unlike what the model knows that a number was out of the coder's reach.
        """
        stacks = [
            Stack(self._first_words, fresh=True) for _ in range(min(self.streams, len(images)))
        ]
        left_out: list[int] = []
        for first in range(0, len(images), self.streams):
            row = list(range(first, min(first + self.streams, len(images))))
            while row:
                before = [stack.copy() for stack in stacks]
                failed = self._push_row(images[row], [stacks[i % self.streams] for i in row])
                if failed is None:
                    break
                stacks = before
                left_out.append(row.pop(failed))
            tick(min(self.streams, len(images) - first))
        return [stack.words() for stack in stacks], sorted(left_out)

    def decode(
        self,
        streams: Sequence[Words],
        count: int,
        left_out: Sequence[int] = (),
        tick: Callable[[int], object] = lambda n: None,
    ) -> Whole:
        """Return the images [count, d]; zeros in place of those left out.

        Raises CodecError where the streams do not end as they were begun: they are damaged, or
        something was computed otherwise than on coding.
        """
        stacks = [Stack(words) for words in streams]
        images = np.zeros((count, math.prod(self.ask.shape)), np.int64)
        missing = set(left_out)
        for first in reversed(range(0, count, self.streams)):
            row = [i for i in range(first, min(first + self.streams, count)) if i not in missing]
            if row:
                try:
                    images[row] = self._pop_row([stacks[i % self.streams] for i in row])
                except OutOfReachError:
                    raise CodecError(OTHERWISE) from None
            tick(min(self.streams, count - first))
        first_words = np.append(self._first_words, np.uint32(1))
        for stack in stacks:
            left = stack.words(all_of_it=True)
            if not np.array_equal(left, first_words[-len(left) :]):
                raise CodecError(OTHERWISE)
        return images

    @property
    def _first_words(self) -> Words:
        """The bits each stack starts with: any would do, but these are known to both sides."""
        size = math.prod(self.ask.shape) * _FIRST_BITS // 32 + 64
        generator = np.random.Generator(np.random.Philox(0))
        return generator.integers(0, 2**32, size, dtype=np.uint32)

    def _push_row(self, values: Whole, stacks: Sequence[Stack]) -> int | None:
        """Push an image to each stack; None, or which of them failed (all are changed then)."""
        lattice, lowest = self.lattice, len(self.lattice.sigmas) - 1
        scaled = values / (self.top / 2) - 1
        below: Whole | None = None
        for index in reversed(range(lowest + 1)):
            mean = scaled if below is None else below * lattice.spacing(index + 1)
            std = lattice.forward_std(index)
            cells = np.stack(
                [
                    stack.pop_near(row, std)
                    for stack, row in zip(stacks, mean / lattice.spacing(index), strict=True)
                ]
            )
            answer = self._answer(index, cells)
            if below is None:
                at, width = self.ask.pixels(answer, self.top)
                for place, stack in enumerate(stacks):
                    stack.push_values(values[place], at[place], width[place], self.top)
            else:
                at, width = lattice.down(index, cells, answer)
                for place, stack in enumerate(stacks):
                    try:
                        stack.push(below[place], at[place], width[place])
                    except OutOfReachError:
                        return place
            below = cells
        assert below is not None
        for place, stack in enumerate(stacks):
            try:
                stack.push(below[place], *self._prior(below[place]))
            except OutOfReachError:
                return place
        return None

    def _pop_row(self, stacks: Sequence[Stack]) -> Whole:
        """Undo `_push_row`, last things first."""
        lattice, lowest = self.lattice, len(self.lattice.sigmas) - 1
        size = math.prod(self.ask.shape)
        cells = np.stack([stack.pop(*self._prior(np.zeros(size))) for stack in reversed(stacks)])
        cells = cells[::-1]
        for index in range(lowest + 1):
            answer = self._answer(index, cells)
            if index == lowest:
                at, width = self.ask.pixels(answer, self.top)
                below = np.stack(
                    [stack.pop_values(at[i], width[i], self.top) for i, stack in enumerate(stacks)]
                )
                mean = below / (self.top / 2) - 1
            else:
                at, width = lattice.down(index, cells, answer)
                below = np.stack([stack.pop(at[i], width[i]) for i, stack in enumerate(stacks)])
                mean = below * lattice.spacing(index + 1)
            std = lattice.forward_std(index)
            for i, stack in enumerate(stacks):
                row = mean[i] / lattice.spacing(index)
                stack.push_near(cells[i], row, std)
            cells = below
        return cells

    def _answer(self, index: int, cells: Whole) -> Answer:
        x = cells.astype(np.float64) * self.lattice.spacing(index)
        return self.ask(x, self.lattice.sigmas[index])

    def _prior(self, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        std = self.prior_std / self.lattice.spacing(0)
        return np.zeros(like.shape), np.full(like.shape, std)
