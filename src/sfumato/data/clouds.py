"""Clouds and their shadows, drawn from a seed: what hides the ground in pictures from above."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.errors import ConfigError

_LIGHTEST = 0.98  # of [-1, 1]: a sunlit cloud is all but white
_MOTTLE = 0.35  # how much darker than that its thinnest parts are


@dataclass(frozen=True, eq=False)
class CloudField:
    """The clouds of one image, each [H, W] float32 in [0, 1].

    opacity: how much of the ground is hidden. shadow: how much of its light is taken. thickness:
    of the cloud, which is the lighter for it.
    """

    opacity: Tensor
    shadow: Tensor
    thickness: Tensor

    def mask(self, threshold: float = 0.0, *, shadows: bool = True) -> Tensor:
        """Where the ground is not seen as it is: bool [H, W], True where damaged.

        That is where opacity > threshold or, with `shadows`, shadow > threshold. At threshold 0 all
        that is False is the ground itself, to the bit.
        """
        damaged = self.opacity > threshold
        return damaged | (self.shadow > threshold) if shadows else damaged

    @property
    def cover(self) -> float:
        """The share of pixels with opacity above 0."""
        return float(self.mask(shadows=False).double().mean())


@dataclass(frozen=True)
class Clouds:
    """Fractal clouds: pure functions of a seed, at any height and width.

    cover: share of the pixels with opacity above 0, in (0, 1); each image has it to half a pixel.
    shadow: share of its light that ground loses under the densest shadow, in [0, 1]; 0 is none.
    softness: height above the edge, in standard deviations of the field, at which a cloud is
    opaque. beta: the field's power spectrum falls as 1 / frequency^beta (2 is rugged, 4 smooth).
    reach: how far a shadow falls from its cloud, as a share of the image's short side, in a
    direction drawn for each image. Raises ConfigError for values outside these ranges.
    """

    cover: float = 0.3
    shadow: float = 0.5
    softness: float = 0.5
    beta: float = 3.0
    reach: float = 0.12

    def __post_init__(self) -> None:
        rules = {
            "cover": (0 < self.cover < 1, "between 0 and 1, both left out"),
            "shadow": (0 <= self.shadow <= 1, "0 (none) to 1 (black)"),
            "softness": (0 < self.softness < math.inf, "above 0 and finite"),
            "beta": (0 <= self.beta <= 8, "0 to 8"),
            "reach": (0 <= self.reach <= 1, "0 to 1"),
        }
        for name, (kept, expected) in rules.items():
            if not kept:
                raise ConfigError(f"{name}: expected {expected}, got {getattr(self, name)}")

    def of(self, shape: tuple[int, int], seed: int) -> CloudField:
        """The clouds of an image of (height, width), the same for the same seed.

        Raises ConfigError for a side below 1 or a negative seed.
        """
        height, width = shape
        if height < 1 or width < 1 or seed < 0:
            raise ConfigError(
                f"clouds need a height and width of 1 or more and a seed of 0 or more, got "
                f"{height} x {width}, seed {seed}"
            )
        rng = np.random.default_rng([seed, 0])
        angle = rng.uniform(0, 2 * math.pi)
        distance = self.reach * min(height, width)
        down, right = round(distance * math.sin(angle)), round(distance * math.cos(angle))
        # The field is periodic: what is cut from one twice as large does not meet itself.
        margin = math.ceil(distance)
        large = fractal((2 * (height + margin), 2 * (width + margin)), self.beta, rng)
        here = large[margin : margin + height, margin : margin + width]
        there = large[margin - down :, margin - right :][:height, :width]
        edge = _edge(here, self.cover)
        spread = float(here.std()) or 1.0
        opacity = _smooth((here - edge) / (self.softness * spread))
        return CloudField(
            opacity=_tensor(opacity),
            shadow=_tensor(self.shadow * _smooth((there - edge) / (self.softness * spread))),
            thickness=_tensor(_smooth((here - edge) / (3 * spread))),
        )

    @staticmethod
    def over(image: Tensor, field: CloudField) -> Tensor:
        """The image [..., C, H, W] in [-1, 1] as seen under these clouds and their shadows.

        Pixels outside `field.mask()` are the image's to the bit. Raises ConfigError where the
        sizes differ.
        """
        if image.ndim < 3 or image.shape[-2:] != field.opacity.shape:
            raise ConfigError(
                f"expected an image [..., C, H, W] of the clouds' height and width "
                f"{list(field.opacity.shape)}, got {list(image.shape)}"
            )
        opacity, shadow, thickness = (
            part.to(image) for part in (field.opacity, field.shadow, field.thickness)
        )
        ground = (image + 1) * (1 - shadow) - 1
        light = _LIGHTEST - _MOTTLE * (1 - thickness)
        clouded = ground + opacity * (light - ground)
        return torch.where(field.mask().to(image.device), clouded, image)


def fractal(shape: tuple[int, int], beta: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random periodic field [H, W] whose power spectrum falls as 1 / frequency^beta.

    Of mean 0 and, unless it is one pixel, standard deviation 1. White noise filtered in Fourier
    space, the frequency in cycles a pixel whatever the direction (spectral synthesis: Saupe 1988).
    """
    white = np.fft.rfft2(rng.standard_normal(shape))
    down, right = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    frequency = np.hypot(down, right)
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(white * frequency ** (-beta / 2), shape)
    return field / (field.std() or 1.0)


def _edge(field: NDArray[np.float64], cover: float) -> float:
    """The value that the given share of the field exceeds, between two of its values."""
    ordered = np.sort(field, axis=None)
    above = round(cover * ordered.size)
    if above == 0:
        return float(ordered[-1])
    if above == ordered.size:
        return float(ordered[0]) - 1e-3 * (float(ordered[-1] - ordered[0]) or 1.0)
    return float(ordered[-above - 1] + ordered[-above]) / 2


def _smooth(height: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 below 0, 1 above 1, 3 h^2 - 2 h^3 between."""
    h = height.clip(0, 1)
    return h * h * (3 - 2 * h)


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
