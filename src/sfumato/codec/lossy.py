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
from functools import cached_property
from typing import Any

import numpy as np

from sfumato.codec.lattice import Answer, Asker, step_down
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
_FIRST_STD = 0.6


@dataclass(frozen=True)
class _Manner:
    """How an image's ratio is told: as that of the level before, unless it is too far off that."""

    kept: tuple[float, float]
    std: float
    """Of the Gaussian that a new ratio is coded under."""
    gain: float
    """How much the places that were sent then tell of the next level's."""
    unsure: float
    """Deviation of what a chunk costs, over what is told."""


# Where one chunk is sent anyway, a bit more or less in its place costs less than to tell.
_ONE = _Manner((-2.5, 1.5), 0.25, 0.15, 0.25)
_SOME = _Manner((-1.0, 1.0), 0.37, 0.0, 0.0)

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

    Each chunk of values is searched for among 2^`search` candidates: more take longer, and need
    fewer bits.
    """

    ask: Asker
    sigmas: Sequence[float]
    prior_std: float
    search: int = CANDIDATES_LOG2
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
        x = self._start(len(images))
        coder, ratios = Sink(), [0.0] * len(images)
        for index in range(len(self.sigmas) - 1):
            answer = self._answers(x, index)
            for image in range(len(images)):
                step = self._step(index, x[image], answer, image)
                keep = (self.sigmas[index + 1] / self.sigmas[index]) ** 2
                wanted = keep * x[image] + (1 - keep) * images[image]
                mean = (wanted - step.mean) / step.std
                z, ratios[image] = self._send(coder, step, mean, ratios[image], (index, image))
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
        ratios = [0.0] * count
        x = self._start(count)
        for index in range(len(self.sigmas)):
            answer = self._answers(x, index)
            yield Shown(index, self.sigmas[index], x.copy(), answer.mean), answer
            if index == len(self.sigmas) - 1:
                break
            try:
                for image in range(count):
                    step = self._step(index, x[image], answer, image)
                    z, ratios[image] = self._receive(source, step, ratios[image], (index, image))
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
        count = min(max(1, round(told / self._book.chunk_bits)), len(step.mean))
        # The weights are never 0, so that no chunk is empty.
        weights = step.expected + 1e-9
        seed = derive_seed(self.seed, "chunks", *where)
        return Chunks.of(weights, count, seed, self._book.count)

    def _send(
        self, coder: Sink, step: Step, mean: Real, before: float, where: tuple[int, int]
    ) -> tuple[Real, float]:
        """Code a sample of N(mean, ratio^2); return it, [d], and what the next may cost."""
        manner = self._manner(step, before)
        actual = float(kl_bits(mean, step.ratio).sum())
        ratio = _ratio(actual, float(step.expected.sum()), round(before), manner)
        coder.put(ratio, _ratio_model(round(before), manner, where[0]))
        chunks = self._chunks(step, ratio, where)
        clock = np.random.Generator(np.random.Philox(derive_seed(self.seed, "race", *where)))
        places = np.zeros(len(chunks), np.int64)
        out = np.zeros(len(mean))
        for number, part in enumerate(chunks.slices()):
            at = chunks.order[part]
            signs, begins = chunks.signs[part], chunks.begins[part]
            places[number] = choose(self._book, mean[at] * signs, step.ratio[at], begins, clock)
            out[at] = signs * self._book.candidate(int(places[number]), begins)
        octave, rest = _split(places)
        models = self._models(step, chunks, ratio, manner)
        coder.put(octave, self._octaves(), *models)
        wide = octave > 0
        if wide.any():
            uniform = constriction().stream.model.Uniform()
            coder.put(rest[wide], uniform, (1 << octave[wide]).astype(np.int32))
        return out, _next(ratio, octave, models[0], manner)

    def _receive(
        self, source: Source, step: Step, before: float, where: tuple[int, int]
    ) -> tuple[Real, float]:
        manner = self._manner(step, before)
        ratio = int(source.take(_ratio_model(round(before), manner, where[0])))
        chunks = self._chunks(step, ratio, where)
        models = self._models(step, chunks, ratio, manner)
        octave = source.take(self._octaves(), *models)
        rest = np.zeros(len(chunks), np.int32)
        wide = octave > 0
        if wide.any():
            uniform = constriction().stream.model.Uniform()
            rest[wide] = source.take(uniform, (1 << octave[wide]).astype(np.int32))
        places = (1 << octave.astype(np.int64)) - 1 + rest
        out = np.zeros(len(step.mean))
        for part, place in zip(chunks.slices(), places.tolist(), strict=True):
            at = chunks.order[part]
            if place >= self._book.count:
                raise CodecError(OTHERWISE)
            out[at] = chunks.signs[part] * self._book.candidate(place, chunks.begins[part])
        return out, _next(ratio, octave, models[0], manner)

    def _manner(self, step: Step, before: float) -> _Manner:
        told = float(step.expected.sum()) * 2 ** (before / 2)
        return _ONE if told < 1.5 * self._book.chunk_bits else _SOME

    def _models(self, step: Step, chunks: Chunks, ratio: int, manner: _Manner) -> tuple[Real, Real]:
        """Mean and deviation of what the octaves of the chunks' places are coded under."""
        expected = [float(step.expected[chunks.order[part]].sum()) for part in chunks.slices()]
        told = 2 ** (ratio / 2) * np.array(expected)
        mean, std = np.array([place_model(bits, self.search) for bits in told.tolist()]).T
        return mean, np.hypot(std, manner.unsure * told)

    def _octaves(self) -> Any:
        return constriction().stream.model.QuantizedGaussian(0, self.search)

    @cached_property
    def _book(self) -> Codebook:
        return Codebook(self.search, self.ask.device)


def _ratio(actual: float, expected: float, before: int, manner: _Manner) -> int:
    """Return what a level really costs over what was expected, in powers of sqrt(2)."""
    exact = 2 * math.log2(max(actual, 1e-9) / max(expected, 1e-9))
    if manner.kept[0] <= exact - before <= manner.kept[1]:
        return before
    return min(max(round(exact), _RATIOS[0]), _RATIOS[1])


def _ratio_model(before: int, manner: _Manner, index: int) -> Any:
    std = manner.std if index else _FIRST_STD
    return constriction().stream.model.QuantizedGaussian(*_RATIOS, float(before), std)


def _next(ratio: int, octave: np.ndarray, expected: Real, manner: _Manner) -> float:
    """Return what ratio is expected of the next level: this one's, and what its places tell."""
    least = float(expected.clip(min=1).sum())
    more = float((octave - expected).sum()) / least
    guess = ratio + 2 * manner.gain * math.log2(max(1 + more, 0.5))
    return min(max(guess, _RATIOS[0]), _RATIOS[1])


def _split(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places from 0 as the octave of place + 1, and the rest."""
    octave = np.array([int(p + 1).bit_length() - 1 for p in places.tolist()], np.int32)
    return octave, (places + 1 - (1 << octave.astype(np.int64))).astype(np.int32)
