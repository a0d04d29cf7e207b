"""Restoration of real images under clouds and lost pixels, against biharmonic inpainting.

    python benchmarks/restoration.py --run RUN --data TEST.npy --name cifar-10 [--paired RUN]

TEST.npy holds images [n, H, W(, 3)], 8 bits. `--paired` is a run trained on pairs of clouded and
clear images, whose clouds it is then given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _shared import machine, setting, write_text
from skimage.restoration import inpaint_biharmonic
from torch import Tensor

from sfumato.data.clouds import Clouds
from sfumato.metrics.channels import ToThree
from sfumato.metrics.efficientnet import efficientnet_features
from sfumato.metrics.paired import psnr
from sfumato.randomness import Noise
from sfumato.recipes.model import Model, load
from sfumato.recipes.paired import answers
from sfumato.recipes.restoring import How, usual_sampler
from sfumato.recipes.restoring.names import METHODS
from sfumato.restoration import Mask, Measured
from sfumato.sampling import sample, start_from_prior

RESULTS = Path(__file__).parent / "results"
BATCH = 50


@dataclass(frozen=True, eq=False)
class Damage:
    """Images [n, C, H, W] in [-1, 1], where they are known, and what a camera would see."""

    name: str
    x0: Tensor
    known: Tensor
    seen: Tensor


def clouded(x0: Tensor, cover: float) -> Damage:
    clouds = Clouds(cover=cover, shadow=0.0)
    size = (x0.shape[2], x0.shape[3])
    fields = [clouds.of(size, seed) for seed in range(len(x0))]
    known = torch.stack([~field.mask() for field in fields])[:, None]
    seen = torch.stack([clouds.over(x, field) for x, field in zip(x0, fields, strict=True)])
    return Damage(f"clouds, {cover:.0%}", x0, known, seen)


def scattered(x0: Tensor, lost: float) -> Damage:
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(len(x0), 1, *x0.shape[2:], generator=generator) >= lost
    return Damage(f"pixels at random, {lost:.0%}", x0, known, x0 * known)


def restored(model: Model, damage: Damage, how: How, seed: int) -> Tensor:
    """One answer for each image, known pixels in place."""
    sampler = usual_sampler(model.recipe.sampler)
    grid, solver = model.grid(sampler), model.solver(sampler)
    parts: list[Tensor] = []
    for first in range(0, len(damage.x0), BATCH):
        x0, known = damage.x0[first : first + BATCH], damage.known[first : first + BATCH]
        noise = Noise(tuple(range(seed + first, seed + first + len(x0))))
        measured = Measured(Mask(known), x0 * known)
        denoise, walk = how.bend(model.denoiser, solver, measured, noise)
        x = start_from_prior(denoise, grid[0], x0.shape[1:], noise)
        for step in sample(denoise, walk, grid, x, noise):
            x = step.x
        parts.append(torch.where(known, x0, x.clamp(-1, 1)))
    return torch.cat(parts)


def biharmonic(damage: Damage) -> Tensor:
    found: list[Tensor] = []
    for x, known in zip(damage.x0, damage.known, strict=True):
        image = (x.permute(1, 2, 0).double().numpy() + 1) / 2
        filled = inpaint_biharmonic(image, ~known[0].numpy(), channel_axis=-1)
        found.append(torch.from_numpy(np.asarray(filled) * 2 - 1).permute(2, 0, 1).float())
    return torch.stack(found).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--paired", type=Path)
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--few", type=int, default=50)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    about = machine()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load(args.run)
    raw = np.load(args.data)[: args.n]
    raw = raw[:, None] if raw.ndim == 3 else raw.transpose(0, 3, 1, 2)
    x0 = torch.from_numpy(np.ascontiguousarray(raw)).float() / 127.5 - 1
    extractor = efficientnet_features()
    network = extractor if x0.shape[1] == 3 else ToThree(extractor)

    def far(x: Tensor, truth: Tensor) -> float:
        """Mean distance of features."""
        with torch.no_grad():
            return float((network(x) - network(truth)).norm(dim=1).mean())

    def row(name: str, truth: Tensor, make: Callable[[], Tensor], per: int = 1) -> str:
        start = time.perf_counter()
        x = make()
        each = (time.perf_counter() - start) / len(truth) / per
        line = f"| {name} | {float(psnr(x, truth).mean()):.2f} | {far(x, truth):.2f} | {each:.2f} |"
        print(line, flush=True)
        return line

    paired = load(args.paired) if args.paired else None
    lines: list[str] = []
    damages = [clouded(x0, cover) for cover in (0.1, 0.3, 0.6)] + [scattered(x0, 0.25)]
    for damage in damages:
        print(damage.name, flush=True)
        lines += ["", f"## {damage.name}", "", *HEADER]
        lines.append(row("biharmonic", x0, lambda d=damage: biharmonic(d)))
        found: list[Tensor] = []

        def one(d: Damage = damage, found: list[Tensor] = found) -> Tensor:
            found.append(restored(model, d, How(), 10_000 * len(found)))
            return found[-1]

        lines.append(row("moment-matching, one answer", x0, one))
        for _ in range(args.answers - 1):
            one()
        lines.append(
            row(f"mean of {args.answers} answers", x0, lambda f=found: torch.stack(f).mean(0))
        )
        if paired is not None and "clouds" in damage.name:
            drawn: list[Tensor] = []

            def answer(d: Damage = damage, drawn: list[Tensor] = drawn) -> Tensor:
                shifted = [seed + 10_000 * len(drawn) for seed in range(args.n)]
                x = torch.cat(list(answers(paired, d.seen, shifted)))
                drawn.append(torch.where(d.known, d.x0, x.clamp(-1, 1)))
                return drawn[-1]

            lines.append(row("trained on pairs, one answer", x0, answer))
            for _ in range(args.answers - 1):
                answer()
            mean = row(
                f"trained on pairs, mean of {args.answers}", x0,
                lambda d=drawn: torch.stack(d).mean(0),
            )  # fmt: skip
            lines.append(mean)
    few = clouded(x0[: args.few], 0.3)
    print("methods", flush=True)
    lines += ["", f"## Methods, {few.name}, the first {args.few} images, one answer", "", *HEADER]
    lines.append(row("biharmonic", few.x0, lambda: biharmonic(few)))
    for method in METHODS:
        lines.append(row(method, few.x0, lambda m=method: restored(model, few, How(method=m), 0)))  # type: ignore[arg-type]
    head = [
        f"# Restoration: {args.name}",
        "",
        setting(about, f"{torch.get_num_threads()} threads", f"busy before: {about['busy_cores']}"),
        "",
        f"`{model.recipe.name}`, {model.images_seen:,} training images, on {args.n} test images; "
        "known pixels are kept. PSNR of the whole image; features are EfficientNet's, their "
        "distance to the true image's. "
        + (f"On pairs: {paired.images_seen:,} images." if paired is not None else ""),
    ]
    write_text(RESULTS / f"restoration_{args.name}.md", "\n".join([*head, *lines, ""]))


HEADER = ["| | PSNR, dB | features | s an image |", "|---|---:|---:|---:|"]


if __name__ == "__main__":
    main()
