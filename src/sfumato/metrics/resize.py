"""The resizes in use before a feature network, as values; the choice alone moves a FID by points.

Each maps images [B, C, H, W], float in [-1, 1], to [B, C, size, size] float32, aspect ratio not
kept. What they do to a Fréchet distance: Parmar, Zhang and Zhu 2022 (arXiv:2104.11222).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import DataError


class Resize(Protocol):
    """A way to resample images to a square."""

    @property
    def name(self) -> str:
        """What it is, to print beside a number."""
        ...

    def __call__(self, images: Tensor, size: int) -> Tensor:
        """Images [B, C, H, W], float in [-1, 1], as [B, C, size, size] float32."""
        ...


@dataclass(frozen=True)
class AntialiasedBicubic:
    """Bicubic (a = -0.5) with antialiasing, in float, clamped to [-1, 1]: Sfumato's own default."""

    name: str = field(default="antialiased bicubic", init=False)

    def __call__(self, images: Tensor, size: int) -> Tensor:
        """Images [B, C, H, W] as [B, C, size, size] float32 in [-1, 1]."""
        x = _float32(images)
        return F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


@dataclass(frozen=True)
class TorchBilinear:
    """Bilinear between pixel centres without antialiasing: what pytorch-fid does."""

    name: str = field(default="bilinear as pytorch-fid", init=False)

    def __call__(self, images: Tensor, size: int) -> Tensor:
        """Images [B, C, H, W] as [B, C, size, size] float32 in [-1, 1]."""
        return F.interpolate(_float32(images), (size, size), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class TensorflowBilinear:
    """TensorFlow 1's bilinear: output pixel i reads at i * in / out, corner to corner.

    No half-pixel centres and no antialiasing, so images shift towards the upper left. It is inside
    the network file of the original FID and so of EDM, ADM, StyleGAN and torch-fidelity.
    """

    name: str = field(default="bilinear as TensorFlow 1", init=False)

    def __call__(self, images: Tensor, size: int) -> Tensor:
        """Images [B, C, H, W] as [B, C, size, size] float32 in [-1, 1]."""
        x = _float32(images)
        # Along rows first, then columns: TensorFlow's order of additions.
        lower, upper, part = _taps(x.shape[3], size, x.device)
        left = x[..., lower]
        x = left + (x[..., upper] - left) * part
        lower, upper, part = _taps(x.shape[2], size, x.device)
        top = x[:, :, lower]
        return top + (x[:, :, upper] - top) * part[:, None]


@dataclass(frozen=True)
class PillowBicubic:
    """Pillow's antialiased bicubic on float channels, clamped: what clean-fid does; on the CPU.

    Its first versions kept what leaves the range at sharp edges; later ones clip it.
    """

    name: str = field(default="bicubic as clean-fid", init=False)

    def __call__(self, images: Tensor, size: int) -> Tensor:
        """Images [B, C, H, W] as [B, C, size, size] float32 in [-1, 1]."""
        x = _float32(images)
        planes = x.detach().cpu().flatten(0, 1).contiguous().numpy()
        resized = np.empty((len(planes), size, size), np.float32)
        for source, target in zip(planes, resized, strict=True):
            # A float32 array makes an image of mode "F".
            image = Image.fromarray(source).resize((size, size), Image.Resampling.BICUBIC)
            target[:] = np.asarray(image).clip(-1, 1)
        return torch.from_numpy(resized).to(x.device).unflatten(0, x.shape[:2])


ANTIALIASED_BICUBIC = AntialiasedBicubic()
TORCH_BILINEAR = TorchBilinear()
TENSORFLOW_BILINEAR = TensorflowBilinear()
PILLOW_BICUBIC = PillowBicubic()

RESIZES: tuple[Resize, ...] = (
    ANTIALIASED_BICUBIC,
    TORCH_BILINEAR,
    TENSORFLOW_BILINEAR,
    PILLOW_BICUBIC,
)
"""Every resize here, ours first."""


def _taps(inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper source index and the upper one's weight, each [outputs], in float32."""
    scale = torch.tensor(inputs / outputs, dtype=torch.float32, device=device)
    position = torch.arange(outputs, dtype=torch.float32, device=device) * scale
    lower = position.floor().long().clamp(max=inputs - 1)
    return lower, (lower + 1).clamp(max=inputs - 1), position - lower


def _float32(images: Tensor) -> Tensor:
    if images.ndim != 4 or not images.is_floating_point() or not images.numel():
        raise DataError(
            f"expected float images [B, C, H, W] in [-1, 1], got {images.dtype} "
            f"{list(images.shape)}: convert 8-bit images with x / 127.5 - 1"
        )
    return images.float()
