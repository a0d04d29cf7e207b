"""The same latents by ever more steps: what is fixed by x_T alone (DDIM Figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sfumato.errors import ConfigError
from sfumato.files import write_json
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import SamplerConfig, plain, sub_sequence
from sfumato.report.grid import image_grid, save_png


@dataclass(frozen=True, eq=False)
class Sheet:
    """Images [n, K, C, H, W]: a row a latent, a column a number of steps.

    `missed` [K]: per-dimension RMSE of each column to the last one, on [-1, 1].
    """

    steps: tuple[int, ...]
    images: Tensor
    missed: tuple[float, ...]


def consistency(
    model: Model, sampler: SamplerConfig, steps: Sequence[int], n: int, cache: Cache, seed: int = 0
) -> Sheet:
    """Draw n latents by DDIM with eta = 0 and each number of steps; what was drawn is in the cache.

    Raises ConfigError for more steps than a ladder has.
    """
    columns = tuple(sorted(set(steps)))
    if len(columns) < 2:
        raise ConfigError("a consistency sheet compares at least two numbers of steps: --nfe 10 50")
    own = sub_sequence(plain(sampler, "ddim"))
    for count in columns:
        model.grid(replace(own, steps=count))
    drawn: list[Tensor] = []
    with tqdm(total=sum(columns) * n, unit="call", unit_scale=True) as bar:
        for count in columns:
            bar.set_description(f"{count} steps")
            images = Drawn(model, n, cache, seed=seed, sampler=replace(own, steps=count))
            parts = [torch.from_numpy(images.piece(i)) for i in range(images.pieces)]
            drawn.append(torch.cat(parts)[:n])
            bar.update(count * n)
    last = drawn[-1].double()
    missed = tuple(float((x.double() - last).square().mean().sqrt()) for x in drawn)
    return Sheet(columns, torch.stack(drawn, 1), missed)


def write_sheet(out: Path, sheet: Sheet) -> dict[str, Path]:
    """Write consistency.png and consistency.json; return their paths."""
    paths = {"sheet": out / "consistency.png", "JSON": out / "consistency.json"}
    out.mkdir(parents=True, exist_ok=True)
    save_png(image_grid(sheet.images.flatten(0, 1), columns=len(sheet.steps)), paths["sheet"])
    rows = [{"steps": s, "rmse": m} for s, m in zip(sheet.steps, sheet.missed, strict=True)]
    write_json(paths["JSON"], rows)
    return paths
