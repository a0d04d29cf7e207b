"""Inception-v3 features for the Fréchet Inception Distance, and its logits for the Inception Score.

One network, several conventions: resize and pixel scaling are part of the extractor and of its
name, and `dataclasses.replace(extractor, resize=..., pixels=...)` gives another convention over the
same weights. The file of weights is found by path, in the cache folder, or downloaded by hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from sfumato.errors import CheckpointError, ConfigError, DataError
from sfumato.metrics.channels import FIRST_THREE
from sfumato.metrics.inception_network import ConvNorm, InceptionV3
from sfumato.metrics.resize import TENSORFLOW_BILINEAR, Resize
from sfumato.metrics.weights import (
    cache_folder,
    checked_hash,
    download,
    fit_state,
    is_torchscript,
    load_state,
    load_torchscript,
)

URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FILES = (
    "pt_inception-2015-12-05-6726825d.pth",
    "weights-inception-2015-12-05-6726825d.pth",
    "inception-2015-12-05.pt",
)
"""Looked for in the cache folder in this order: of pytorch-fid, torch-fidelity, StyleGAN."""

# The Inception Score's original code (Salimans et al. 2016) multiplies the pooled features by the
# last layer's weights and adds no bias; so does everyone who compares with it.
CLASS_SOURCE = "the 1008 outputs of the 2015 Inception-v3 (ImageNet-1k), last bias left out"


@dataclass(frozen=True)
class Pixels:
    """How the network is fed: (pixel - offset) / scale of pixels 0 to 255."""

    offset: float
    scale: float
    rounded: bool = True
    """Whether images are rounded to 8 bits first, as if read from a PNG."""

    @property
    def name(self) -> str:
        """What it is, for the reader of a number."""
        kind = "8-bit pixel" if self.rounded else "unrounded pixel"
        return f"({kind} - {self.offset:g}) / {self.scale:g}"

    def round(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] on the grid of 8-bit ones, if so asked; before any resize."""
        return to_8_bits(images).float() / 127.5 - 1 if self.rounded else images

    def scaled(self, images: Tensor) -> Tensor:
        """What the network is fed for images in [-1, 1]."""
        return (images * 127.5 + (127.5 - self.offset)) / self.scale


TENSORFLOW_PIXELS = Pixels(128, 128)
"""Of the original FID, EDM, ADM, clean-fid, torch-fidelity."""
PYTORCH_FID_PIXELS = Pixels(127.5, 127.5)
"""Of pytorch-fid: [0, 1] to [-1, 1]."""


def to_8_bits(images: Tensor) -> Tensor:
    """Images in [-1, 1] rounded to uint8, 0 to 255; what leaves the range is clipped."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class InceptionFeatures:
    """A Classifying FeatureExtractor: 2048 pooled features of Inception-v3 at 299 px.

    Channels: `channels.FirstThree`. The default feeds the network as the original FID does.
    """

    network: InceptionV3
    fingerprint: str
    resize: Resize = TENSORFLOW_BILINEAR
    pixels: Pixels = TENSORFLOW_PIXELS

    @property
    def name(self) -> str:
        """What the features are, for the reader of a number."""
        return (
            f"Inception-v3 (2015-12-05), 299 px {self.resize.name}, {self.pixels.name}, "
            "2048-d pooled"
        )

    @property
    def class_source(self) -> str:
        """What the logits are of."""
        return CLASS_SOURCE

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, 2048] of images [B, C, H, W], float in [-1, 1]."""
        return self.features_and_logits(images)[0]

    @torch.inference_mode()
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 2048], and logits [B, 1008] without the last bias."""
        _check_images(images)
        # Resize before repeating a grey channel: a third of the work, the same numbers.
        pixels = images[:, :1] if images.shape[1] < 3 else FIRST_THREE(images)
        pixels = self.pixels.scaled(self.resize(self.pixels.round(pixels.float()), 299))
        weight = self.network.fc.weight
        return self.network(
            FIRST_THREE(pixels).to(weight.device, memory_format=torch.channels_last)
        )

    def to(self, device: torch.device) -> InceptionFeatures:
        """The same extractor, its network moved to a device."""
        self.network.to(device)
        return self


@dataclass(frozen=True, eq=False)
class TorchScriptInception:
    """The same network as a TorchScript file (`inception-2015-12-05.pt`), called as StyleGAN does.

    It takes 8-bit pixels of any size; its resize (TensorFlow's) and scaling are inside the file.
    """

    network: torch.jit.ScriptModule
    fingerprint: str

    @property
    def name(self) -> str:
        """What the features are, for the reader of a number."""
        return (
            "Inception-v3 (2015-12-05, TorchScript), 8-bit pixels, resize and scaling inside the "
            "file, 2048-d pooled"
        )

    @property
    def class_source(self) -> str:
        """What the logits are of."""
        return CLASS_SOURCE

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, 2048] of images [B, C, H, W], float in [-1, 1]."""
        _check_images(images)
        return self._run(to_8_bits(FIRST_THREE(images)), return_features=True)

    @torch.inference_mode()
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 2048], and logits [B, 1008] up to a constant in each row; runs it twice."""
        _check_images(images)
        pixels = to_8_bits(FIRST_THREE(images))
        features = self._run(pixels, return_features=True)
        chances = self._run(pixels, no_output_bias=True)
        # A softmax does not see the constant by which this differs from the logits.
        return features, chances.clamp(min=torch.finfo(chances.dtype).tiny).log()

    def _run(
        self, pixels: Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        try:
            rows = cast(
                "Tensor",
                self.network(
                    pixels, return_features=return_features, no_output_bias=no_output_bias
                ),
            )
        except RuntimeError as error:
            raise CheckpointError(
                "this TorchScript file does not answer like inception-2015-12-05.pt (uint8 images, "
                f"return_features, no_output_bias): {str(error).splitlines()[-1]}"
            ) from None
        return rows.flatten(1).float()

    def to(self, device: torch.device) -> TorchScriptInception:
        """The same extractor, its network moved to a device."""
        self.network.to(device)
        return self


def inception_features(
    path: Path | None = None,
    resize: Resize = TENSORFLOW_BILINEAR,
    pixels: Pixels = TENSORFLOW_PIXELS,
) -> InceptionFeatures | TorchScriptInception:
    """The extractor with the weights at `path`: a state dict (.pth, .safetensors) or TorchScript.

    Without a path, the first of FILES in the cache folder. Raises CheckpointError when nothing is
    there or it does not fit; ConfigError when a TorchScript file, which resizes by itself, is
    asked for another convention.
    """
    path = _found(path)
    digest = checked_hash(path)[:16]
    purpose = "the Inception-v3 of FID"
    if is_torchscript(path):
        if (resize, pixels) != (TENSORFLOW_BILINEAR, TENSORFLOW_PIXELS):
            raise ConfigError(
                f"{path} resizes and scales by itself, so '{resize.name}' and '{pixels.name}' "
                f"cannot be asked of it: use the state dict {FILES[0]}"
            )
        return TorchScriptInception(load_torchscript(path, purpose), digest)
    state = load_state(path, purpose)
    # No weights are drawn only to be replaced, and the global random state is left alone.
    with torch.device("meta"):
        network = InceptionV3()
    fit_state(network, state, path, purpose)
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.fuse()
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return InceptionFeatures(network, digest, resize, pixels)


def download_inception() -> Path:
    """Fetch pytorch-fid's file (96 MB) to the cache folder by its hash; its path."""
    return download(URL, cache_folder() / FILES[0], SHA256)


def _found(path: Path | None) -> Path:
    places = [cache_folder() / name for name in FILES] if path is None else [path]
    for place in places:
        if place.is_file():
            return place
    raise CheckpointError(
        f"no Inception weights at {places[0]}: fetch {URL} (SHA-256 {SHA256[:8]}...) and put it "
        "there, or give its path; inception:download (--inception download) does that (96 MB). "
        "What works without: EfficientNet-Lite0, from the extra 'metrics'"
    )


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] < 1:
        raise DataError(f"expected images [B, C, H, W], got {list(images.shape)}")
