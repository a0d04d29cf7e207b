"""Features of a set, computed once chunk by chunk, by as many processes as there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.errors import ConfigError, DataError
from sfumato.metrics.channels import FirstThree, ToThree
from sfumato.metrics.classifier import Classifier
from sfumato.metrics.features import Classifying, FeatureExtractor, features
from sfumato.metrics.foreign import ForeignFeatures
from sfumato.metrics.frechet import FeatureStatistics
from sfumato.metrics.thinning import dealt, spread
from sfumato.processes import Processes
from sfumato.recipes.environment import describe
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.sets import CHUNK, Band, ImageSet, chunk_count, pixels

Alter = Callable[[Tensor], Tensor]


class FeatureTable:
    """Feature rows (and class logits, where asked) of one set by one extractor."""

    def __init__(
        self,
        images: ImageSet,
        extractor: FeatureExtractor,
        cache: Cache,
        *,
        channels: ToThree | None = None,
        logits: bool = False,
        alter: tuple[str, Alter] | None = None,
    ) -> None:
        """`alter`, with a name, changes the images first: a convention on trial."""
        self.images, self.extractor, self.logits = images, extractor, logits
        if logits and not hasattr(extractor, "features_and_logits"):
            raise ConfigError(
                f"the Inception Score needs an extractor with classes, not {extractor.name}: "
                "use --features efficientnet, inception or classifier"
            )
        self._channels = channels if not isinstance(channels, FirstThree) else None
        self._alter = alter
        count = images.format.channels
        as_they_are = self._channels is None and isinstance(extractor, ForeignFeatures | Classifier)
        self.channels = (
            f"all {count} channels" if as_they_are else (channels or FirstThree()).describe(count)
        )
        if isinstance(images, Band):
            self.channels = f"{images.place}; {self.channels}"
        description = {
            "images": images.description,
            "extractor": extractor.name,
            "weights": extractor.fingerprint,
            "channels": self.channels,
            "logits": logits,
            "altered": alter[0] if alter else "",
            "made by": {k: v for k, v in describe("cpu").items() if k in ("sfumato", "torch")},
        }
        self._shelf = cache.shelf("features", description)

    @property
    def fed(self) -> str:
        """Extractor (with its resize) and the rule for channels: what statistics must agree in."""
        return f"{self.extractor.name}; {self.channels}"

    @property
    def name(self) -> str:
        """Extractor, weights and the rule for channels: what makes two numbers comparable."""
        return f"{self.fed} (weights {self.extractor.fingerprint})"

    def __len__(self) -> int:
        return len(self.images)

    def prepare(self, processes: Processes, tick: Callable[[int], None]) -> None:
        """Compute what is missing of this process's share; `tick` is told the images done."""
        for number in range(chunk_count(self.images)):
            size = min(CHUNK, len(self) - number * CHUNK)
            if processes.mine(number) and not self._shelf.has(number):
                self._shelf.put(number, self._compute(number))
            tick(size)

    def rows(self, most: int = 0) -> Tensor:
        """Feature rows [n, F]; thinned to `most` of them if above 0."""
        return torch.from_numpy(np.concatenate(list(self._read("features", most))))

    def class_probabilities(self, most: int = 0) -> Tensor:
        """Class probabilities [n, K] in float64; thinned to `most` of them if above 0."""
        read = np.concatenate(list(self._read("logits", most)))
        return torch.from_numpy(read).double().softmax(1)

    def statistics(self) -> FeatureStatistics:
        """Count, mean and covariance, streamed in a fixed order."""
        made: FeatureStatistics | None = None
        for rows in self._read("features"):
            made = made or FeatureStatistics(rows.shape[1])
            made.update(rows)
        assert made is not None
        return made

    def parts(self, count: int) -> list[FeatureStatistics]:
        """Statistics of `count` equal parts, dealt at random but the same every time."""
        made: list[FeatureStatistics] = []
        owner, first = dealt(len(self), count), 0
        for rows in self._read("features"):
            made = made or [FeatureStatistics(rows.shape[1]) for _ in range(count)]
            owners = owner[first : first + len(rows)]
            for index, part in enumerate(made):
                part.update(rows[owners == index])
            first += len(rows)
        return made

    def _read(self, part: str, most: int = 0) -> Iterator[NDArray[np.float32]]:
        wanted = spread(len(self), most or len(self))
        for number in range(chunk_count(self.images)):
            start = number * CHUNK
            chosen = wanted[(wanted >= start) & (wanted < start + CHUNK)] - start
            if not len(chosen):
                continue
            kept = self._shelf.get(number)
            # With logits, the last entry of a row says how many of the others are features.
            width = int(kept[0, -1]) if self.logits else kept.shape[1]
            yield (kept[:, :width] if part == "features" else kept[:, width:-1])[chosen]

    def _compute(self, number: int) -> NDArray[np.float32]:
        rows = self.features_of(pixels(self.images, number))
        if not bool(rows.isfinite().all()):
            first = number * CHUNK
            raise DataError(
                f"{self.extractor.name} gave NaN or infinity for an image among {first} to "
                f"{first + len(rows) - 1} of the {self.images.name}: wrong range, or damaged "
                "weights?"
            )
        return rows.numpy()

    def features_of(self, x: Tensor) -> Tensor:
        """Feature rows, and logits where asked, of images [n, C, H, W] in [-1, 1]."""
        if self._alter is not None:
            x = self._alter[1](x)
        if self._channels is not None:
            x = self._channels(x)
        extractor = _Both(cast(Classifying, self.extractor)) if self.logits else self.extractor
        return torch.cat(list(features([x], extractor)))


class _Both:
    """Features and logits side by side, and the number of features: one pass for both."""

    def __init__(self, extractor: Classifying) -> None:
        self.name, self.fingerprint = extractor.name, extractor.fingerprint
        self._extractor = extractor

    def __call__(self, images: Tensor) -> Tensor:
        made, logits = self._extractor.features_and_logits(images)
        width = made.new_full((len(made), 1), made.shape[1])
        return torch.cat([made, logits.to(made), width], 1)
