"""What the metrics ask of a set of features: rows of one width, finite, and enough of them."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.errors import DataError


def feature_rows(rows: Tensor, least: int, purpose: str) -> Tensor:
    """The rows [n, F] in float64; DataError when not finite or fewer than `least`."""
    if rows.ndim != 2 or not rows.shape[1]:
        raise DataError(f"{purpose} takes features [n, F], got {list(rows.shape)}")
    if len(rows) < least:
        raise DataError(f"{purpose} needs at least {least} images per set, got {len(rows)}")
    rows = rows.detach().to(torch.float64)
    if not bool(rows.isfinite().all()):
        raise DataError(
            f"{purpose}: features must be finite, found NaN or infinity: "
            "look for NaN in the images, or for an extractor overflowing in half precision"
        )
    return rows


def feature_pair(a: Tensor, b: Tensor, least: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Two sets of rows in float64, checked as by `feature_rows` and to be of one width."""
    a, b = feature_rows(a, least, purpose), feature_rows(b, least, purpose)
    if a.shape[1] != b.shape[1]:
        raise DataError(
            f"the two sets have {a.shape[1]} and {b.shape[1]} features: use one extractor for both"
        )
    return a, b
