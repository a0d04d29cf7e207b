"""Restoration of real images under clouds and lost pixels, against classical inpainting.

    python benchmarks/restoration.py --run RUN --data TEST.npy --name cifar-10 [--paired RUN]

TEST.npy holds images [n, H, W(, 3)], 8 bits. `--paired` is a run trained on pairs of clouded and
clear images (cloud_pairs.py), whose input it is then given. Rows are kept in a JSON file beside the
table as they come: interrupted, the same command goes on. Another model's rows are made anew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _damage import (
    Damage,
    answered,
    classical,
    clouded,
    linear,
    posterior_mean,
    restored,
    scattered,
    told_mask,
)
from _shared import machine, setting, write_text
from cloud_pairs import SOFTNESS
from torch import Tensor

from sfumato.metrics.efficientnet import EfficientNetFeatures, efficientnet_features
from sfumato.metrics.paired import psnr, ssim
from sfumato.parameterization import Spectral
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model
from sfumato.recipes.restoring import How
from sfumato.recipes.restoring.names import METHODS
from sfumato.recipes.run_config import RunConfig

RESULTS = Path(__file__).parent / "results"
HEADER = [
    "| | PSNR, dB | SSIM | features | s an image | error / spread |",
    "|---|---:|---:|---:|---:|---:|",
]
EXACT = 58.9
"""dB of an image that is true but for rounding to 8 bits; more counts as that."""


@dataclass
class Rows:
    """Numbers by table and row, kept in a file; those of other settings are refused."""

    path: Path
    settings: dict[str, Any]
    extractor: EfficientNetFeatures
    device: str
    tables: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    _known: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        if not self.path.is_file():
            return
        kept = json.loads(self.path.read_text("utf-8"))
        if kept["settings"] != self.settings:
            raise SystemExit(
                f"{self.path} holds rows of {kept['settings']}, and these would be of "
                f"{self.settings}: give another --name, or remove the file"
            )
        self.tables = kept["tables"]

    def missing(self, table: str, names: list[str], by: str) -> bool:
        """Whether one of the rows is not there, or was another model's."""
        here = self.tables.get(table, {})
        return any(here.get(name, {}).get("by") != by for name in names)

    def add(
        self, table: str, name: str, by: str, x: Tensor, truth: Tensor, each: float,
        var: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Measure images, and keep the row; `each` is the seconds an image took.

        `var`: of the answers that `x` is the mean of, which should be its squared error's mean.
        """
        far = (self._features(x) - self._true_features(truth)).norm(dim=1).mean()
        row = {
            "by": by,
            "psnr": float(psnr(x, truth).clamp(max=EXACT).mean()),
            "ssim": float(ssim(x, truth).mean()),
            "features": float(far),
            "seconds": each,
        }
        if var is not None:
            row["calibration"] = float(((x - truth).square().sum() / var.sum()).sqrt())
        self.tables.setdefault(table, {})[name] = row
        write_text(self.path, json.dumps({"settings": self.settings, "tables": self.tables}))
        print(f"{table}: {line(name, row)}", flush=True)

    def _features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [self.extractor(part.to(self.device)) for part in x.split(50)]
        return torch.cat(parts).cpu()

    def _true_features(self, truth: Tensor) -> Tensor:
        """Of the first images, which all tables share."""
        if len(self._known) < len(truth):
            self._known = self._features(truth)
        return self._known[: len(truth)]


def line(name: str, row: dict[str, Any]) -> str:
    numbers = [f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['features']:.2f}"]
    told = format(row["calibration"], ".2f") if "calibration" in row else ""
    return f"| {' | '.join([name, *numbers, format(row['seconds'], '.3f'), told])} |"


def drawn(
    rows: Rows, table: str, label: str, by: str, truth: Tensor, answers: int,
    draw: Callable[[int], Tensor],
) -> None:  # fmt: skip
    """Rows of one answer, and of the mean of two and of all; `draw` is told an answer's number."""
    names = {1: f"{label}, one answer"}
    names |= {n: f"{label}, mean of {n}" for n in (2, answers) if 1 < n <= answers}
    if not rows.missing(table, list(names.values()), by):
        return
    total, start = torch.zeros_like(truth), time.perf_counter()
    squares = torch.zeros_like(truth)
    for number in range(answers):
        answer = draw(number)
        total += answer
        squares += answer.square()
        if number == 0:
            each = (time.perf_counter() - start) / len(truth)
        if name := names.get(number + 1):
            mean = total / (number + 1)
            var = squares / (number + 1) - mean.square() if number + 1 == answers > 2 else None
            rows.add(table, name, by, mean, truth, (number + 1) * each, var)


def single(
    rows: Rows, table: str, label: str, by: str, truth: Tensor, make: Callable[[], Tensor]
) -> None:
    if not rows.missing(table, [label], by):
        return
    start = time.perf_counter()
    x = make()
    rows.add(table, label, by, x, truth, (time.perf_counter() - start) / len(truth))


def measure(
    rows: Rows, damage: Damage, model: Model, paired: Model | None, args: argparse.Namespace
) -> None:
    """The rows of one damage."""
    x0, table = damage.x0, damage.name
    for name, fill in classical().items():
        single(rows, table, name, "", x0, partial(fill, damage))
    spectrum = model.network.spectrum
    if isinstance(spectrum, Spectral):
        single(
            rows, table, "frequencies alone, no network", model.fingerprint, x0,
            lambda: linear(spectrum, damage),
        )  # fmt: skip
    usual = How().named(known=model.network.spectrum is not None)
    for steps in (args.steps, args.steps // 2):
        label = usual if steps == args.steps else f"{usual}, {steps} steps"
        drawn(
            rows, table, label, model.fingerprint, x0, args.answers,
            lambda answer, steps=steps: restored(model, damage, How(), answer, steps, args.batch),
        )  # fmt: skip
    if paired is not None and damage.name.startswith("clouds"):
        by = paired.fingerprint
        drawn(
            rows, table, "trained on pairs", by, x0, args.answers,
            lambda answer: answered(paired, damage, answer, args.steps, args.batch),
        )  # fmt: skip
        for mirror in (False, True) if paired.recipe.flip else (False,):
            label = "trained on pairs, predicted mean" + (", mirrored too" if mirror else "")
            single(
                rows, table, label, by, x0,
                lambda mirror=mirror: posterior_mean(paired, damage, args.batch, mirror=mirror),
            )  # fmt: skip


def by_method(rows: Rows, damage: Damage, model: Model, args: argparse.Namespace) -> str:
    """The rows of every method, one answer each; return the table's name."""
    table = f"Methods, {damage.name}, the first {len(damage.x0)} images, one answer"
    for name, fill in classical().items():
        single(rows, table, name, "", damage.x0, partial(fill, damage))
    for method in METHODS:
        if method == "spectral" and model.network.spectrum is None:
            continue
        how = How(method=method)  # type: ignore[arg-type]
        single(
            rows, table, method, model.fingerprint, damage.x0,
            lambda how=how: restored(model, damage, how, 0, args.steps, args.batch),
        )  # fmt: skip
    return table


def images(path: Path, count: int) -> Tensor:
    raw = np.array(np.load(path, mmap_mode="r")[:count])
    raw = raw[:, None] if raw.ndim == 3 else raw.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(raw)).float() / 127.5 - 1


def check_pairs(paired: Model, softness: float) -> str:
    """Return what to say of the clouds a model was trained with; exits for others than these."""
    data = Path(RunConfig.read(paired.run / "config.toml").data.data)
    record = data / "clouds.json"
    if not record.is_file():
        return f"under clouds that could not be checked, as {record} is not there"
    told = json.loads(record.read_text("utf-8"))
    if (told["softness"], told["shadow"]) != (softness, 0.0):
        raise SystemExit(
            f"{paired.run} was trained on clouds of softness {told['softness']} and shadow "
            f"{told['shadow']}, and these have {softness} and 0: make its pairs by cloud_pairs.py "
            "with the same --softness"
        )
    low, high = told["covers"]
    return f"under clouds of the same kind, of {low:.0%} to {high:.0%} cover"


def millions(model: Model) -> str:
    """How large a network is."""
    return f"{sum(p.numel() for p in model.network.parameters()) / 1e6:.2f} M parameters"


def head(
    args: argparse.Namespace, about: dict[str, Any], model: Model, paired: Model | None,
    pairs: str, thin: float,
) -> list[str]:  # fmt: skip
    where = f"{torch.get_num_threads()} threads"
    if args.device != "cpu":
        where += f", models on {torch.cuda.get_device_name()}"
    busy = f"busy before: {about['busy_cores']}"
    lines = [
        f"# Restoration: {args.name}",
        "",
        setting(about, where, busy),
        "",
        f"`{model.recipe.name}`, {millions(model)}, {model.images_seen:,} training images, "
        f"{args.steps} steps, on {args.n} test images. PSNR of the whole image, an exact one "
        f"counting as {EXACT} dB; features are EfficientNet's, their distance to the true "
        "image's. Known pixels are kept, in every row. Error over spread: the "
        "mean's root mean squared error over the answers' deviation, 1 where that tells it.",
    ]
    if paired is not None:
        lines += [
            "",
            f"Trained on pairs: `{paired.recipe.name}`, {millions(paired)}, "
            f"{paired.images_seen:,} training images {pairs}. It is given the clouded image and "
            f"{'the' if told_mask(paired) else 'no'} mask; the others are given the mask of all "
            "that is not the ground as it is and the image outside it. Clouds are thin at "
            f"their edges: through {thin:.0%} of the pixels in the mask some of the ground is "
            "seen, which only this model can use. Its predicted mean is one network call"
            + (", mirrored too a second one for the mirror image." if paired.recipe.flip else "."),
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--paired", type=Path)
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--few", type=int, default=50, help="images by every method; 0 is none")
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--softness", type=float, default=SOFTNESS, help="as the pairs'")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    classical()  # whatever is missing is said before anything is measured
    about = machine()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load(args.run, device=args.device)
    paired = load(args.paired, device=args.device) if args.paired else None
    pairs = check_pairs(paired, args.softness) if paired is not None else ""
    x0 = images(args.data, args.n)
    args.n = len(x0)
    settings = {
        "data": args.data.name, "n": args.n, "steps": args.steps, "softness": args.softness,
        "device": args.device,
    }  # fmt: skip
    rows = Rows(
        args.results / f"restoration_{args.name}.json",
        settings,
        efficientnet_features().to(torch.device(args.device)),
        args.device,
    )
    damages = [clouded(x0, cover, args.softness) for cover in (0.1, 0.3, 0.6)]
    for damage in [*damages, scattered(x0, 0.25)]:
        measure(rows, damage, model, paired, args)
    if args.few:
        by_method(rows, clouded(x0[: args.few], 0.3, args.softness), model, args)
    thin = sum(damage.thin for damage in damages) / len(damages)
    lines = head(args, about, model, paired, pairs, thin)
    for table, found in rows.tables.items():
        lines += ["", f"## {table}", "", *HEADER]
        lines += [line(name, row) for name, row in found.items()]
    where = args.results / f"restoration_{args.name}.md"
    write_text(where, "\n".join([*lines, ""]))
    print(where)


if __name__ == "__main__":
    main()
