"""What every network shares: its signature, odd sizes, precision, and the walk down and up."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.networks.blocks import Block, Style
from sfumato.networks.layers import Conv, Linear, zeros
from sfumato.networks.norm import GroupNorm


class Network(nn.Module):
    """A U-Net F(x, noise level, class, augmentation, image to start from) of images [B, C, H, W].

    Subclasses call `build` and say in `embed` how the conditions become one vector.
    """

    encoder: nn.ModuleList
    decoder: nn.ModuleList
    norm: GroupNorm
    head: Conv
    direct: Linear | None
    spectrum: nn.Module | None
    """What is known of the data, for whoever adapts the network; it takes no part in the network's
    own calls, and goes wherever the weights go."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        classes: int,
        augment_labels: int,
        condition_channels: int,
        label_dropout: float,
        levels: int,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.condition_channels = condition_channels
        self.classes, self.augment_labels = classes, augment_labels
        self.label_dropout = label_dropout
        self.multiple = 2 ** (levels - 1)
        self.compute_dtype = torch.float32
        self.channels_last = False
        self.direct = self.spectrum = None

    @property
    def seen_channels(self) -> int:
        """Channels of the body's input: those of x and of the image it starts from."""
        return self.in_channels + self.condition_channels

    def set_compute(
        self, dtype: torch.dtype = torch.float32, *, channels_last: bool = False
    ) -> None:
        """Choose the arithmetic of the body: its dtype and the memory layout of its activations.

        The embedding, the last norm and the last convolution keep the parameters' dtype. A network
        turned to float64 runs in float64 throughout, whatever was chosen here.
        """
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                f"a network computes in float32, bfloat16 or float16, got {dtype}; "
                "for float64 call network.double()"
            )
        self.compute_dtype = dtype
        self.channels_last = channels_last

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """F [B, out_channels, H, W] of x [B, in_channels, H, W] in x's dtype.

        noise_label [B] is whatever the parameterization feeds (c_noise or a step's index).
        class_labels [B, classes] is one-hot, or zeros for no class; augment_labels [B, n] is EDM's
        description of the augmentation. None stands for zeros. image [B, condition_channels, H, W],
        in [-1, 1], is what the output starts from: joined to x as it is, whatever the noise level,
        and added to the output by a linear map of its channels that the noise level decides. It is
        needed where the network was built for one. Raises ValueError on other shapes.
        """
        self._check(x, noise_label, class_labels, augment_labels)
        self._check_image(x, image)
        dtype = self.head.weight.dtype
        embedding = self.embed(
            noise_label.to(dtype),
            None if class_labels is None else class_labels.to(dtype),
            None if augment_labels is None else augment_labels.to(dtype),
        )
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        body = torch.float64 if dtype == torch.float64 else self.compute_dtype
        seen = x if image is None else torch.cat([x, image.to(x)], dim=1)
        h = pad_to_multiple(seen, self.multiple).to(dtype=body, memory_format=layout)
        h, extra = self.body(h, embedding)
        h = self.head(self.norm(h, silu=True, dtype=dtype))
        if extra is not None:
            h = h + extra.to(dtype)
        h = h[:, :, : x.shape[2], : x.shape[3]]
        if image is not None and self.direct is not None:
            # What the input shows already need not pass the narrow body.
            weights = self.direct(embedding).reshape(len(x), self.out_channels, -1)
            h = h + torch.einsum("boi,bihw->bohw", weights, image.to(dtype))
        return h.to(x.dtype, memory_format=torch.contiguous_format)

    @abstractmethod
    def embed(
        self, noise_label: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """One vector [B, E] for all conditions."""

    def body(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [B, C, H, W] for the head, and an image to add to its output, if any."""
        skips: list[Tensor] = []
        extra, image = x, None
        for index, level in enumerate(_levels(self.encoder)):
            x, extra = self.join_encoder(index, level.enter(x, embedding), extra)
            skips.append(x)
            for block in level.blocks:
                x = block(x, embedding)
                skips.append(x)
        for index, level in enumerate(_levels(self.decoder)):
            x = level.enter(x, embedding)
            for block in level.blocks:
                x = block(torch.cat([x, skips.pop()], dim=1), embedding)
            image = self.join_decoder(index, x, image)
        return x, image

    def join_encoder(self, index: int, x: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        """Where a subclass adds a second path down: x, and what the path goes on with."""
        del index
        return x, extra

    def join_decoder(self, index: int, x: Tensor, image: Tensor | None) -> Tensor | None:
        """Where a subclass adds a second path up: the image so far, at the next size."""
        del index, x
        return image

    def build(
        self,
        style: Style,
        *,
        stem: int,
        channels: tuple[int, ...],
        blocks: int,
        attention: list[bool],
        attend_every: bool,
    ) -> None:
        """Fill encoder, decoder and head: `channels` and `attention` a level, `blocks` each.

        The decoder attends in every block of an attending level, or in its last only.
        """
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        width, skips = stem, list[int]()
        for index, (outputs, attend) in enumerate(zip(channels, attention, strict=True)):
            conv = None if index else Conv(self.seen_channels, stem, 3, style.init)
            first = conv or self.down(width, style)
            inputs = [width] + [outputs] * (blocks - 1)
            self.encoder.append(
                Level([first], (Block(n, outputs, style, attention=attend) for n in inputs))
            )
            skips += [width] + [outputs] * blocks
            width = outputs
        middle = [Block(width, width, style, attention=True), Block(width, width, style)]
        last = len(channels) - 1
        for index in range(last, -1, -1):
            outputs, entry = channels[index], middle if index == last else [self.up(width, style)]
            level = Level(entry, ())
            for j in range(blocks + 1):
                attend = attention[index] and (attend_every or j == blocks)
                level.blocks.append(Block(width + skips.pop(), outputs, style, attention=attend))
                width = outputs
            self.decoder.append(level)
        if self.condition_channels:
            linear = self.out_channels * self.condition_channels
            self.direct = Linear(style.embedding, linear, zeros)
        self.norm = GroupNorm(width, style.eps)
        self.head = Conv(width, self.out_channels, 3, style.init_output)

    def down(self, channels: int, style: Style) -> nn.Module:
        """What halves the resolution on the way down."""
        return Block(channels, channels, style, resolution="down")

    def up(self, channels: int, style: Style) -> nn.Module:
        """What doubles the resolution on the way up."""
        return Block(channels, channels, style, resolution="up")

    def drop_labels(self, class_labels: Tensor) -> Tensor:
        """Hide whole rows with probability `label_dropout` while training."""
        if not self.training or self.label_dropout == 0:
            return class_labels
        keep = torch.rand(len(class_labels), 1, device=class_labels.device) >= self.label_dropout
        return class_labels * keep

    def _check(
        self, x: Tensor, noise_label: Tensor, classes: Tensor | None, augment: Tensor | None
    ) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"this network takes images [B, {self.in_channels}, H, W], got {tuple(x.shape)}"
            )
        if noise_label.shape != x.shape[:1]:
            raise ValueError(
                f"noise_label must have one value per image, [{len(x)}], "
                f"got {tuple(noise_label.shape)}; expand a single level over the batch"
            )
        for name, labels, width in (
            ("class_labels", classes, self.classes),
            ("augment_labels", augment, self.augment_labels),
        ):
            if labels is not None and labels.shape != (len(x), width):
                raise ValueError(
                    f"{name} must be [{len(x)}, {width}], got {tuple(labels.shape)}"
                    + ("" if width else f"; this network was built without {name}")
                )

    def _check_image(self, x: Tensor, image: Tensor | None) -> None:
        wanted = (len(x), self.condition_channels, *x.shape[2:])
        if image is None and self.condition_channels:
            raise ValueError(
                f"this network starts from images: give it image {list(wanted)} in [-1, 1], "
                "for example with given(image=...)"
            )
        if image is not None and (not self.condition_channels or image.shape != wanted):
            raise ValueError(
                f"image must be {list(wanted)}, got {list(image.shape)}"
                if self.condition_channels
                else "this network was built without condition_channels: it takes no image"
            )


class Level(nn.Module):
    """One resolution: modules that enter it (first convolution or resampling), then blocks."""

    def __init__(self, entry: Iterable[nn.Module], blocks: Iterable[Block]) -> None:
        super().__init__()
        self.entry = nn.ModuleList(entry)
        self.blocks = nn.ModuleList(blocks)

    def enter(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Come from the level before."""
        for module in self.entry:
            x = module(x, embedding) if isinstance(module, Block) else module(x)
        return x


def _levels(modules: nn.ModuleList) -> Iterable[Level]:
    return cast("Iterable[Level]", modules)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples; x itself if they are."""
    down, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x


def attending(resolutions: tuple[int, ...], height: int, width: int, levels: int) -> list[bool]:
    """Which levels attend: those whose longer side, rounded to a power of two, is listed."""
    multiple = 2 ** (levels - 1)
    side = max(-(-size // multiple) * multiple for size in (height, width))
    return [2 ** round(math.log2(side >> level)) in resolutions for level in range(levels)]
