"""Who races in gpu.py: ours as a user gets it, and diffusers' UNet2DModel as its docs advise."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.networks.build import build_network
from sfumato.networks.config import UNetConfig
from sfumato.networks.graphed import Graphed
from sfumato.noise import karras
from sfumato.parameterization import Adapted, edm_preconditioned
from sfumato.sampling import generate
from sfumato.solvers import Heun
from sfumato.speed.flops import forward_flops, training_flops
from sfumato.training.augmentation import Augment
from sfumato.training.ema import HalfLife
from sfumato.training.loop import train
from sfumato.training.noise_sampling import LogNormal
from sfumato.training.objectives import EDM
from sfumato.training.optimizer import Adam, LearningRate
from sfumato.training.plan import Plan
from sfumato.training.replay import replay_training
from sfumato.training.state import TrainState

SHAPE = (3, 32, 32)
AUGMENT_LABELS = 9
LOADER = importlib.util.find_spec("PIL") is not None
Call = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """The two networks, of the same FLOPs, and how many images they see at once."""

    ours: UNetConfig
    peer_channels: tuple[int, ...]
    peer_blocks: int
    peer_groups: int
    batch: int
    sampling_batch: int
    steps: int = 18


FULL = Size(UNetConfig.ddpmpp(), (256, 256, 256), 4, 32, batch=512, sampling_batch=256)
QUICK = Size(
    UNetConfig(width=16, multipliers=(1, 2, 2), blocks=1), (16, 32, 32), 1, 8, 8, 4, steps=3
)


@dataclass(frozen=True)
class Contestant:
    """One who races: `prepare(micro)` returns a call that does one step, or draws one batch.

    `images` a call, `flops` an image; `micro`: images a network call, where memory is short.
    """

    name: str
    kind: str
    images: int
    flops: int
    prepare: Callable[[int], Call]
    compiled: bool = False


def edm_plan(micro: int, batch: int) -> Plan:
    """The preset `edm`: a test holds it to recipes.plan.plan_of(recipe("edm"))."""

    def adapt(network: nn.Module) -> Adapted:
        return edm_preconditioned(network, 0.5, low=0.002, high=80.0)

    return Plan(
        adapt=adapt,
        objective=EDM(0.5),
        noise=LogNormal(-1.2, 1.2),
        learning_rate=LearningRate(1e-3, 10_000_000),
        averaging=HalfLife(500_000, 0.05),
        optimizer=Adam((0.9, 0.999)),
        augment=Augment(0.12),
        micro_batch=micro if micro < batch else None,
    )


def our_network(size: Size) -> nn.Module:
    torch.manual_seed(0)
    return build_network(
        size.ours,
        in_channels=3,
        out_channels=3,
        height=SHAPE[1],
        width=SHAPE[2],
        augment_labels=AUGMENT_LABELS,
    )


@dataclass(frozen=True)
class Plain:
    """A batch where the data layer is not installed."""

    x: Tensor
    labels: None = None
    condition: None = None


def batches(size: int, device: str, count: int = 2048) -> Iterator[Any]:
    """Endless batches of random 8-bit images in memory, by the library's loader.

    Without pillow, which the loader needs, the same batch again and again.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    if not LOADER:
        return itertools.repeat(Plain(pixels[:size].float() / 127.5 - 1))
    from sfumato.data.arrays import InMemory
    from sfumato.data.loader import Batches

    cuda = torch.device(device).type == "cuda"
    return Batches(InMemory(pixels.numpy(), layout="NCHW"), size, seed=0, pinned=cuda)


def ours(size: Size, device: str) -> list[Contestant]:
    """Training by sfumato.training.loop.train, sampling by sfumato.sampling.generate; bf16.

    As `sfumato train` and `sample` do by themselves: on a GPU both are replayed as CUDA graphs.
    """
    example = our_network(size)
    cuda = torch.device(device).type == "cuda"

    def training(micro: int) -> Call:
        network: Any = our_network(size).to(device)
        network.set_compute(torch.bfloat16, channels_last=True)
        plan = edm_plan(micro, size.batch)
        state = TrainState.start(network, plan)
        if cuda and micro == size.batch:
            x, told = torch.zeros(micro, *SHAPE), torch.zeros(micro, AUGMENT_LABELS)
            given = {"augment_labels": told.to(device)}
            replay_training(network, x.to(device), x[:, 0, 0, 0].to(device), given)
        records = train(state, batches(size.batch, device), plan)
        return lambda: next(records)

    def sampling(micro: int) -> Call:
        network: Any = our_network(size).to(device).eval().requires_grad_(False)
        network.set_compute(torch.bfloat16, channels_last=True)
        denoise, grid = edm_preconditioned(Graphed(network)), karras(size.steps)
        seeds = range(size.sampling_batch)
        return lambda: list(
            generate(denoise, Heun(), grid, SHAPE, seeds, batch=micro, device=device)
        )

    forward, both = forward_flops(example, SHAPE), training_flops(example, SHAPE)
    calls = 2 * size.steps - 1
    return [
        Contestant("sfumato bf16", "training", size.batch, both, training),
        Contestant("sfumato bf16", "sampling", size.sampling_batch, calls * forward, sampling),
    ]


class _Sample(nn.Module):
    """diffusers' network, returning the tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.network(x, level).sample


def peer_network(size: Size) -> Any:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=SHAPE[1],
        in_channels=3,
        out_channels=3,
        layers_per_block=size.peer_blocks,
        block_out_channels=size.peer_channels,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=size.peer_groups,
        dropout=size.ours.dropout,
    )


def peers(size: Size, device: str, *, compiled: bool) -> list[Contestant]:
    """The training example's step and a Heun loop; in its favour fused AdamW, EMA at once."""
    example = _Sample(peer_network(size))
    name = "diffusers bf16 autocast, channels_last" + (", compiled" if compiled else "")
    layout = torch.channels_last

    def network() -> Any:
        model = peer_network(size).to(device).to(memory_format=layout)
        return torch.compile(model) if compiled else model

    def autocast() -> contextlib.AbstractContextManager[object]:
        kind = torch.device(device).type
        return torch.autocast(kind, torch.bfloat16)

    def training(micro: int) -> Call:
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel

        model = network()
        parameters = list(model.parameters())
        scheduler = DDPMScheduler(num_train_timesteps=1000)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
        ema = EMAModel(parameters, decay=0.9999, use_ema_warmup=True, foreach=True)
        feed = batches(size.batch, device)

        def step() -> None:
            clean = next(feed).x.to(device, non_blocking=True)
            for part in clean.split(micro):
                noise = torch.randn_like(part)
                levels = torch.randint(0, 1000, (len(part),), device=device)
                noisy = scheduler.add_noise(part, noise, levels).contiguous(memory_format=layout)
                with autocast():
                    predicted = model(noisy, levels, return_dict=False)[0]
                loss = F.mse_loss(predicted.float(), noise) * (len(part) / len(clean))
                loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(parameters)

        return step

    def sampling(micro: int) -> Call:
        from diffusers import HeunDiscreteScheduler

        model = network().eval()
        scheduler = HeunDiscreteScheduler(use_karras_sigmas=True)

        @torch.no_grad()
        def draw() -> None:
            for first in range(0, size.sampling_batch, micro):
                count = min(micro, size.sampling_batch - first)
                scheduler.set_timesteps(size.steps, device=device)
                x = torch.randn(count, *SHAPE, device=device) * scheduler.init_noise_sigma
                for t in scheduler.timesteps:
                    seen = scheduler.scale_model_input(x, t).contiguous(memory_format=layout)
                    with autocast():
                        out = model(seen, t, return_dict=False)[0]
                    x = scheduler.step(out.float(), t, x).prev_sample

        return draw

    forward, both = forward_flops(example, SHAPE), training_flops(example, SHAPE)
    calls = 2 * size.steps - 1
    return [
        Contestant(name, "training", size.batch, both, training, compiled),
        Contestant(name, "sampling", size.sampling_batch, calls * forward, sampling, compiled),
    ]
