"""Models trained on pairs: what they answer to images, and images to ask them with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.images import Images
from sfumato.data.pairs import records, split
from sfumato.data.pixels import from_model, to_model
from sfumato.data.reader import Reader
from sfumato.errors import ConfigError
from sfumato.metrics.thinning import spread
from sfumato.recipes.model import Model, RawImages
from sfumato.recipes.sampler_config import SamplerConfig


def answers(
    model: Model,
    conditions: Tensor,
    seeds: Sequence[int],
    sampler: SamplerConfig | None = None,
    *,
    label: str | None = None,
) -> Iterator[Tensor]:
    """Yield samples [<= batch, C, H, W] in [-1, 1], float32 on the host, one a row, in order.

    Row i starts from `conditions`[i] ([n, K, H, W] in [-1, 1]) and seeds[i]; `sampler` defaults to
    the recipe's, and `label` names a class, drawn by the seed where there are any and none is
    named. The network always runs on sampler.batch rows, so that the same condition and seed are
    the same picture for any number of rows. Raises ConfigError, at the call, for a model that was
    not trained on pairs and for conditions of another shape or number.
    """
    if model.condition is None:
        raise ConfigError(
            "this model was trained on images alone and starts from none: train one on pairs, with "
            "--condition image"
        )
    return model.drawn(seeds, label=label, sampler=sampler, images=conditions)


def answered(
    model: Model, source: Images, seeds: Sequence[int], sampler: SamplerConfig | None = None
) -> Iterator[RawImages]:
    """Yield raw images [<= batch, C, H, W], one a seed, of any model.

    One that starts from images is given inputs of the pairs `source`: a fair pick, again from its
    beginning where there are more seeds. Other models leave `source` alone.
    """
    if model.condition is None:
        yield from model.samples(seeds, sampler=sampler)
        return
    reader = Reader(records(source), cache_bytes=0)
    index = spread(len(source), min(len(seeds), len(source)))
    size = (sampler or model.recipe.sampler).batch
    for first in range(0, len(seeds), size):
        part = seeds[first : first + size]
        places = index[np.arange(first, first + len(part)) % len(index)]
        conditions, _ = _read(source, reader, places)
        for x in answers(model, conditions, part, sampler):
            yield from_model(x, model.format)


def picked(source: Images, count: int) -> tuple[Tensor, Tensor]:
    """Return a fair pick of at most `count` pairs: inputs and targets, [n, ., H, W] in [-1, 1]."""
    source = source.representative()
    reader = Reader(records(source), cache_bytes=0)
    return _read(source, reader, spread(len(source), min(count, len(source))))


def _read(source: Images, reader: Reader, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    raw, _ = reader.read(index)
    targets, inputs = split(source, raw)
    if inputs is None or source.inputs is None:
        raise ConfigError(
            f"{source.source}: expected pairs of images, got images alone: open them with "
            "sfumato.open_pairs, or --condition image"
        )
    return to_model(inputs, source.inputs.format), to_model(targets, source.format)
