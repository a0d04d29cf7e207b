"""What a network looks like, as plain values: no torch here, so that a CLI can read it quickly."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

from sfumato.errors import ConfigError


@dataclass(frozen=True)
class UNetConfig:
    """The U-Net of DDPM, DDPM++ and NCSN++ (Ho 2020; Song 2021; EDM, Table 7 and appendix F.3).

    The defaults are EDM's DDPM++ for CIFAR-10.
    """

    width: int = 128
    """Channels at multiplier 1."""
    multipliers: tuple[int, ...] = (2, 2, 2)
    """Channels of each level as a multiple of the width; every level halves the resolution."""
    blocks: int = 4
    """Residual blocks per level of the encoder (the decoder has one more)."""
    attention: tuple[int, ...] = (16,)
    """Resolutions with self-attention (a level of 14 pixels counts as 16, one of 7 as 8)."""
    decoder_attention: Literal["last", "every"] = "last"
    """Decoder blocks that attend at those resolutions: the last (EDM) or every one (DDPM)."""
    channels_per_head: int = 0
    """Channels of an attention head; 0 is a single head."""
    dropout: float = 0.13
    """Probability of dropping an activation while training, in [0, 1)."""
    label_dropout: float = 0.0
    """Probability of hiding an image's class while training (for classifier-free guidance)."""
    embedding: Literal["positional", "fourier"] = "positional"
    """Features of the noise level: geometric frequencies, or random ones."""
    noise_width: int = 1
    """Channels of those features as a multiple of the width."""
    embedding_width: int = 4
    """Channels of the mapped embedding as a multiple of the width."""
    encoder: Literal["standard", "residual", "skip"] = "standard"
    """Extra path of the encoder: none, a residual pyramid (NCSN++), or input skips."""
    decoder: Literal["standard", "skip"] = "standard"
    """Extra path of the decoder: none, or output skips."""
    resample: Literal["block", "conv"] = "block"
    """What changes the resolution: a residual block, or one convolution (DDPM)."""
    resample_filter: tuple[int, ...] = (1, 1)
    """Taps of the resampling filter: 1 1 is a box, 1 3 3 1 smoother (NCSN++)."""
    skip_scale: float = sqrt(0.5)
    """Factor on the sum of a residual branch and its input: sqrt(1/2), or 1 (DDPM)."""
    output_gain: float = 1e-5
    """Initial scale of the last layer of every residual branch and of the network."""
    attention_gain: float = sqrt(0.2)
    """Initial scale of the attention's query, key and value weights."""

    def __post_init__(self) -> None:
        _check_common(self.width, self.multipliers, self.blocks, self.dropout, self.label_dropout)
        if self.noise_width < 1 or self.embedding_width < 1:
            raise ConfigError("noise_width and embedding_width must be at least 1")
        taps = self.resample_filter
        if not taps or len(taps) % 2 or sum(taps) == 0:
            raise ConfigError(
                f"resample_filter needs an even number of taps that do not cancel, got {taps}; "
                "use (1, 1) or (1, 3, 3, 1)"
            )

    @classmethod
    def ddpm(cls) -> UNetConfig:
        """DDPM for CIFAR-10 (Ho 2020, appendix B): 35.7 M parameters."""
        return cls(
            multipliers=(1, 2, 2, 2),
            blocks=2,
            decoder_attention="every",
            dropout=0.1,
            resample="conv",
            skip_scale=1.0,
            output_gain=0.0,
            attention_gain=1.0,
        )

    @classmethod
    def ddpmpp(cls) -> UNetConfig:
        """DDPM++ for CIFAR-10 as in EDM: 55.7 M parameters."""
        return cls()

    @classmethod
    def ncsnpp(cls) -> UNetConfig:
        """NCSN++ for CIFAR-10 as in EDM: 56.4 M parameters."""
        return cls(
            embedding="fourier", noise_width=2, encoder="residual", resample_filter=(1, 3, 3, 1)
        )


@dataclass(frozen=True)
class ADMConfig:
    """The ADM U-Net (Dhariwal & Nichol 2021, as in EDM); the defaults are ImageNet-64's."""

    width: int = 192
    """Channels at multiplier 1."""
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    """Channels of each level as a multiple of the width; every level halves the resolution."""
    blocks: int = 3
    """Residual blocks per level of the encoder (the decoder has one more)."""
    attention: tuple[int, ...] = (32, 16, 8)
    """Resolutions with self-attention (a level of 14 pixels counts as 16, one of 7 as 8)."""
    channels_per_head: int = 64
    """Channels of an attention head; 0 is a single head."""
    dropout: float = 0.1
    """Probability of dropping an activation while training, in [0, 1)."""
    label_dropout: float = 0.0
    """Probability of hiding an image's class while training (for classifier-free guidance)."""
    embedding_width: int = 4
    """Channels of the mapped embedding as a multiple of the width."""

    def __post_init__(self) -> None:
        _check_common(self.width, self.multipliers, self.blocks, self.dropout, self.label_dropout)
        if self.embedding_width < 1:
            raise ConfigError("embedding_width must be at least 1")

    @classmethod
    def adm(cls) -> ADMConfig:
        """ADM for ImageNet-64: 295.9 M parameters with 1000 classes."""
        return cls()


NetworkConfig = UNetConfig | ADMConfig


def _check_common(
    width: int,
    multipliers: tuple[int, ...],
    blocks: int,
    dropout: float,
    label_dropout: float,
) -> None:
    if width < 4 or width % 4:
        raise ConfigError(f"width must be a positive multiple of 4, got {width}")
    if not multipliers or min(multipliers) < 1:
        raise ConfigError(f"multipliers must be one or more positive integers, got {multipliers}")
    if blocks < 1:
        raise ConfigError(f"blocks must be at least 1, got {blocks}")
    for name, value in (("dropout", dropout), ("label_dropout", label_dropout)):
        if not 0 <= value < 1:
            raise ConfigError(f"{name} is a probability below 1, got {value}")
