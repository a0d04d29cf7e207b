"""Images that a model draws, as a set to measure, each drawn once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.pixels import from_model
from sfumato.errors import DataError
from sfumato.recipes.environment import describe
from sfumato.recipes.evaluation.cache import Cache, Shelf
from sfumato.recipes.evaluation.sets import CHUNK
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import SamplerConfig

PIECE = 64
"""Images drawn between two looks at the clock, about: the unit of drawing."""


class Drawn:
    """Images drawn by a model, image i from seed `seed` + i, kept in the cache as they come.

    They are kept before they are rounded to pixels, for questions about rounding.
    """

    def __init__(
        self,
        model: Model,
        n: int,
        cache: Cache,
        *,
        seed: int = 0,
        label: str | None = None,
        sampler: SamplerConfig | None = None,
    ) -> None:
        if n < 1:
            raise DataError(f"expected at least one image to draw, not {n}")
        self.model, self.n, self.seed, self.label = model, n, seed, label
        self.sampler = sampler or model.recipe.sampler
        self.tick: Callable[[int], object] = lambda drawn: None
        """Told how many images were just drawn."""
        self.name = "samples"
        self.format, self.classes = model.format, model.classes
        recipe, weaker = model.recipe, model.weaker
        machine = describe(str(model.device))
        self.description = {
            "weights": model.fingerprint or _hash_of(model),
            "model": {
                "process": repr(recipe.process),
                "predicts": recipe.predicts,
                "variance": recipe.variance,
                "network": repr(recipe.network),
            },
            "format": model.format.to_toml(),
            **({"weaker": weaker.fingerprint or _hash_of(weaker)} if weaker else {}),
            "sampler": {k: repr(v) for k, v in vars(self.sampler).items()},
            "precision": model.precision,
            "device": model.device.type,
            "made by": {
                "sfumato": machine["sfumato"],
                "torch": machine["torch"],
                "hardware": machine["device"].partition("(")[2].rstrip(")"),
            },
            "class": label or "",
            "seed": seed,
            "n": n,
        }
        # Whole network batches, as a part of one costs as much as all of it.
        self._size = max(PIECE // self.sampler.batch, 1) * self.sampler.batch
        # Without n: a longer set begins with the pieces of a shorter one.
        described = {k: v for k, v in self.description.items() if k != "n"}
        self._shelf: Shelf = cache.shelf("drawn", {**described, "piece": self._size})
        self._clock: Shelf = cache.shelf("seconds", {**described, "piece": self._size})

    def __len__(self) -> int:
        return self.n

    @property
    def seeds(self) -> range:
        """The seed of every image."""
        return range(self.seed, self.seed + self.n)

    @property
    def pieces(self) -> int:
        """How many pieces the images are drawn in."""
        return -(-self.n // self._size)

    def size(self, piece: int) -> int:
        """How many images a piece has."""
        return len(self._seeds(piece))

    def chunk(self, number: int) -> NDArray[Any]:
        """Raw images, drawn now or before."""
        return from_model(self.before_rounding(number), self.format)

    def before_rounding(self, number: int) -> Tensor:
        """The model's own values [n, C, H, W] of one chunk, float32."""
        start = number * CHUNK
        stop = min(start + CHUNK, self.n)
        first = start // self._size
        parts = [self.piece(i) for i in range(first, -(-stop // self._size))]
        whole = np.concatenate(parts)
        return torch.from_numpy(whole[start - first * self._size : stop - first * self._size])

    def labels(self) -> NDArray[np.int64] | None:
        """The class each image was asked to be."""
        asked = self.model.labels_for(self.seeds, self.label)
        return None if asked is None else asked.argmax(1).numpy()

    def has(self, piece: int) -> bool:
        """Whether a piece is drawn already."""
        return self._shelf.has(piece) and len(self._shelf.get(piece)) >= len(self._seeds(piece))

    def piece(self, number: int) -> NDArray[np.float32]:
        """One piece as the model gave it [n, C, H, W], drawn now or before."""
        seeds = self._seeds(number)
        if self.has(number):
            return self._shelf.get(number)[: len(seeds)]
        start = time.perf_counter()
        made = self._draw(seeds)
        batches = -(-len(seeds) // self.sampler.batch)
        seconds = (time.perf_counter() - start) / (batches * self.sampler.batch)
        self._shelf.put(number, made)
        self._clock.put(number, np.asarray(seconds))
        return made

    @property
    def seconds_per_image(self) -> float | None:
        """How long drawing an image took, padding counted as images; None where nobody timed it."""
        known = [self._clock.get(i) for i in range(self.pieces) if self._clock.has(i)]
        return float(np.mean(known)) if known else None

    def _seeds(self, piece: int) -> range:
        return self.seeds[piece * self._size : (piece + 1) * self._size]

    def _draw(self, seeds: Sequence[int]) -> NDArray[np.float32]:
        parts: list[Tensor] = []
        for part in self.model.drawn(seeds, label=self.label, sampler=self.sampler):
            parts.append(part)
            self.tick(len(part))
        return torch.cat(parts).float().numpy()


def _hash_of(model: Model) -> str:
    """A fingerprint of weights in memory."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(model.network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
