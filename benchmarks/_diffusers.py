"""The peer's side: diffusers' unconditional-training example, its UNet2DModel and DDIM pipeline.

Every setting is the default of examples/unconditional_image_generation/train_unconditional.py,
except the size of the network; what had to be chosen was chosen in the peer's favour, and is said.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from _shared import Uint8

PADDING = 2  # 28 -> 32 px with background: exact to undo, where the example's resize would blur


@dataclass(frozen=True)
class Peer:
    """A configuration of the peer; everything but the network is the example's default."""

    channels: tuple[int, ...]
    groups: int = 16
    batch_size: int = 16
    learning_rate: float = 1e-4
    warmup_steps: int = 500
    tuned: bool = (
        False  # time bf16 autocast and channels_last before the clock starts, keep the best
    )


# About a million parameters both. "wide" has our tiny network's layout; "narrow" has the example's
# (attention at the second-lowest of the levels) and trains on almost twice the images per second.
NETWORKS = {
    "peer-wide": Peer(channels=(32, 48, 48)),
    "peer-narrow": Peer(channels=(16, 32, 48, 48)),
}


def build_peer(peer: Peer) -> Any:
    from diffusers import UNet2DModel

    levels = len(peer.channels)
    attention = levels - 2 if levels > 3 else levels - 1
    down = ["DownBlock2D"] * levels
    up = ["UpBlock2D"] * levels
    down[attention], up[levels - 1 - attention] = "AttnDownBlock2D", "AttnUpBlock2D"
    return UNet2DModel(
        sample_size=28 + 2 * PADDING,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=peer.channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        norm_num_groups=peer.groups,
    )


class PeerTraining:
    """The example's training step: DDPM noise prediction, AdamW, clipping, cosine decay, EMA."""

    def __init__(self, peer: Peer) -> None:
        import torch
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.training_utils import EMAModel

        self.peer, self.step = peer, 0
        self.bfloat16, self.layout = False, torch.contiguous_format
        self.model = build_peer(peer)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=peer.learning_rate,
            betas=(0.95, 0.999),
            weight_decay=1e-6,
            eps=1e-8,
        )
        self.ema = EMAModel(
            self.model.parameters(),
            decay=0.9999,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=3 / 4,
            model_cls=UNet2DModel,
            model_config=self.model.config,
        )

    def loss(self, clean: Any) -> Any:
        import torch
        from torch.nn import functional as F

        noise = torch.randn_like(clean)
        levels = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(clean),))
        noisy = self.scheduler.add_noise(clean, noise, levels).contiguous(memory_format=self.layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            predicted = self.model(noisy, levels).sample
        return F.mse_loss(predicted.float(), noise)

    def update(self, clean: Any, fraction: float) -> Any:
        """One optimizer step, `fraction` of the time budget being spent; the loss."""
        import torch

        loss = self.loss(clean)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.param_groups[0]["lr"] = self.peer.learning_rate * self.decay(fraction)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        self.step += 1
        return loss.detach()

    def decay(self, fraction: float) -> float:
        """Linear warm-up, then half a cosine, in steps; their total is foreseen from the clock.

        Generous: the example's own total, 100 epochs, would never decay within minutes.
        """
        warmup = self.peer.warmup_steps
        if self.step < warmup:
            return self.step / warmup
        total = self.step / max(fraction, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * (self.step - warmup) / max(1.0, total - warmup)))

    def choose_fastest(self, clean: Any, seconds: float = 3.0) -> None:
        """Time float32 and bf16 in both memory layouts, and keep the fastest."""
        import torch

        speeds: dict[tuple[bool, Any], float] = {}
        for bfloat16 in (False, True):
            for layout in (torch.contiguous_format, torch.channels_last):
                self._set(bfloat16, layout)
                self.loss(clean).backward()
                count, start = 0, time.perf_counter()
                while time.perf_counter() - start < seconds:
                    self.loss(clean).backward()
                    count += 1
                speeds[bfloat16, layout] = count * len(clean) / (time.perf_counter() - start)
                print(f"  {self.arithmetic}: {speeds[bfloat16, layout]:.1f} images/s")
        self.optimizer.zero_grad()
        self._set(*max(speeds, key=speeds.__getitem__))

    def _set(self, bfloat16: bool, layout: Any) -> None:
        self.bfloat16, self.layout = bfloat16, layout
        self.model.to(memory_format=layout)

    @property
    def arithmetic(self) -> str:
        import torch

        layout = ", channels_last" if self.layout == torch.channels_last else ""
        return ("bf16 autocast" if self.bfloat16 else "float32") + layout


@dataclass(frozen=True)
class Trained:
    """The peer after its time, with the averaged weights in `model`, and what it got done."""

    model: Any
    scheduler: Any
    arithmetic: str
    bfloat16: bool
    steps: int
    images: int
    seconds: float


def train(peer: Peer, images: Uint8, minutes: float, seed: int) -> Trained:
    """Train on images [n, 28, 28]; the clock starts with the first batch in hand."""
    import torch

    torch.manual_seed(seed)
    training = PeerTraining(peer)
    batches = _batches(images, peer.batch_size)
    if peer.tuned:
        training.choose_fastest(next(batches))

    limit, elapsed, seen, losses = 60 * minutes, 0.0, 0, []
    clean = next(batches)
    start = shown = time.perf_counter()
    while elapsed < limit:
        losses.append(training.update(clean, elapsed / limit))
        seen += len(clean)
        clean = next(batches)
        elapsed = time.perf_counter() - start
        if time.perf_counter() - shown > 10:
            shown = time.perf_counter()
            loss = float(torch.stack(losses[-200:]).mean())
            print(
                f"  {elapsed:4.0f} of {limit:.0f} s, step {training.step}, "
                f"{seen / elapsed:.1f} images/s, loss {loss:.4f}",
                flush=True,
            )
    training.ema.copy_to(training.model.parameters())
    return Trained(
        model=training.model.eval(),
        scheduler=training.scheduler,
        arithmetic=training.arithmetic,
        bfloat16=training.bfloat16,
        steps=training.step,
        images=seen,
        seconds=elapsed,
    )


def sample(trained: Trained, n: int, batch: int, seed: int) -> tuple[Uint8, float]:
    """n images [n, 28, 28] from diffusers' own DDIM pipeline, and the seconds they took."""
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler

    # As the pipeline does: every setting (linear betas, clip_sample) comes from the DDPM scheduler.
    scheduler = DDIMScheduler.from_config(trained.scheduler.config)
    pipeline = DDIMPipeline(unet=trained.model, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    generator, drawn = torch.Generator().manual_seed(seed), []
    start = time.perf_counter()
    for first in range(0, n, batch):
        size = min(batch, n - first)
        with torch.autocast("cpu", torch.bfloat16, enabled=trained.bfloat16):
            drawn.append(
                pipeline(
                    batch_size=size,
                    generator=generator,
                    eta=0.0,
                    num_inference_steps=50,
                    output_type="np",
                ).images
            )
        print(f"  {first + size} of {n} samples, {time.perf_counter() - start:.0f} s", flush=True)
    seconds = time.perf_counter() - start
    inner = slice(PADDING, -PADDING)
    pixels = (np.concatenate(drawn)[:, inner, inner, 0] * 255).round()
    return pixels.astype(np.uint8), seconds


def _batches(images: Uint8, size: int) -> Iterator[Any]:
    """Endless shuffled batches [size, 1, 32, 32] in [-1, 1], cheaper than the example's loader."""
    import torch
    from torch.nn import functional as F

    scaled = torch.from_numpy(images).unsqueeze(1).float() / 127.5 - 1
    scaled = F.pad(scaled, [PADDING] * 4, value=-1.0)
    while True:
        for chosen in torch.randperm(len(scaled)).split(size):
            yield scaled[chosen]
