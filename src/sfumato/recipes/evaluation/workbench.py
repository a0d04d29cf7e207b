"""The place where features are made: extractors and tables, each made once, with progress bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sfumato.errors import DataError
from sfumato.metrics.channels import ToThree
from sfumato.metrics.features import FeatureExtractor
from sfumato.metrics.foreign import Feeding
from sfumato.metrics.resize import ANTIALIASED_BICUBIC
from sfumato.processes import Processes
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.evaluation.extractors import RESIZES, channel_rule, extractor_of, on_device
from sfumato.recipes.evaluation.sets import ImageSet
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
            made = extractor_of(words, how, self._feeding(how), self._labelled, self._watch)
            self.processes.check_same(made.fingerprint, f"weights of {made.name}")
            self._extractors[words, how] = on_device(made, torch.device(self._device))
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
            self._tables[key] = self.fill(self._plan(images, words, resize, alter))
        return self._tables[key]

    def try_out(self, images: ImageSet, words: str) -> tuple[FeatureTable, int]:
        """A table with nothing computed yet, and how many features an image has.

        Raises what the extractor does for images it cannot take, before any are made.
        """
        table = self._plan(images, words)
        form = images.format
        noise = torch.rand(2, *form.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        rows = table.features_of(noise)
        return table, int(rows[0, -1]) if table.logits else rows.shape[1]

    def _plan(
        self,
        images: ImageSet,
        words: str,
        resize: str | None = None,
        alter: tuple[str, Alter] | None = None,
    ) -> FeatureTable:
        return FeatureTable(
            images,
            self.extractor(words, resize),
            self.cache,
            channels=self._channels(),
            logits="is" in self.settings.metrics and words == self.settings.features,
            alter=alter,
        )

    def used(self) -> dict[str, str]:
        """The extractors so far, by the words that name them, with their weights."""
        return {
            f"{words} {how}".rstrip(): f"{one.name} (weights {one.fingerprint})"
            for (words, how), one in self._extractors.items()
        }

    def fill(self, table: FeatureTable) -> FeatureTable:
        """Compute a table with a progress bar; all processes leave together.

        Where one cannot go on, all raise its DataError.
        """
        title, failure = f"features of {table.images.name}", ""
        with self._bar(len(table), title) as bar:
            try:
                table.prepare(self.processes, lambda n: bar.update(n) and None)
            except DataError as error:
                failure = str(error)
        self.processes.agree(failure)
        return table

    def draw(self, samples: ImageSet) -> None:
        """Draw a model's images with a progress bar, all processes together."""
        if not isinstance(samples, Drawn):
            return
        mine = list(filter(self.processes.mine, range(samples.pieces)))
        title = ", ".join(filter(None, (f"drawing {samples.name}", self.processes.named)))
        with self._bar(sum(map(samples.size, mine)), title) as bar:
            samples.tick = bar.update
            for number in mine:
                done = samples.has(number)
                drawn = samples.piece(number)
                if done:
                    bar.update(len(drawn))
        self.processes.wait()

    def _feeding(self, resize: str) -> Feeding:
        s = self.settings
        how = RESIZES[resize] if resize else ANTIALIASED_BICUBIC
        return Feeding(s.feed_size, s.feed_low, s.feed_high, how)

    def _bar(self, total: int, title: str) -> Any:
        return tqdm(total=total, unit="img", desc=title, disable=not self.processes.first)

    def _watch(self, batches: Sequence[Tensor]) -> Iterable[Tensor]:
        quiet = not self.processes.first
        return tqdm(batches, unit="batch", desc="classifier", delay=1, disable=quiet)

    def _channels(self) -> ToThree | None:
        if self._rule is None and self._pca_of is not None:
            self._rule = channel_rule(self.settings.bands, self._pca_of)
        return self._rule
