"""Guidance by class and by a weaker checkpoint: Fréchet distance, and agreement with the class.

    python benchmarks/guidance.py --run RUN --name cifar-10 [-n 2000] [--device cuda]

RUN was trained with --classes --network.label-dropout 0.1, and keeps an early checkpoint (--keep);
its own data must be where they were, test images (--test) among them. What is measured already is
kept in a JSON file beside the table, and not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared import FrechetScore, Uint8, machine, setting, write_text

from sfumato.data.images import Images
from sfumato.data.pixels import to_model
from sfumato.metrics.classifier import Classifier, train_classifier
from sfumato.metrics.thinning import spread
from sfumato.recipes.autoguidance import autoguided
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model
from sfumato.recipes.run_config import RunConfig
from sfumato.recipes.run_data import open_data

RESULTS = Path(__file__).parent / "results"
SCALES = (1.5, 2.0, 3.0)
MOST = 10_000


@dataclass(frozen=True)
class Setting:
    """How images are guided: "none", "class" or "weaker", how much, and between which levels."""

    by: str
    scale: float = 1.0
    low: float = 0.0
    high: float = float("inf")

    @property
    def name(self) -> str:
        if self.by == "none":
            return "no guidance"
        where = "" if self.high == float("inf") else f", {self.low:g} < sigma <= {self.high:g}"
        return f"{'class' if self.by == 'class' else 'autoguidance'}, {self.scale:g}{where}"


def settings(scales: list[float], interval: tuple[float, float]) -> list[Setting]:
    guided = [scale for scale in scales if scale != 1]
    return [
        Setting("none"),
        *(Setting("class", scale) for scale in guided),
        *(Setting("class", scale, *interval) for scale in guided),
        *(Setting("weaker", scale) for scale in guided),
        *(Setting("weaker", scale, *interval) for scale in guided),
    ]


def raw_of(images: Images, count: int) -> tuple[Uint8, torch.Tensor]:
    """A fair pick: 8-bit images [n, C, H, W] and labels [n]."""
    if images.labels is None or images.format.dtype != "uint8":
        raise SystemExit(f"{images.source}: expected 8-bit images with classes")
    index = spread(len(images), min(count, len(images)))
    parts = [images.read(index[i : i + 500]) for i in range(0, len(index), 500)]
    return np.concatenate(parts), torch.from_numpy(images.labels[index])


def drawn(model: Model, weaker: Model, how: Setting, count: int, seed: int) -> Uint8:
    """Images [n, C, H, W], one a seed, of the class that the seed draws."""
    led = autoguided(model, weaker) if how.by == "weaker" else model
    sampler = replace(
        model.recipe.sampler, guidance=how.scale, guidance_low=how.low, guidance_high=how.high
    )
    return np.concatenate(list(led.samples(range(seed, seed + count), sampler=sampler)))


def row(
    images: Uint8, asked: torch.Tensor, score: FrechetScore, judge: Classifier, model: Model
) -> dict[str, Any]:
    chosen = judge.probabilities(to_model(images, model.format)).argmax(1)
    return {
        "frechet": score(images.transpose(0, 2, 3, 1)),
        "agreement": float((chosen == asked).double().mean()),
    }


def early(run: Path, model: Model, told: Path | None) -> Path:
    """The checkpoint told, else the first that the run keeps."""
    if told is not None:
        return told
    first = min(path for path in (run / "checkpoints").iterdir() if path.is_dir())
    if model.path is not None and first.samefile(model.path):
        raise SystemExit(f"{run} keeps one checkpoint: train with --keep, or name a --weaker run")
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--weaker", type=Path, help="a run or checkpoint; RUN's first if not given")
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scales", type=float, nargs="+", default=list(SCALES))
    parser.add_argument("--interval", type=float, nargs=2, default=(0.3, 5.0))
    parser.add_argument("--reference-n", type=int, default=MOST)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    about = machine()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load(args.run, device=args.device)
    if not model.classes or not model.recipe.network.label_dropout:
        raise SystemExit(f"{args.run}: train with --classes --network.label-dropout 0.1")
    weaker = load(early(args.run, model, args.weaker), device=args.device)
    data = RunConfig.read(args.run / "config.toml").data
    known, labels = raw_of(open_data(data, data.data), MOST)
    test, asked_of_test = raw_of(open_data(data, data.test), args.reference_n)
    judge = train_classifier(torch.from_numpy(known), labels, model.classes, epochs=12)
    score = FrechetScore(test.transpose(0, 2, 3, 1))

    path = args.results / f"guidance_{args.name}.json"
    of = {
        "model": model.fingerprint, "weaker": weaker.fingerprint, "n": args.n, "seed": args.seed,
        "reference": len(test),
    }  # fmt: skip
    rows: dict[str, dict[str, Any]] = {}
    if path.is_file():
        kept = json.loads(path.read_text("utf-8"))
        if kept["of"] != of:
            raise SystemExit(f"{path} holds rows of {kept['of']}, and these would be of {of}")
        rows = kept["rows"]

    def keep(name: str, found: dict[str, Any]) -> None:
        rows[name] = found
        write_text(path, json.dumps({"of": of, "rows": rows}))
        print(line(name, found), flush=True)

    if REAL not in rows:
        real = row(known[: args.n], labels[: args.n], score, judge, model)
        right = judge.probabilities(to_model(test, model.format)).argmax(1) == asked_of_test
        keep(REAL, {**real, "agreement": float(right.double().mean())})
    asked = torch.tensor(model.classes_for(range(args.seed, args.seed + args.n), None))
    for how in settings(args.scales, tuple(args.interval)):
        if how.name in rows:
            continue
        start = time.perf_counter()
        images = drawn(model, weaker, how, args.n, args.seed)
        each = (time.perf_counter() - start) / args.n
        keep(how.name, {**row(images, asked, score, judge, model), "seconds": each})

    where = args.device if args.device == "cpu" else torch.cuda.get_device_name()
    lines = [
        f"# Guidance: {args.name}",
        "",
        setting(about, f"{torch.get_num_threads()} threads", f"model on {where}"),
        "",
        f"`{model.recipe.name}`, {model.images_seen:,} training images; autoguidance by its "
        f"checkpoint of {weaker.images_seen:,}. {args.n:,} images of the same seeds and classes in "
        f"every row. Fréchet distance to {len(test):,} test images in {score.extractor.name}; "
        f"agreement: the share that a classifier of {len(known):,} training images takes for the "
        "class asked for. Real images: as many training images, and the classifier's accuracy on "
        "the test images.",
        "",
        *HEADER,
        *(line(name, found) for name, found in rows.items()),
        "",
    ]
    write_text(path.with_suffix(".md"), "\n".join(lines))
    print(path.with_suffix(".md"))


REAL = "real images"
HEADER = ["| | Fréchet distance | agreement | s an image |", "|---|---:|---:|---:|"]


def line(name: str, found: dict[str, Any]) -> str:
    each = f"{found['seconds']:.3f}" if "seconds" in found else ""
    return f"| {name} | {found['frechet']:.1f} | {100 * found['agreement']:.1f} % | {each} |"


if __name__ == "__main__":
    main()
