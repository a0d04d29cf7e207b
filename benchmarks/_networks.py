"""Who races in network_speed.py: one network of about 3.5 GFLOP an image, by whoever has one."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import MagicMock

import torch
from _plain import Plain
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.networks.build import build_network
from sfumato.networks.config import UNetConfig
from sfumato.speed.steps import forward_call
from sfumato.training.ema import Ema
from sfumato.training.optimizer import Adam

SHAPE = (3, 32, 32)
FULL = UNetConfig(width=64, multipliers=(1, 2, 2), blocks=2, dropout=0.13)
QUICK = UNetConfig(width=32, multipliers=(1, 2), blocks=1, dropout=0.13)
FLOAT32, BFLOAT16 = "float32, NCHW", "bf16, channels_last"


@dataclass(frozen=True)
class Contestant:
    """A network in one arithmetic; `package` is what has to be imported for it."""

    name: str
    arithmetic: str
    package: str
    build: Callable[[UNetConfig], nn.Module]

    @property
    def title(self) -> str:
        return f"{self.name}, {self.arithmetic}"

    @property
    def bfloat16(self) -> bool:
        return self.arithmetic == BFLOAT16

    def network(self, config: UNetConfig) -> nn.Module:
        torch.manual_seed(0)
        network: Any = self.build(config)
        if self.package == "sfumato":
            if self.bfloat16:
                network.set_compute(torch.bfloat16, channels_last=True)
            return network
        layout = torch.channels_last if self.bfloat16 else torch.contiguous_format
        return _Peer(network.to(memory_format=layout), layout, self.bfloat16)


class _Peer(nn.Module):
    """Somebody else's network in the arithmetic that PyTorch's documentation advises."""

    def __init__(self, network: nn.Module, layout: torch.memory_format, bfloat16: bool) -> None:
        super().__init__()
        self.network, self.layout, self.bfloat16 = network, layout, bfloat16

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16) if self.bfloat16 else _nothing():
            out = self.network(x.contiguous(memory_format=self.layout), label)
        return out.float()


def _nothing() -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext()


def _ours(config: UNetConfig) -> nn.Module:
    return build_network(config, in_channels=3, out_channels=3, height=32, width=32)


def _widths(config: UNetConfig) -> tuple[int, ...]:
    return tuple(config.width * m for m in config.multipliers)


class _Diffusers(nn.Module):
    def __init__(self, config: UNetConfig) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        widths = _widths(config)
        others = len(widths) - 2
        self.network = UNet2DModel(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            layers_per_block=config.blocks,
            block_out_channels=widths,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * others),
            up_block_types=(*["UpBlock2D"] * others, "AttnUpBlock2D", "UpBlock2D"),
            downsample_type="resnet",  # As ours does it; a convolution is smaller by a tenth.
            upsample_type="resnet",
            dropout=config.dropout,
        )

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.network(x, label, return_dict=False)[0]


class _Azula(nn.Module):
    """azula's U-Net is told the level by a vector; it has no attention."""

    def __init__(self, config: UNetConfig) -> None:
        from azula.nn.layers import SineEncoding  # pyright: ignore
        from azula.nn.unet import UNet  # pyright: ignore

        super().__init__()
        widths = _widths(config)
        blocks = [2 * config.blocks] * len(widths)
        blocks[0] += 1
        self.encoding = SineEncoding(config.width)
        self.network = UNet(
            3,
            3,
            hid_channels=widths,
            hid_blocks=blocks,
            mod_features=config.width,
            norm="group",
            dropout=config.dropout,
        )

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.network(x, self.encoding(label))


def _smalldiffusion(config: UNetConfig) -> nn.Module:
    # Its data module, not used here, wants torchvision, of which there is no plain CPU build.
    missing = "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None
    if missing:
        sys.modules["torchvision"] = MagicMock()
    from smalldiffusion import Unet  # pyright: ignore

    if missing:
        del sys.modules["torchvision"]
    return Unet(
        32,
        3,
        3,
        ch=config.width,
        ch_mult=config.multipliers,
        num_res_blocks=config.blocks,
        attn_resolutions=(16,),
        dropout=config.dropout,
    )


_BUILDERS: dict[str, tuple[str, Callable[[UNetConfig], nn.Module]]] = {
    "plain torch": ("torch", Plain),
    "sfumato": ("sfumato", _ours),
    "diffusers": ("diffusers", _Diffusers),
    "azula": ("azula", _Azula),
    "smalldiffusion": ("smalldiffusion", _smalldiffusion),
}


def contestants(names: Sequence[str] = tuple(_BUILDERS)) -> list[Contestant]:
    """Everybody who is installed, in float32 and in bf16 with channels_last."""
    found: list[Contestant] = []
    for name in names:
        package, build = _BUILDERS[name]
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: left out")
            continue
        found += [Contestant(name, how, package, build) for how in (FLOAT32, BFLOAT16)]
    return found


def forward_step(network: nn.Module, x: Tensor, label: Tensor) -> Callable[[], object]:
    return forward_call(network, x, label)


def training_step(network: nn.Module, x: Tensor, label: Tensor) -> Callable[[], None]:
    """Forward, backward, Adam (fused for all), moving average of the weights."""
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    ours = not isinstance(network, _Peer)
    if ours:
        optimizer, ema = Adam().over(network), Ema(network)
    else:
        optimizer = torch.optim.Adam(network.parameters(), lr=0.0, fused=True)
        average = copy.deepcopy(network).requires_grad_(False)
    optimizer.param_groups[0]["lr"] = 1e-4

    def step() -> None:
        network.train()
        F.mse_loss(network(x, label), target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if ours:
            ema.update(network, 0.999)
            return
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
                mine.lerp_(theirs, 0.001)

    return step
