"""The ADM U-Net of Dhariwal & Nichol (2021), with the shapes EDM gives it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sfumato.networks.base import Network, attending
from sfumato.networks.blocks import Style
from sfumato.networks.config import ADMConfig
from sfumato.networks.embeddings import PositionalEmbedding
from sfumato.networks.layers import Linear, kaiming, normal, zeros


class ADM(Network):
    """Adaptive group norm, 64-channel heads, silent residual branches at the start.

    Sources: Dhariwal & Nichol 2021, section 3; EDM, appendix F.3 and Table 7.
    """

    def __init__(
        self,
        config: ADMConfig,
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
        noise, embedding = config.width, config.width * config.embedding_width
        self.features = PositionalEmbedding(noise, endpoint=False, sine_first=False)
        self.map_augment = (
            Linear(augment_labels, noise, zeros, bias=False) if augment_labels else None
        )
        self.map0 = Linear(noise, embedding, kaiming)
        self.map1 = Linear(embedding, embedding, kaiming)
        self.map_label = Linear(classes, embedding, normal, bias=False) if classes else None
        style = Style(
            embedding=embedding,
            dropout=config.dropout,
            skip_scale=1.0,
            eps=1e-5,
            adaptive=True,
            channels_per_head=config.channels_per_head,
            taps=(1, 1),
            project_resample=False,
            init=kaiming,
            init_output=zeros,
            init_attention=kaiming,
        )
        channels = tuple(config.width * m for m in config.multipliers)
        self.build(
            style,
            stem=channels[0],
            channels=channels,
            blocks=config.blocks,
            attention=attending(config.attention, height, width, len(channels)),
            attend_every=True,
        )

    def embed(
        self, noise_label: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Features of the noise level through two layers, plus the class's own vector: [B, E]."""
        h = self.features(noise_label)
        if self.map_augment is not None and augment_labels is not None:
            h = h + self.map_augment(augment_labels)
        h = self.map1(F.silu(self.map0(h)))
        if self.map_label is not None and class_labels is not None:
            h = h + self.map_label(self.drop_labels(class_labels))
        return F.silu(h)
