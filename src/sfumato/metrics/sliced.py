"""Sliced Wasserstein distance: images as points, seen along random directions.

On pixels, and on 7 x 7 patches of a Laplacian pyramid (Karras et al. 2018, arXiv:1710.10196,
section 5). No network is in it, so it works for any channels and bit depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import DataError
from sfumato.metrics.rows import feature_pair

PATCH = 7
"""Pixels on the side of a patch."""
SMALLEST_LEVEL = 16
"""The pyramid halves images while their shorter side stays at least this."""
MOST_PATCHES = 2**15
"""Patches drawn from one set per level, at most: bounds memory."""


@dataclass(frozen=True)
class SlicedDistance:
    """Mean over random directions of the Wasserstein-1 distance between the projected sets."""

    value: float
    """In the unit of the rows."""
    error: float
    """One standard error from the choice of directions (not of images)."""
    floor: float
    """What images drawn from the reference itself would score: from its two random halves, scaled
    to these sizes by 1 / sqrt(n)."""
    directions: int


@dataclass(frozen=True)
class PyramidDistance:
    """Sliced distances between patches, level by level, and their mean."""

    levels: tuple[SlicedDistance, ...]
    """Full resolution first; in standard deviations of the reference's level."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each level, px."""
    patches: int
    """Drawn per image and level."""

    @property
    def value(self) -> float:
        """Mean over the levels (Karras et al. print it times 1000)."""
        return sum(level.value for level in self.levels) / len(self.levels)

    @property
    def floor(self) -> float:
        """Mean of the levels' floors."""
        return sum(level.floor for level in self.levels) / len(self.levels)


def sliced_wasserstein(
    rows: Tensor,
    reference: Tensor,
    rng: np.random.Generator,
    directions: int = 512,
    group: int = 1,
) -> SlicedDistance:
    """Sliced Wasserstein-1 distance between rows [n, F] and reference rows [m, F].

    Directions are uniform on the unit sphere; along each the distance is exact, for any n and m.
    For pixels give `images.flatten(1)`: the unit is then that of a pixel in [-1, 1], in that white
    noise of standard deviation s per pixel is seen as s. `group` consecutive rows that come from
    one image stay together in the halves of `floor`. DataError below 4 images.
    """
    if directions < 2:
        raise ValueError(f"at least 2 directions are needed for an error, not {directions}")
    rows, reference = feature_pair(rows, reference, 4 * group, "the sliced Wasserstein distance")
    drawn = torch.from_numpy(rng.normal(size=(directions, rows.shape[1])))
    drawn = (drawn / drawn.norm(dim=1, keepdim=True)).to(rows.device)
    order = torch.from_numpy(rng.permutation(len(reference) // group)).to(rows.device)
    halves = [_members(half, group) for half in order.tensor_split(2)]
    values: list[Tensor] = []
    floors: list[Tensor] = []
    step = max(1, 2**23 // (len(rows) + len(reference)))
    for some in drawn.split(step):
        seen, seen_reference = some @ rows.T, some @ reference.T
        values.append(wasserstein(seen, seen_reference))
        floors.append(wasserstein(*(seen_reference[:, half] for half in halves)))
    value = torch.cat(values)
    spread = 1 / len(halves[0]) + 1 / len(halves[1])
    scale = math.sqrt((1 / len(rows) + 1 / len(reference)) / spread)
    return SlicedDistance(
        float(value.mean()),
        float(value.std()) / math.sqrt(directions),
        float(torch.cat(floors).mean()) * scale,
        directions,
    )


def sliced_pyramid(
    images: Tensor,
    reference: Tensor,
    rng: np.random.Generator,
    patches: int = 128,
    directions: int = 512,
) -> PyramidDistance:
    """Sliced distance between patches of images [n, C, H, W] and of reference [m, C, H, W].

    Level: what is lost by halving the resolution (binomial 5 x 5 filter), and the rest at the
    smallest. Per image and level `patches` patches at random places, all channels, fewer in large
    sets. Unlike Karras et al., both sets are normalised by the reference's mean and standard
    deviation per channel, not each by its own, so that a colour cast or a loss of contrast counts.
    DataError below 4 images or 7 px, or for images of different shapes.
    """
    if images.ndim != 4 or images.shape[1:] != reference.shape[1:] or min(images.shape[2:]) < PATCH:
        raise DataError(
            f"patches need two sets of images [n, C, H, W] of one shape, at least {PATCH} px, "
            f"got {list(images.shape)} and {list(reference.shape)}"
        )
    patches = max(1, min(patches, MOST_PATCHES // max(len(images), len(reference))))
    places = [_places(len(x), images.shape[2:], patches, rng) for x in (images, reference)]
    sizes = _sizes(images.shape[2], images.shape[3])
    levels: list[SlicedDistance] = []
    for level, size in enumerate(sizes):
        ours, theirs = (
            _patches(x, where, level, size, level == len(sizes) - 1)
            for x, where in zip((images, reference), places, strict=True)
        )
        axes = (0, 2, 3)
        std, mean = torch.std_mean(theirs, axes, keepdim=True)
        std = torch.where(std < 1e-6, 1.0, std)  # a channel that is constant in the reference
        ours, theirs = (((x - mean) / std).flatten(1) for x in (ours, theirs))
        levels.append(sliced_wasserstein(ours, theirs, rng, directions, group=patches))
    return PyramidDistance(tuple(levels), tuple(sizes), patches)


def wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """Wasserstein-1 distance [P] between the values of each row of a [P, n] and of b [P, m].

    The area between the two distribution functions: exact, with n and m as they are.
    """
    values, order = torch.cat([a, b], 1).sort(dim=1)
    # Counted in units of 1 / (n m), whole numbers, so that equal sets are at distance exactly 0.
    n, m = a.shape[1], b.shape[1]
    gap = torch.where(order < n, m, -n).cumsum(1)[:, :-1].abs()
    return (gap * values.diff(dim=1)).sum(1) / (n * m)


def _members(groups: Tensor, size: int) -> Tensor:
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


def _sizes(height: int, width: int) -> list[tuple[int, int]]:
    sizes = [(height, width)]
    while min(sizes[-1]) >= 2 * SMALLEST_LEVEL:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def _places(n: int, size: torch.Size, patches: int, rng: np.random.Generator) -> Tensor:
    """Where in an image [n, patches, 2] a patch lies, from 0 to 1, the same at every level."""
    return torch.from_numpy(rng.random((n, patches, len(size))))


def _patches(
    images: Tensor, places: Tensor, level: int, size: tuple[int, int], last: bool
) -> Tensor:
    """Patches [n * patches, C, 7, 7] of one pyramid level, a few hundred images at a time."""
    # Place p in [0, 1) picks one of (side - 6) positions, all equally often.
    room = torch.tensor([side - PATCH + 1 for side in size])
    corners = (places * room).long()
    offsets = torch.arange(PATCH)
    found: list[Tensor] = []
    step = max(1, 2**22 // images[0].numel())
    for x, corner in zip(images.split(step), corners.split(step), strict=True):
        band = x.double()
        for _ in range(level):
            band = _halve(band)
        if not last:
            band = band - _double(_halve(band), size)
        y = (corner[..., 0, None] + offsets)[:, :, :, None]
        z = (corner[..., 1, None] + offsets)[:, :, None, :]
        which = torch.arange(len(x))[:, None, None, None]
        # Advanced indices around a slice: [B, patches, 7, 7, C].
        found.append(band[which, :, y, z].permute(0, 1, 4, 2, 3).flatten(0, 1))
    return torch.cat(found)


def _binomial(x: Tensor, gain: float) -> Tensor:
    """Filter [B, C, H, W] by (1 4 6 4 1) / 16 both ways, mirrored at the border, times gain."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device) / 16
    weight = (taps[:, None] * taps * gain).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), weight, groups=x.shape[1])


def _halve(x: Tensor) -> Tensor:
    return _binomial(x, 1.0)[:, :, ::2, ::2]


def _double(x: Tensor, size: tuple[int, int]) -> Tensor:
    spread = torch.zeros(*x.shape[:2], *size, dtype=x.dtype, device=x.device)
    spread[:, :, ::2, ::2] = x
    return _binomial(spread, 4.0)
