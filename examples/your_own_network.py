"""Adapt a network of your own, train it on a toy in seconds, and sample it with several solvers.

The data are points on a ring in two dimensions: the true radius is 0.7.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn

import sfumato


class Points(nn.Module):
    """EDM's F for points: (c_in * x [B, 2], c_noise [B]) -> [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
        self.body = nn.Sequential(*hidden, nn.Linear(128, 2))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.body(torch.cat([x, level[:, None]], 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()

    draw = torch.Generator().manual_seed(0)
    network = Points()
    denoise = sfumato.edm_preconditioned(network, sigma_data=0.5, high=20.0)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(options.steps):
        angle = 2 * math.pi * torch.rand(256, generator=draw)
        x0 = 0.7 * torch.stack([angle.cos(), angle.sin()], 1)
        sigma = torch.exp(1.2 * torch.randn(256, generator=draw) - 1.2)
        x = x0 + sigma[:, None] * torch.randn(256, 2, generator=draw)
        weight = sigma**-2 + 0.5**-2
        loss = (weight * (denoise(x, sigma).mean - x0).square().mean(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    grid = sfumato.karras(18, high=20.0)
    for solver in (sfumato.Heun(), sfumato.DDIM(eta=1.0), sfumato.Churn(sfumato.Heun(), 20)):
        (points,) = sfumato.generate(denoise, solver, grid, (2,), range(512), batch=512)
        radius, name = points.norm(dim=1), type(solver).__name__
        print(f"{name:<6} radius {radius.mean():.3f} +- {radius.std():.3f} (truth 0.7)")


if __name__ == "__main__":
    main()
