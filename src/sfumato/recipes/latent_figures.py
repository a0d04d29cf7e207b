"""What DDPM's figures show of latents: images mixed at a level, on their way, and from one x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.latents import interpolate_diffused, share_latent
from sfumato.noise import F64
from sfumato.randomness import Noise, derive_seed
from sfumato.recipes import build
from sfumato.recipes.latents import Flow
from sfumato.recipes.samplers import deterministic
from sfumato.sampling import sample


def levels_from(flow: Flow, sigma: float) -> Tensor:
    """Return the sampler's levels from sigma (on a ladder: its nearest level) down to 0.

    Raises ConfigError for a sigma outside the trained range.
    """
    limits, grid = flow.limits, flow.down
    if not limits.low <= sigma <= limits.high * (1 + 1e-6):
        raise ConfigError(
            f"a level is a sigma the model knows, {limits.low:.6g} to {limits.high:.6g}, "
            f"not {sigma:g}"
        )
    first = limits.snap(torch.tensor([min(sigma, limits.high)], dtype=F64))
    return torch.cat([first, grid[grid < float(first) * (1 - 1e-9)]])


def mixed(
    flow: Flow, a: Tensor, b: Tensor, sigma: float, weights: Sequence[float], seed: int
) -> Tensor:
    """Return images [W, C, H, W] between two [C, H, W], mixed at a level (DDPM Figure 8)."""
    device = flow.model.device
    return interpolate_diffused(
        flow.denoiser(len(weights)), flow.model.solver(flow.sampler), levels_from(flow, sigma),
        a.to(device), b.to(device), weights, Noise((seed,)),
    ).cpu()  # fmt: skip


@dataclass(frozen=True, eq=False)
class Progress:
    """Predictions of x0 [n, K, C, H, W] on the way down, made at these K levels."""

    x0: Tensor
    sigmas: tuple[float, ...]


def progressive(flow: Flow, seeds: Sequence[int], columns: int = 10) -> Progress:
    """Return what the network predicts along the way to these seeds' images (DDPM Figure 6).

    At most `columns` steps, evenly spread, the last being the image.
    """
    count = len(flow.down) - 1
    shown = {round(i * (count - 1) / max(1, columns - 1)) for i in range(columns)}
    noise, start = Noise(tuple(seeds)), flow.seeded(seeds).to(flow.model.device)
    denoise = flow.model.bound(seeds, flow.label, sampler=flow.sampler)
    denoise = build.sampler_denoiser(flow.sampler, denoise)
    predictions: list[Tensor] = []
    sigmas: list[float] = []
    for step in sample(denoise, flow.model.solver(flow.sampler), flow.down, start, noise):
        if step.index in shown:
            last = step.index == count - 1
            predictions.append((step.x if last else step.x0).cpu())
            sigmas.append(0.0 if last else step.sigma)
    return Progress(torch.stack(predictions, 1), tuple(sigmas))


def completions(flow: Flow, seed: int, sigma: float, count: int) -> tuple[Tensor, float]:
    """Return images [n, C, H, W] that share their x at a level, and that level (DDPM Figure 7).

    The sampler draws seed's image down to the grid's level nearest to sigma, and from there on
    each completion has noise of its own. Raises ConfigError for a deterministic sampler, which
    has one completion only, and for a level outside the grid.
    """
    solver, grid = flow.model.solver(flow.sampler), flow.down
    if deterministic(solver):
        raise ConfigError(
            f"{flow.sampler.solver} draws no noise, so it completes a shared latent in one way "
            "only: add --solver ancestral, or --solver ddim --eta 1"
        )
    inner = grid[:-1]
    if not float(inner[-1]) / 1.01 <= sigma <= float(inner[0]) * 1.01:
        raise ConfigError(
            f"--share-latent takes a sigma on the way, {float(inner[-1]):.4g} to "
            f"{float(inner[0]):.4g}, not {sigma:g}"
        )
    drawn = flow.model.classes_for([seed], flow.label)
    flow = replace(flow, label=flow.model.classes[drawn[0]] if drawn else None)
    place = int((inner.log() - torch.tensor(sigma, dtype=F64).log()).abs().argmin())
    x = flow.seeded([seed]).to(flow.model.device)
    if place:
        for step in sample(flow.denoiser(1), solver, grid[: place + 1], x, Noise((seed,))):
            x = step.x
    seeds = tuple(derive_seed(seed, "completion", i) for i in range(count))
    done = share_latent(flow.denoiser(count), solver, grid[place:], x[0], Noise(seeds))
    return done.cpu(), float(grid[place])
