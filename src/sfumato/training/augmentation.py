"""EDM's non-leaking augmentation: the network is told what was done, and samples without it.

Six transforms (EDM appendix F.2; Karras et al. 2020, "Training GANs with limited data", for the
warp): flips are exact, the other four are one affine map between two half-band filters. Positions
are in pixels from the image's centre, x to the right and y down; p_in = M p_out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.placement import to_like
from sfumato.training.team import Rows

F64 = torch.float64

# Low-pass filter of Daubechies' least asymmetric wavelet with six vanishing moments ("sym6").
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_TAPS = len(SYM6)
# Where the filter sits among its taps: its variance is zero, so it moves signals by just this much.
_CENTRE = sum(k * tap for k, tap in enumerate(SYM6)) / math.sqrt(2)


class Augmentation(Protocol):
    """What is done to a batch before noise is added."""

    @property
    def labels(self) -> int:
        """Numbers by which the network is told; 0 for none."""
        ...

    def __call__(
        self, x: Tensor, generator: torch.Generator, rows: Rows | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the batch [B, C, H, W] and its labels [B, self.labels]; generator on the host.

        `rows`: x is only that part of a larger batch, for all of which is drawn.
        """
        ...


@dataclass(frozen=True)
class Flip:
    """Mirror left to right with a probability, untold: for data whose mirror image is as good."""

    probability: float = 0.5
    labels: int = 0

    def __call__(
        self, x: Tensor, generator: torch.Generator, rows: Rows | None = None
    ) -> tuple[Tensor, None]:
        """Return the batch [B, C, H, W], some of it mirrored."""
        rows = rows or Rows(0, len(x), len(x))
        chosen = torch.rand(rows.total, generator=generator) < self.probability
        return _flip(x, rows.cut(chosen), 3), None


@dataclass(frozen=True)
class Transforms:
    """What happens to each image of a batch; [B] each, float64 on the host, all 0 for nothing.

    scale: size times 2^(0.2 scale). rotation: radians, counter-clockwise as seen. stretch: size
    times 2^(0.2 stretch) along an axis at stretch_angle (also counter-clockwise) and its inverse
    across. shift_x, shift_y: in eighths of the image's width and height.
    """

    flip_x: Tensor
    flip_y: Tensor
    scale: Tensor
    rotation: Tensor
    stretch: Tensor
    stretch_angle: Tensor
    shift_x: Tensor
    shift_y: Tensor

    @classmethod
    def none(cls, count: int) -> Transforms:
        """Return transforms that do nothing."""
        return cls(*torch.zeros(8, count, dtype=F64))

    def cut(self, rows: Rows) -> Transforms:
        """Return those of some rows of the batch."""
        return Transforms(*(rows.cut(getattr(self, field.name)) for field in fields(self)))

    def describe(self) -> Tensor:
        """Return the network's labels [B, 9], all 0 for nothing.

        The stretch enters as a vector, so (w, angle) and (-w, angle + pi) share a label though the
        warps differ: a label cannot be inverted.
        """
        return torch.stack(
            [
                self.flip_x,
                self.flip_y,
                self.scale,
                self.rotation.cos() - 1,
                self.rotation.sin(),
                self.stretch * self.stretch_angle.cos(),
                self.stretch * self.stretch_angle.sin(),
                self.shift_x,
                self.shift_y,
            ],
            dim=1,
        )

    def matrices(self, height: int, width: int) -> Tensor:
        """Return the affine part as maps from output to input positions, [B, 2, 3] in pixels.

        p_in = scale^-1 rotation stretch^-1 (p_out - shift).
        """
        size = torch.exp2(-0.2 * self.scale)[:, None, None]
        along = torch.exp2(-0.2 * self.stretch)
        stretch = torch.diag_embed(torch.stack([along, 1 / along], 1))
        turn = _rotation(self.stretch_angle)
        linear = size * (_rotation(self.rotation) @ (turn.mT @ stretch @ turn))
        shift = torch.stack([self.shift_x * width, self.shift_y * height], 1)[:, :, None] / 8
        return torch.cat([linear, -linear @ shift], 2)


@dataclass(frozen=True)
class Augment:
    """EDM's augmentation: each transform with `probability`, mirroring left to right with 1/2.

    EDM: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQ. Mirroring is part of it, so the data
    should not be mirrored as well. probability = 0 does nothing at all. Raises ValueError outside
    [0, 1].
    """

    probability: float = 0.12
    labels: int = 9

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"an augmentation's probability is in [0, 1], not {self.probability}")

    def __call__(
        self, x: Tensor, generator: torch.Generator, rows: Rows | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the batch [B, C, H, W] and its labels [B, 9]; generator on the host."""
        rows = rows or Rows(0, len(x), len(x))
        transforms = self.draw(rows.total, generator).cut(rows)
        return transform(x, transforms), to_like(transforms.describe(), x)

    def draw(self, count: int, generator: torch.Generator) -> Transforms:
        """Draw the transforms of `count` images."""
        chance = torch.rand(9, count, dtype=F64, generator=generator)
        normal = torch.randn(4, count, dtype=F64, generator=generator)
        acts = (chance[:5] < self.probability).to(F64)
        coin_x, coin_y, turn, axis = chance[5:]
        # Half of the stretches are along the image's own axes, the others at any angle.
        oblique = (axis < 0.5).to(F64)
        return Transforms(
            flip_x=(coin_x < 0.5).to(F64) * float(self.probability > 0),
            flip_y=(coin_y < 0.5).to(F64) * acts[0],
            scale=normal[0] * acts[1],
            rotation=math.pi * (2 * turn - 1) * acts[2],
            stretch=normal[1] * acts[3],
            stretch_angle=math.pi * (4 * axis - 1) * oblique * acts[3],
            shift_x=normal[2] * acts[4],
            shift_y=normal[3] * acts[4],
        )


def transform(x: Tensor, transforms: Transforms) -> Tensor:
    """Return images [B, C, H, W] transformed, mirrored beyond their borders."""
    x = _flip(_flip(x, transforms.flip_x > 0, 3), transforms.flip_y > 0, 2)
    matrices = transforms.matrices(*x.shape[2:])
    identity = torch.eye(2, 3, dtype=F64)
    moved = (matrices != identity).flatten(1).any(1).nonzero()[:, 0]
    if not len(moved):
        return x
    place = to_like(moved, x, moved.dtype)
    return x.index_copy(0, place, warp(x[place], matrices[moved]))


def warp(x: Tensor, matrices: Tensor) -> Tensor:
    """Resample images [B, C, H, W]: the value at p comes from M p, M [B, 2, 3] on the host.

    Upsampled twofold by the filter, read bilinearly, low-passed and decimated by its adjoint. The
    filter being orthonormal and centred, whole-pixel shifts are exact and ramps stay ramps.
    """
    height, width = x.shape[2:]
    top, bottom, left, right = _margins(matrices, height, width)
    # Products, not convolutions: sizes change with every batch, which those would prepare for anew.
    # Sample n of the doubled grid lies at (n - centre) / 2 in pixels of the image with its margins.
    up_y, up_x = _doubling(height, top, bottom), _doubling(width, left, right)
    fine = to_like(up_y, x) @ x @ to_like(up_x, x).mT

    m = to_like(matrices, x)
    at_x = _fine_positions(width, x)
    at_y = _fine_positions(height, x)[:, None]
    source_x = (
        m[:, 0, 0, None, None] * at_x + m[:, 0, 1, None, None] * at_y + m[:, 0, 2, None, None]
    )
    source_y = (
        m[:, 1, 0, None, None] * at_x + m[:, 1, 1, None, None] * at_y + m[:, 1, 2, None, None]
    )
    grid_x = 2 * (source_x + (width - 1) / 2 + left) + _CENTRE
    grid_y = 2 * (source_y + (height - 1) / 2 + top) + _CENTRE
    size_y, size_x = fine.shape[2:]
    grid = torch.stack([2 * grid_x / (size_x - 1) - 1, 2 * grid_y / (size_y - 1) - 1], 3)
    read = F.grid_sample(fine, grid, padding_mode="border", align_corners=True)

    down_y, down_x = _doubling(height).mT / 2, _doubling(width).mT / 2
    return to_like(down_y, x) @ read @ to_like(down_x, x).mT


def _doubling(size: int, before: int = 0, after: int = 0) -> Tensor:
    """The filter's twofold upsampling of a line mirrored beyond its ends, [doubled, size]."""
    index = _mirrored(size, before, after)
    taps = 2 * torch.tensor(SYM6, dtype=F64) / math.sqrt(2)
    reached = 2 * torch.arange(len(index))[:, None] + torch.arange(_TAPS)
    spread = torch.zeros(2 * len(index) - 2 + _TAPS, size, dtype=F64)
    return spread.index_put_((reached, index[:, None]), taps, accumulate=True)


def _fine_positions(size: int, like: Tensor) -> Tensor:
    """Positions, in pixels from the centre, of the doubled grid that `size` output pixels need."""
    n = torch.arange(2 * size - 2 + _TAPS, dtype=like.dtype, device=like.device)
    return (n - _CENTRE) / 2 - (size - 1) / 2


def _margins(matrices: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """Pixels to add at top, bottom, left and right so that every warp reads inside."""
    reach = torch.tensor([width, height], dtype=F64) / 2 + _TAPS / 4
    corners = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=F64) * reach
    source = matrices[:, :, :2] @ corners.mT + matrices[:, :, 2:]
    # Rare huge warps read the border's value beyond two image sizes, instead of taking memory.
    low, high = source.amin((0, 2)), source.amax((0, 2))
    half = torch.tensor([width - 1, height - 1], dtype=F64) / 2
    largest = 2 * torch.tensor([width, height], dtype=F64)
    before = (-half - low + _TAPS / 2).ceil().clamp(min=0).minimum(largest).long().tolist()
    after = (high - half + _TAPS / 2).ceil().clamp(min=0).minimum(largest).long().tolist()
    return before[1], after[1], before[0], after[0]


def _mirrored(size: int, before: int, after: int) -> Tensor:
    """Indices -before .. size + after - 1, reflected about the centres of the border pixels."""
    index = torch.arange(-before, size + after)
    period = max(2 * (size - 1), 1)
    index = index % period
    return torch.minimum(index, period - index) if size > 1 else torch.zeros_like(index)


def _rotation(angle: Tensor) -> Tensor:
    """[[cos, -sin], [sin, cos]], [B, 2, 2]."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _flip(x: Tensor, chosen: Tensor, dim: int) -> Tensor:
    if not chosen.any():
        return x
    chosen = to_like(chosen, x, chosen.dtype).reshape(-1, 1, 1, 1)
    return torch.where(chosen, x.flip(dim), x)
