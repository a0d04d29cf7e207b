"""Images to few bits: every step of the reverse process sent as a sample (DDPM Algorithms 3, 4).

Sender and receiver walk down the noise levels together, from shared noise. At each, the sender
draws x_s from q(x_s | x, x0) by relative entropy coding under the model's p(x_s | x), so both have
it. Stop anywhere: D(x) is the picture. Levels are sent one after another for all images, so a file
cut short is one of fewer levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfumato.codec.lattice import Answer, Asker, step_down
from sfumato.codec.profile import CHUNK_BITS
from sfumato.codec.queue import OTHERWISE, Sink, Source
from sfumato.codec.relative_entropy import (
    CANDIDATES_LOG2,
    Chunks,
    Codebook,
    choose,
    kl_bits,
    place_model,
)
from sfumato.codec.stack import Real, Whole, Words, check_finite, constriction
from sfumato.errors import CodecError
from sfumato.noise import F64
from sfumato.randomness import Noise, Purpose, derive_seed

_RATIOS = (-4, 10)
"""What an image's level really costs over what was expected, in powers of sqrt(2): it is told."""
_FIRST_RATIO, _NEXT_RATIO = 1.1, 0.5
"""How far it is off what is expected: 0 at first, then that of the level before."""

Tick = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Shown:
    """What a receiver has after some levels: x [n, d] at sigma, and the picture D(x) [n, d]."""

    index: int
    sigma: float
    x: Real
    picture: Real


@dataclass(frozen=True, eq=False)
class Step:
    """One level's transition in units both sides know: x_s = mean + std z, z ~ N(0, 1) under p."""

    mean: Real
    std: Real
    ratio: Real
    """Deviation of z under q."""
    expected: Real
    """Bits a value."""


@dataclass(frozen=True, eq=False)
class Lossy:
    """A coder of images in [-1, 1], [n, d], along `sigmas`, descending.

    Image i starts from the noise of seed `seed` + i.
    """

    ask: Asker
    sigmas: Sequence[float]
    prior_std: float
    seed: int = 0

    def encode(
        self,
        images: Real,
        tick: Tick = lambda n: None,
        *,
        values: Whole | None = None,
        top: int = 0,
    ) -> tuple[Words, Real]:
        """Return a stream of words, level after level, and the pictures they give.

        With the images' `values` [n, d] in 0..top the stream ends with them, under the discretised
        decoder: without loss. The levels must then go down to the profile's lowest.
        """
        book = Codebook()
        x = self._start(len(images))
        coder, ratios = Sink(), [0] * len(images)
        for index in range(len(self.sigmas) - 1):
            answer = self._answers(x, index)
            for image in range(len(images)):
                step = self._step(index, x[image], answer, image)
                keep = (self.sigmas[index + 1] / self.sigmas[index]) ** 2
                wanted = keep * x[image] + (1 - keep) * images[image]
                mean = (wanted - step.mean) / step.std
                z, ratios[image] = self._send(
                    coder, book, step, mean, ratios[image], (index, image)
                )
                x[image] = step.mean + step.std * z
            tick(len(images))
        answer = self._answers(x, len(self.sigmas) - 1)
        if values is not None:
            for row, model in zip(values, self._pixels(answer, top), strict=True):
                coder.put(row.astype(np.int32), *model)
        return coder.words(), answer.mean

    def decode(
        self, words: Words, count: int, *, whole: bool = True, more: bool = False
    ) -> Iterator[Shown]:
        """Yield what is known at the first level, then at each as far as the words surely go.

        Raises CodecError where they do not go to the end though they are the `whole`, and where
        they go on after it, unless there is `more` in them.
        """
        for shown, _ in self._decode(Source(words, mirrored=not whole), count, more=more):
            yield shown

    def decode_values(
        self, words: Words, count: int, top: int, tick: Tick = lambda n: None
    ) -> Whole:
        """Return the values [count, d] of a stream that ends with them."""
        source = Source(words)
        last: Answer | None = None
        for _, answer in self._decode(source, count, more=True):
            last = answer
            tick(count)
        assert last is not None
        found = [source.take(*model) for model in self._pixels(last, top)]
        source.finish()
        return np.stack(found).astype(np.int64)

    def _decode(
        self, source: Source, count: int, *, more: bool = False
    ) -> Iterator[tuple[Shown, Answer]]:
        book, ratios = Codebook(), [0] * count
        x = self._start(count)
        for index in range(len(self.sigmas)):
            answer = self._answers(x, index)
            yield Shown(index, self.sigmas[index], x.copy(), answer.mean), answer
            if index == len(self.sigmas) - 1:
                break
            try:
                for image in range(count):
                    step = self._step(index, x[image], answer, image)
                    z, ratios[image] = self._receive(
                        source, book, step, ratios[image], (index, image)
                    )
                    x[image] = step.mean + step.std * z
            except CodecError:
                if source.cut_short:  # read past its end
                    return
                raise
            if not source.sure:
                return
        if not more and not source.cut_short:
            source.finish()

    def _pixels(self, answer: Answer, top: int) -> Iterator[tuple[Any, Real, Real]]:
        """What each image's values are coded under."""
        mean, std = self.ask.pixels(answer, top)
        check_finite(mean, std)
        model = constriction().stream.model.QuantizedGaussian(0, top)
        return ((model, *row) for row in zip(mean, std, strict=True))

    def _start(self, count: int) -> Real:
        noise = Noise(tuple(derive_seed(self.seed, "codec", i) for i in range(count)))
        start = noise.normal((math.prod(self.ask.shape),), Purpose.START, F64).numpy()
        return self.prior_std * start

    def _answers(self, x: Real, index: int) -> Answer:
        size = self.ask.batch
        found = [self.ask(x[i : i + size], self.sigmas[index]) for i in range(0, len(x), size)]
        return Answer(
            np.concatenate([one.mean for one in found]), np.concatenate([one.var for one in found])
        )

    def _step(self, index: int, x: Real, answer: Answer, image: int) -> Step:
        one = Answer(answer.mean[image], answer.var[image])
        mean, std, own = step_down(x, one, self.sigmas[index], self.sigmas[index + 1])
        ratio = own / std
        return Step(mean, std, ratio, -np.log2(ratio))

    def _chunks(self, step: Step, ratio: int, where: tuple[int, int]) -> Chunks:
        told = float(step.expected.sum()) * 2 ** (ratio / 2)
        count = min(max(1, round(told / CHUNK_BITS)), len(step.mean))
        # The weights are never 0, so that no chunk is empty.
        weights = step.expected + 1e-9
        return Chunks.of(weights, count, derive_seed(self.seed, "chunks", *where))

    def _send(
        self, coder: Sink, book: Codebook, step: Step, mean: Real, before: int,
        where: tuple[int, int],
    ) -> tuple[Real, int]:  # fmt: skip
        """Code a sample of N(mean, ratio^2); return it, [d], and what it cost as a ratio."""
        actual, expected = float(kl_bits(mean, step.ratio).sum()), float(step.expected.sum())
        ratio = round(2 * math.log2(max(actual, 1e-9) / max(expected, 1e-9)))
        ratio = min(max(ratio, _RATIOS[0]), _RATIOS[1])
        coder.put(ratio, _ratio_model(before, where[0]))
        chunks = self._chunks(step, ratio, where)
        clock = np.random.Generator(np.random.Philox(derive_seed(self.seed, "race", *where)))
        places = np.zeros(len(chunks), np.int64)
        out = np.zeros(len(mean))
        for number, part in enumerate(chunks.slices()):
            at = chunks.order[part]
            signs, begins = chunks.signs[part], chunks.begins[part]
            places[number] = choose(book, mean[at] * signs, step.ratio[at], begins, clock)
            out[at] = signs * book.candidate(int(places[number]), begins)
        octave, rest = _split(places)
        coder.put(octave, _octaves(), *_octave_model(step, chunks, ratio))
        wide = octave > 0
        if wide.any():
            uniform = constriction().stream.model.Uniform()
            coder.put(rest[wide], uniform, (1 << octave[wide]).astype(np.int32))
        return out, ratio

    def _receive(
        self, decoder: Source, book: Codebook, step: Step, before: int, where: tuple[int, int]
    ) -> tuple[Real, int]:
        ratio = int(decoder.take(_ratio_model(before, where[0])))
        chunks = self._chunks(step, ratio, where)
        octave = decoder.take(_octaves(), *_octave_model(step, chunks, ratio))
        rest = np.zeros(len(chunks), np.int32)
        wide = octave > 0
        if wide.any():
            uniform = constriction().stream.model.Uniform()
            rest[wide] = decoder.take(uniform, (1 << octave[wide]).astype(np.int32))
        places = (1 << octave.astype(np.int64)) - 1 + rest
        out = np.zeros(len(step.mean))
        for part, place in zip(chunks.slices(), places.tolist(), strict=True):
            at = chunks.order[part]
            if place >= book.count:
                raise CodecError(OTHERWISE)
            out[at] = chunks.signs[part] * book.candidate(place, chunks.begins[part])
        return out, ratio


def _octave_model(step: Step, chunks: Chunks, ratio: int) -> tuple[Real, Real]:
    bits = [
        2 ** (ratio / 2) * float(step.expected[chunks.order[part]].sum())
        for part in chunks.slices()
    ]
    model = [place_model(b) for b in bits]
    return np.array([m for m, _ in model]), np.array([s for _, s in model])


def _ratio_model(before: int, index: int) -> Any:
    std = _NEXT_RATIO if index else _FIRST_RATIO
    return constriction().stream.model.QuantizedGaussian(*_RATIOS, float(before), std)


def _octaves() -> Any:
    return constriction().stream.model.QuantizedGaussian(0, CANDIDATES_LOG2)


def _split(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places from 0 as the octave of place + 1, and the rest."""
    octave = np.array([int(p + 1).bit_length() - 1 for p in places.tolist()], np.int32)
    return octave, (places + 1 - (1 << octave.astype(np.int64))).astype(np.int32)
