"""DINOv2 as a feature extractor, from a file of Meta's published weights.

Architecture: ViT (Dosovitskiy et al. 2020, arXiv:2010.11929) with LayerScale (Touvron et al. 2021,
arXiv:2103.17239) and, in some files, register tokens (Darcet et al. 2023, arXiv:2309.16588);
weights: Oquab et al. 2023 (arXiv:2304.07193). Names of layers are those of the published state
dicts (`dinov2_vits14_pretrain.pth`, vitb14, vitl14), and all sizes are read off their shapes. As
features for a Fréchet distance: Stein et al. 2023 (arXiv:2306.04675).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import CheckpointError, DataError
from sfumato.metrics.channels import FIRST_THREE
from sfumato.metrics.resize import ANTIALIASED_BICUBIC, Resize
from sfumato.metrics.weights import checked_hash, fit_state, load_state

URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"

HEAD = 64
"""Width of one attention head, in every published size."""


@dataclass(frozen=True)
class Sizes:
    """What a ViT's state dict says about its shape."""

    width: int
    depth: int
    patch: int
    side: int
    """Patches along a side of the images it was trained on."""
    registers: int


class Attention(nn.Module):
    """Self-attention over tokens [B, T, width], in heads of 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, T, width] to the same shape."""
        # [B, T, 3, heads, 64] to three of [B, heads, T, 64].
        query, key, value = self.qkv(x).unflatten(2, (3, -1, HEAD)).transpose(1, 3).unbind(2)
        return self.proj(
            F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        )


class Perceptron(nn.Module):
    """Two layers with an exact GELU between, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class Scale(nn.Module):
    """LayerScale: one learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply [..., width]."""
        return x * self.gamma


class Block(nn.Module):
    """Attention, then perceptron, each normalised before and scaled after, around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width)
        self.ls1 = Scale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Perceptron(width)
        self.ls2 = Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, T, width] to the same shape."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Square patches of RGB images to tokens."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, width, H / patch, W / patch]."""
        return self.proj(x)


class VisionTransformer(nn.Module):
    """The network: normalised RGB [B, 3, H, W] to the class token [B, width] after the last norm.

    H and W are multiples of the patch.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.patch_embed = PatchEmbedding(width, sizes.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + sizes.side**2, width))
        if sizes.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, sizes.registers, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised RGB [B, 3, H, W] to [B, width]."""
        patches = self.patch_embed(x)
        position = self.positions(patches.shape[2], patches.shape[3])
        tokens = patches.flatten(2).transpose(1, 2) + position[:, 1:]
        first = (self.cls_token + position[:, :1]).expand(len(x), -1, -1)
        # Registers stand between the class token and the patches and have no position.
        registers = [self.register_tokens.expand(len(x), -1, -1)] if self.sizes.registers else []
        tokens = torch.cat([first, *registers, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings [1, 1 + rows * columns, width], resampled when the grid differs.

        As published: with registers antialiased bicubic; without, bicubic with each side reckoned
        0.1 patches larger, which shifts where it reads.
        """
        side = self.sizes.side
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if self.sizes.registers:
            grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
        else:
            factors = ((rows + 0.1) / side, (columns + 0.1) / side)
            grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)


@dataclass(frozen=True, eq=False)
class VisionTransformerFeatures:
    """A FeatureExtractor: the normalised class token of DINOv2, images resized to `size` pixels.

    Scaled by ImageNet's mean and deviation, not rounded to 8 bits. Channels:
    `channels.FirstThree`.
    """

    network: VisionTransformer
    fingerprint: str
    resize: Resize = ANTIALIASED_BICUBIC
    size: int = 224

    @property
    def name(self) -> str:
        """What the features are, for the reader of a number."""
        sizes = self.network.sizes
        registers = f" with {sizes.registers} registers" if sizes.registers else ""
        return (
            f"DINOv2 ViT of width {sizes.width}, depth {sizes.depth}, patch {sizes.patch}"
            f"{registers}, {self.size} px {self.resize.name}, {sizes.width}-d class token"
        )

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, width] of images [B, C, H, W], float in [-1, 1]."""
        if images.ndim != 4 or images.shape[1] < 1:
            raise DataError(f"expected images [B, C, H, W], got {list(images.shape)}")
        pixels = images[:, :1] if images.shape[1] < 3 else FIRST_THREE(images)
        pixels = FIRST_THREE(self.resize(pixels, self.size)).to(self.network.pos_embed.device)
        mean = pixels.new_tensor([0.485, 0.456, 0.406]).view(-1, 1, 1)
        deviation = pixels.new_tensor([0.229, 0.224, 0.225]).view(-1, 1, 1)
        return self.network(((pixels + 1) / 2 - mean) / deviation)

    def to(self, device: torch.device) -> VisionTransformerFeatures:
        """The same extractor, its network moved to a device."""
        self.network.to(device)
        return self


def dinov2_features(path: Path, resize: Resize = ANTIALIASED_BICUBIC) -> VisionTransformerFeatures:
    """The extractor with the weights of a published state dict (.pth or .safetensors).

    Raises CheckpointError when the file is missing, damaged, or not of such a network.
    """
    if not path.is_file():
        raise CheckpointError(
            f"no DINOv2 weights at {path}: fetch {URL} (or vitb14, vitl14) and give its path. What "
            "works without: EfficientNet-Lite0, from the extra 'metrics'"
        )
    digest = checked_hash(path)[:16]
    state = load_state(path, "DINOv2")
    sizes = sizes_of(state, path)
    with torch.device("meta"):
        network = VisionTransformer(sizes)
    fit_state(network, state, path, "DINOv2")
    return VisionTransformerFeatures(network, digest, resize, 16 * sizes.patch)


def sizes_of(state: dict[str, Tensor], path: Path) -> Sizes:
    """Sizes of the ViT that a state dict belongs to; CheckpointError when it is of no such one."""
    wanted = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    missing = [key for key in wanted if key not in state]
    if missing:
        raise CheckpointError(
            f"{path} is no DINOv2 state dict with plain perceptrons (ViT-S, B or L): "
            f"{missing[0]} is missing"
        )
    weight, positions = state["patch_embed.proj.weight"], state["pos_embed"]
    side = math.isqrt(max(positions.shape[1] - 1, 0))
    if weight.ndim != 4 or weight.shape[0] % HEAD or side**2 + 1 != positions.shape[1]:
        raise CheckpointError(
            f"{path} is no DINOv2 state dict: patches {list(weight.shape)} should be of a width "
            f"that is a multiple of {HEAD}, positions {list(positions.shape)} a square and one"
        )
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    return Sizes(weight.shape[0], depth, weight.shape[2], side, registers)
