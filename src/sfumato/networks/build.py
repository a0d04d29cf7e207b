"""From a configuration to a network."""

from __future__ import annotations

from sfumato.networks.adm import ADM
from sfumato.networks.base import Network
from sfumato.networks.config import NetworkConfig, UNetConfig
from sfumato.networks.unet import UNet


def build_network(
    config: NetworkConfig,
    *,
    in_channels: int,
    out_channels: int,
    height: int,
    width: int,
    classes: int = 0,
    augment_labels: int = 0,
    condition_channels: int = 0,
) -> Network:
    """The network a configuration describes, initialised from torch's default generator.

    height and width (pixels) decide which levels attend; other sizes can be fed later. classes = 0
    is unconditional, augment_labels = 0 takes none; condition_channels are those of an image that
    each output starts from, 0 for none. Raises ValueError on non-positive sizes.
    """
    for name, value, least in (
        ("height", height, 1),
        ("width", width, 1),
        ("classes", classes, 0),
        ("augment_labels", augment_labels, 0),
        ("condition_channels", condition_channels, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if isinstance(config, UNetConfig):
        return UNet(
            config,
            in_channels=in_channels,
            out_channels=out_channels,
            height=height,
            width=width,
            classes=classes,
            augment_labels=augment_labels,
            condition_channels=condition_channels,
        )
    return ADM(
        config,
        in_channels=in_channels,
        out_channels=out_channels,
        height=height,
        width=width,
        classes=classes,
        augment_labels=augment_labels,
        condition_channels=condition_channels,
    )
