"""The Inception Score (Salimans et al. 2016, arXiv:1606.03498): sure of each, of all classes.

It never looks at real images, and knows only the classes of the classifier it was given: name the
classifier beside the number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import DataError
from sfumato.metrics.rows import feature_rows


@dataclass(frozen=True)
class InceptionScore:
    """exp of the mean KL divergence between an image's classes and those of its split."""

    mean: float
    """Over the splits; from 1 (every image alike) to the smaller of `classes` and n / splits."""
    std: float | None
    """Over the splits, as published (divided by their number); None with one split."""
    splits: int
    n: int
    classes: int


def inception_score(probabilities: Tensor, splits: int = 10, seed: int = 0) -> InceptionScore:
    """exp(mean over images of KL(p(y|x) || p(y))) of class probabilities [n, K], per split.

    From logits: `logits.double().softmax(1)`. Images are shuffled by `seed` before the split: a set
    sorted by class, or cycling through the classes, would be cut into them. More images per split
    raise the score: compare numbers of the same n and splits. DataError for rows that are no
    probabilities, or below two images per split.
    """
    if splits < 1:
        raise ValueError(f"the number of splits must be at least 1, not {splits}")
    p = feature_rows(probabilities, 2 * splits, f"the Inception Score with {splits} splits")
    total = p.sum(1)
    if float(p.min()) < 0 or float((total - 1).abs().max()) > 1e-3:
        raise DataError(
            f"expected class probabilities (rows summing to 1), found values from "
            f"{float(p.min()):.4g} and row sums to {float(total.max()):.4g}: "
            "of logits take logits.softmax(1)"
        )
    p = p / total[:, None]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(p))).to(p.device)
    scores = torch.stack([_score(p[part]) for part in order.tensor_split(splits)])
    std = float(scores.std(correction=0)) if splits > 1 else None
    return InceptionScore(float(scores.mean()), std, splits, len(p), p.shape[1])


def _score(p: Tensor) -> Tensor:
    # Mean KL to the mean = entropy of the mean - mean entropy; entr(0) is 0.
    return (torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()).exp()
