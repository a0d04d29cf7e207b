"""The U-Net of DDPM, DDPM++ and NCSN++: one class, three presets of its configuration."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.networks.base import Network, attending
from sfumato.networks.blocks import Style
from sfumato.networks.config import UNetConfig
from sfumato.networks.embeddings import FourierEmbedding, PositionalEmbedding
from sfumato.networks.layers import (
    Conv,
    Linear,
    Resample,
    ResampledConv,
    StridedConv,
    xavier,
)
from sfumato.networks.norm import GroupNorm

EPS = 1e-6


class UNet(Network):
    """DDPM, DDPM++ or NCSN++, whichever the configuration describes.

    Sources: Ho 2020, appendix B; Song 2021, appendix H; EDM, appendix F.3 and Table 7.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        in_channels: int,
        out_channels: int,
        height: int,
        width: int,
        classes: int = 0,
        augment_labels: int = 0,
        condition_channels: int = 0,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            classes=classes,
            augment_labels=augment_labels,
            condition_channels=condition_channels,
            label_dropout=config.label_dropout,
            levels=len(config.multipliers),
        )
        self.config = config
        noise, embedding = config.width * config.noise_width, config.width * config.embedding_width
        self.features = (
            FourierEmbedding(noise)
            if config.embedding == "fourier"
            else PositionalEmbedding(noise, endpoint=True, sine_first=True)
        )
        init = xavier()
        self.map_label = Linear(classes, noise, init) if classes else None
        self.map_augment = (
            Linear(augment_labels, noise, init, bias=False) if augment_labels else None
        )
        self.map0 = Linear(noise, embedding, init)
        self.map1 = Linear(embedding, embedding, init)
        self.style = Style(
            embedding=embedding,
            dropout=config.dropout,
            skip_scale=config.skip_scale,
            eps=EPS,
            adaptive=False,
            channels_per_head=config.channels_per_head,
            taps=config.resample_filter,
            project_resample=True,
            init=init,
            init_output=xavier(config.output_gain),
            init_attention=xavier(config.attention_gain),
        )
        channels = tuple(config.width * m for m in config.multipliers)
        self.build(
            self.style,
            stem=config.width,
            channels=channels,
            blocks=config.blocks,
            attention=attending(config.attention, height, width, len(channels)),
            attend_every=config.decoder_attention == "every",
        )
        self.encoder_extra, self.decoder_extra = nn.ModuleList(), nn.ModuleList()
        # A level is entered with the channels of the one before, and so is the extra path.
        for inputs, outputs in pairwise((self.seen_channels, *channels[:-1])):
            if config.encoder == "residual":
                self.encoder_extra.append(_pyramid(inputs, outputs, self.style))
            elif config.encoder == "skip":
                self.encoder_extra.append(Conv(self.seen_channels, outputs, 1, init))
        if config.decoder == "skip":
            self.decoder_extra.extend(
                ToImage(c, out_channels, self.style) for c in reversed(channels[1:])
            )
        self.shrink = Resample(config.resample_filter, up=False)
        self.grow = Resample(config.resample_filter, up=True)

    def embed(
        self, noise_label: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Features of the noise level plus maps of the labels, through two layers: [B, E]."""
        h = self.features(noise_label)
        if self.map_label is not None:
            labels = h.new_zeros(len(h), self.classes) if class_labels is None else class_labels
            # sqrt(classes) gives a one-hot row unit variance (EDM). No class is a row of zeros.
            h = h + self.map_label(self.drop_labels(labels) * self.classes**0.5)
        if self.map_augment is not None and augment_labels is not None:
            h = h + self.map_augment(augment_labels)
        return F.silu(self.map1(F.silu(self.map0(h))))

    def join_encoder(self, index: int, x: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        """Add the residual pyramid or the shrunken input, from the second level on."""
        if index == 0 or self.config.encoder == "standard":
            return x, extra
        if self.config.encoder == "residual":
            x = (x + self.encoder_extra[index - 1](extra)) * 0.5**0.5
            return x, x
        extra = self.shrink(extra)
        return x + self.encoder_extra[index - 1](extra), extra

    def join_decoder(self, index: int, x: Tensor, image: Tensor | None) -> Tensor | None:
        """Add each level's image to the one from below and double it; the head makes the last."""
        if self.config.decoder == "standard" or index == len(self.decoder) - 1:
            return image
        part = self.decoder_extra[index](x)
        return self.grow(part if image is None else image + part)

    def down(self, channels: int, style: Style) -> nn.Module:
        """A residual block, or DDPM's strided convolution."""
        if self.config.resample == "block":
            return super().down(channels, style)
        return StridedConv(channels, style.init)

    def up(self, channels: int, style: Style) -> nn.Module:
        """A residual block, or DDPM's convolution of the enlarged features."""
        if self.config.resample == "block":
            return super().up(channels, style)
        conv = Conv(channels, channels, 3, style.init)
        return ResampledConv(Resample((1, 1), up=True), conv)


def _pyramid(inputs: int, outputs: int, style: Style) -> nn.Module:
    """Convolution, then halving; the convolution is so wide that the filter needs no padding."""
    conv = Conv(inputs, outputs, 3, style.init, extra=len(style.taps) // 2 - 1)
    return nn.Sequential(conv, Resample(style.taps, up=False, padded=False))


class ToImage(nn.Module):
    """Norm, SiLU, convolution: features to the image of one level (output skips)."""

    def __init__(self, channels: int, outputs: int, style: Style) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, style.eps)
        self.conv = Conv(channels, outputs, 3, style.init_output)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, outputs, H, W]."""
        return self.conv(self.norm(x, silu=True))
