"""How near restored images are to the truth: squared error, structure, and features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.pixels import PixelFormat, to_model
from sfumato.errors import MissingExtraError
from sfumato.metrics.efficientnet import efficientnet_features
from sfumato.metrics.features import FeatureExtractor
from sfumato.metrics.paired import feature_distance, paired_scores, psnr

T = TypeVar("T")

TO_SHOW = 2**22
"""Values of an image that is still put on a page."""


@dataclass(frozen=True, eq=False)
class Shown:
    """One image's answers [n, C, H, W] raw, what was given [C', h, w] in [-1, 1], and the truth.

    `form` is that of an answer and of the truth [C, H, W].
    """

    name: str
    given: Tensor
    answers: NDArray[Any]
    truth: NDArray[Any] | None
    form: PixelFormat

    @property
    def small(self) -> bool:
        """Whether it fits on a page."""
        return self.answers[0].size <= TO_SHOW


@dataclass(frozen=True)
class Score:
    """One picture's: PSNR in dB, SSIM (None below 11 px), and the distance of its features.

    The last is Euclidean, of EfficientNet-Lite0's 1280 pooled features at 96 x 96 px: 0 for the
    truth itself. None for what needs a package that is missing.
    """

    image: str
    what: str
    psnr: float
    ssim: float | None
    features: float | None

    def __str__(self) -> str:
        told = f"{self.image}, {self.what}: PSNR {self.psnr:.2f} dB"
        told += "" if self.ssim is None else f", SSIM {self.ssim:.4f}"
        return told + ("" if self.features is None else f", features {self.features:.2f}")


class Scorer:
    """Tells how near answers are to the truth, image by image.

    `missing` says what could not be measured for want of a package.
    """

    def __init__(self) -> None:
        self.missing: list[str] = []
        self._extractor: FeatureExtractor | None = None

    def __call__(self, shown: Shown) -> list[Score]:
        """Return scores of the first answer, and of the mean of several; none without the truth."""
        if shown.truth is None:
            return []
        if self._extractor is None:
            self._extractor = self._attempt(efficientnet_features)
        truth, extractor = to_model(shown.truth[None], shown.form), self._extractor
        told: list[Score] = []
        for what, x in _pictures(shown).items():
            score = self._attempt(partial(paired_scores, x, truth))
            similar = None if score is None else score.mean_ssim
            far = None if extractor is None else float(feature_distance(extractor, x, truth))
            told.append(Score(shown.name, what, float(psnr(x, truth)), similar, far))
        return told

    def _attempt(self, measure: Callable[[], T]) -> T | None:
        try:
            return measure()
        except MissingExtraError as error:
            if str(error) not in self.missing:
                self.missing.append(str(error))
            return None


def averages(told: Sequence[Score]) -> list[Score]:
    """Return the means over images, for each of what was scored; none for one image.

    Where one image lacks a number the mean is None. An infinite PSNR, of an image that is the truth
    itself, counts as none.
    """
    if len({one.image for one in told}) < 2:
        return []
    found: list[Score] = []
    for what in dict.fromkeys(one.what for one in told):
        every = [one for one in told if one.what == what]
        peaks = [one.psnr for one in every if one.psnr < math.inf]
        peak = sum(peaks) / len(peaks) if peaks else math.inf
        similar, far = _mean([one.ssim for one in every]), _mean([one.features for one in every])
        found.append(Score(f"all {len(every)}, on average", what, peak, similar, far))
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _pictures(shown: Shown) -> dict[str, Tensor]:
    """What is held against the truth, each [1, C, H, W] in [-1, 1]."""
    x = to_model(shown.answers, shown.form)
    if len(x) == 1:
        return {"one answer": x}
    return {"one answer": x[:1], f"mean of {len(x)}": x.mean(0, keepdim=True)}
