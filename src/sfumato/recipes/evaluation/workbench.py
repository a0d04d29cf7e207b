"""The place where features are made: extractors and tables, each made once, with progress bars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from sfumato.metrics.channels import ToThree
from sfumato.metrics.features import FeatureExtractor
from sfumato.metrics.foreign import Feeding
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.extractors import channel_rule, extractor_of
from sfumato.recipes.evaluation.processes import Processes
from sfumato.recipes.evaluation.sets import Drawn, ImageSet, chunk_count
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.table import Alter, FeatureTable


class Workbench:
    """Extractors and feature tables, each made once."""

    def __init__(
        self,
        settings: Settings,
        cache: Cache,
        processes: Processes,
        labelled: ImageSet | None,
        pca_of: ImageSet | None,
        device: str,
    ) -> None:
        """Where asked, `labelled` images train a classifier, `pca_of` fits a PCA."""
        self._device = device
        self.settings, self.cache, self.processes = settings, cache, processes
        self._labelled, self._pca_of = labelled, pca_of
        self._extractors: dict[tuple[str, str], FeatureExtractor] = {}
        self._tables: dict[tuple[str, str, str | None, str], FeatureTable] = {}
        self._rule: ToThree | None = None

    def extractor(self, words: str, resize: str | None = None) -> FeatureExtractor:
        """The extractor of these words, by the settings' resize unless another is given."""
        how = self.settings.resize if resize is None else resize
        if (words, how) not in self._extractors:
            made = extractor_of(words, how, self._feeding(), self._labelled)
            move: Callable[[torch.device], FeatureExtractor] = made.to  # pyright: ignore
            self._extractors[words, how] = move(torch.device(self._device))
        return self._extractors[words, how]

    def table(
        self,
        images: ImageSet,
        words: str,
        resize: str | None = None,
        alter: tuple[str, Alter] | None = None,
    ) -> FeatureTable:
        """The features of a set, filled by this process's share of the work."""
        key = (repr(images.description), words, resize, alter[0] if alter else "")
        if key not in self._tables:
            table = FeatureTable(
                images,
                self.extractor(words, resize),
                self.cache,
                channels=self._channels(),
                logits="is" in self.settings.metrics and words == self.settings.features,
                alter=alter,
            )
            self._tables[key] = self.fill(table)
        return self._tables[key]

    def fill(self, table: FeatureTable) -> FeatureTable:
        """Compute a table with a progress bar; all processes leave together."""
        title = f"features of {table.images.name}"
        with self._bar(len(table), title) as bar:
            table.prepare(self.processes, lambda n: bar.update(n) and None)
        self.processes.wait()
        return table

    def draw(self, samples: ImageSet) -> None:
        """Draw a model's images with a progress bar, all processes together."""
        if not isinstance(samples, Drawn):
            return
        with self._bar(len(samples), f"drawing {samples.name}") as bar:
            samples.tick = bar.update
            for number in range(chunk_count(samples)):
                if not self.processes.mine(number):
                    continue
                if samples.has(number):
                    bar.update(len(samples.chunk(number)))
                else:
                    samples.chunk(number)
        self.processes.wait()

    def _feeding(self) -> Feeding:
        s = self.settings
        return Feeding(s.feed_size, s.feed_low, s.feed_high)

    def _bar(self, total: int, title: str) -> Any:
        return tqdm(total=total, unit="img", desc=title, disable=not self.processes.first)

    def _channels(self) -> ToThree | None:
        if self._rule is None and self._pca_of is not None:
            self._rule = channel_rule(self.settings.bands, self._pca_of)
        return self._rule
