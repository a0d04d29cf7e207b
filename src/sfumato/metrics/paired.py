"""PSNR, SSIM, MS-SSIM, features of images with a counterpart each: restoration, compression.

SSIM: Wang et al. 2004, Gaussian window of standard deviation 1.5 px over 11 x 11 px, windows wholly
inside the image, mean over channels. MS-SSIM: Wang et al. 2003, five scales. Both depend on where
zero is: images in [-1, 1] are first moved to [0, 1]. Windowed moments come from torchmetrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import DataError, MissingExtraError
from sfumato.metrics.features import FeatureExtractor

WINDOW = 11
"""Pixels on the side of an SSIM window."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM, full resolution first (Wang et al. 2003, section 4.2)."""


@dataclass(frozen=True)
class PairedScores:
    """Scores [n] of every pair; a score that images so small cannot have is None."""

    psnr: Tensor
    """dB; infinite where the pair is identical."""
    ssim: Tensor | None
    """At most 1, which means identical."""
    ms_ssim: Tensor | None
    """0 to 1."""
    scales: int
    """Of `ms_ssim`; numbers at other than 5 are comparable among themselves only."""
    missing: tuple[str, ...]
    """Why a score is None, a sentence each."""

    @property
    def identical(self) -> int:
        """How many pairs are the same to the last bit."""
        return int(self.psnr.isinf().sum())

    @property
    def mean_psnr(self) -> float:
        """Mean dB over the pairs that differ; infinite when none does."""
        finite = self.psnr[self.psnr.isfinite()]
        return float(finite.mean()) if len(finite) else math.inf

    @property
    def mean_ssim(self) -> float | None:
        """Mean over the pairs."""
        return None if self.ssim is None else float(self.ssim.mean())

    @property
    def mean_ms_ssim(self) -> float | None:
        """Mean over the pairs."""
        return None if self.ms_ssim is None else float(self.ms_ssim.mean())


def paired_scores(a: Tensor, b: Tensor, scales: int = 5) -> PairedScores:
    """PSNR, SSIM and MS-SSIM of pairs a, b [n, C, H, W], float in [-1, 1].

    SSIM needs 11 px on the shorter side, MS-SSIM 11 * 2^(scales - 1): 176 px for the published 5;
    ask for fewer scales to have it on smaller images. DataError for sets that do not pair up.
    """
    missing: list[str] = []

    def attempt(score: Callable[[], Tensor], name: str, scales: int) -> Tensor | None:
        if _fits(a, scales):
            return score()
        missing.append(f"{name}: {_too_small(a, scales)}")
        return None

    values = psnr(a, b)
    similarity = attempt(lambda: ssim(a, b), "SSIM", 1)
    many = attempt(lambda: ms_ssim(a, b, scales), "MS-SSIM", scales)
    return PairedScores(values, similarity, many, scales, tuple(missing))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [n] in dB of pairs [n, C, H, W] in [-1, 1] (peak: 2).

    10 log10(4 / mean squared error), per image; infinite for identical ones.
    """
    _check(a, b)
    parts = zip(a.split(256), b.split(256), strict=True)
    error = torch.cat([(x.double() - y.double()).square().mean((1, 2, 3)) for x, y in parts])
    return 10 * torch.log10(4 / error)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity [n] of pairs [n, C, H, W] in [-1, 1], at least 11 px."""
    return _by_batches(a, b, _ssim, 1)


def ms_ssim(a: Tensor, b: Tensor, scales: int = 5) -> Tensor:
    """Multi-scale structural similarity [n] of pairs [n, C, H, W] in [-1, 1].

    Contrast and structure at each scale, luminance at the last, each averaged over pixels and
    channels; below 0 counts as 0. With fewer than 5 scales the weights are the first so many,
    scaled to sum to 1. DataError below 11 * 2^(scales - 1) px.
    """
    if not 1 <= scales <= len(SCALE_WEIGHTS):
        raise ValueError(f"MS-SSIM has 1 to {len(SCALE_WEIGHTS)} scales, not {scales}")
    weights = torch.tensor(SCALE_WEIGHTS[:scales], dtype=torch.float64)
    weights = weights / weights.sum()

    def score(x: Tensor, y: Tensor) -> Tensor:
        terms: list[Tensor] = []
        for _ in range(scales - 1):
            terms.append(_contrast(x, y))
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        terms.append(_ssim(x, y))
        return (torch.stack(terms, 1).clamp(min=0) ** weights.to(x.device)).prod(1)

    return _by_batches(a, b, score, scales)


def feature_distance(extractor: FeatureExtractor, a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance [n] of the features of pairs [n, C, H, W] in [-1, 1].

    0 for identical ones; in units of the extractor's features, so of one extractor alone.
    """
    _check(a, b)
    parts = zip(a.split(256), b.split(256), strict=True)
    return torch.cat([(extractor(x) - extractor(y)).norm(dim=1).cpu() for x, y in parts])


def _by_batches(
    a: Tensor, b: Tensor, score: Callable[[Tensor, Tensor], Tensor], scales: int
) -> Tensor:
    _check(a, b)
    if not _fits(a, scales):
        raise DataError(_too_small(a, scales))
    # Five maps in float64 of every image are held at once.
    step = max(1, 2**22 // a[0].numel())
    parts = zip(a.split(step), b.split(step), strict=True)
    return torch.cat([score((x.double() + 1) / 2, (y.double() + 1) / 2) for x, y in parts])


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    similarity = _similarity()
    full = similarity(x, y, data_range=1.0, reduction="none", return_full_image=True)[1]
    # The border was made up by mirroring: it does not count.
    margin = WINDOW // 2
    return full[:, :, margin:-margin, margin:-margin].mean((1, 2, 3))


def _contrast(x: Tensor, y: Tensor) -> Tensor:
    similarity = _similarity()
    return similarity(x, y, data_range=1.0, reduction="none", return_contrast_sensitivity=True)[1]


def _similarity() -> Callable[..., tuple[Tensor, Tensor]]:
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise MissingExtraError("torchmetrics", "metrics", "SSIM") from None
    return structural_similarity_index_measure  # pyright: ignore[reportReturnType]


def _fits(images: Tensor, scales: int) -> bool:
    return min(images.shape[2:]) >= WINDOW * 2 ** (scales - 1)


def _too_small(images: Tensor, scales: int) -> str:
    return (
        f"{scales} scale{'s' * (scales > 1)} of {WINDOW} px windows need images of at least "
        f"{WINDOW * 2 ** (scales - 1)} px, got {images.shape[2]} x {images.shape[3]}"
    )


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 4 or a.shape != b.shape or not len(a):
        raise DataError(
            f"paired scores take two sets of images [n, C, H, W], one by one, "
            f"got {list(a.shape)} and {list(b.shape)}"
        )
    for images in (a, b):
        if not images.is_floating_point():
            raise DataError(f"expected float images in [-1, 1], got {images.dtype}")
        low, high = (float(v) for v in images.aminmax())
        # Written so that NaN fails.
        if not (low >= -1.001 and high <= 1.001):
            raise DataError(
                f"images must be finite and in [-1, 1], found {low:.4g} to {high:.4g}: "
                "clip with .clamp(-1, 1), convert 8-bit images with x / 127.5 - 1"
            )
