"""How noisy an image is, from itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

# Twice a Laplacian's difference: blind to planes and edges along an axis (Immerkaer 1996, eq. 2).
_MASK = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))


def noise_std(image: Tensor, known: Tensor | None = None) -> float:
    """Return the deviation of the white noise in an image [C, H, W], at least 3 x 3 pixels.

    From the median of its second differences along both axes, which fine texture raises and edges
    hardly touch (Immerkaer 1996, with a median in place of the mean). Only blocks of 3 x 3 pixels
    that are `known` (bool [1 or C, H, W]) throughout count. Raises ValueError for a smaller image,
    and where there is no such block.
    """
    if min(image.shape[-2:]) < 3:
        raise ValueError(f"noise is estimated on at least 3 x 3 pixels, not {list(image.shape)}")
    mask = torch.tensor(_MASK, dtype=image.dtype, device=image.device)
    found = functional.conv2d(image[:, None], mask[None, None])
    if known is not None:
        holes = functional.max_pool2d((~known).expand_as(image).to(image.dtype), 3, stride=1)
        found = found[:, 0][holes == 0]
        if not found.numel():
            raise ValueError(
                "noise is estimated on blocks of 3 x 3 known pixels, and there are none: tell it "
                "as a number"
            )
    # The mask's squares sum to 36; the median of |N(0, 1)| is 0.6745.
    return float(found.abs().median()) / (math.sqrt(36) * 0.6745)
