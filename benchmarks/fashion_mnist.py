"""Fashion-MNIST against diffusers: the same machine, training time, sample count and features.

The peer follows diffusers' examples/unconditional_image_generation/train_unconditional.py with its
defaults, on a UNet2DModel of about a million parameters; ours is `sfumato train edm-tiny`. Each
part is a process of its own, so that neither memory nor threads leak from one into the next:

    python benchmarks/fashion_mnist.py all --data FOLDER --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from _diffusers import NETWORKS, Peer, sample, train
from _ours import train_and_sample
from _shared import FrechetScore, machine, read_idx_images, write_result, write_text

TRAIN, TEST = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"
TABLE = Path(__file__).parent / "results" / "fashion_mnist.md"


def run_peer(args: argparse.Namespace) -> None:
    """Train diffusers' UNet2DModel as its example does, and sample it with its DDIM pipeline."""
    import torch

    peer = _peer_of(args)
    record: dict[str, Any] = {"label": f"diffusers UNet2DModel {peer.channels}", **machine()}
    print(f"{args.name}: {peer}, {torch.get_num_threads()} threads")
    trained = train(peer, read_idx_images(args.data / TRAIN), args.minutes, args.seed)
    samples, seconds = sample(trained, args.n, args.sample_batch, args.seed)
    record |= {
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "arithmetic": trained.arithmetic,
        "threads": torch.get_num_threads(),
        "steps": trained.steps,
        "images": trained.images,
        "training_seconds": trained.seconds,
        "images_per_second": trained.images / trained.seconds,
        "sampler": "DDIM 50, eta 0",
        "network_calls": 50,
        "seconds_per_1000": 1000 * seconds / args.n,
        "config": asdict(peer) | {"seed": args.seed, "sample_batch": args.sample_batch},
    }
    write_result(args.out, args.name, samples, record)


def _peer_of(args: argparse.Namespace) -> Peer:
    peer = replace(NETWORKS[args.network], tuned=args.tuned)
    options = ("batch_size", "learning_rate", "warmup_steps")
    given = {key: getattr(args, key) for key in options if getattr(args, key) is not None}
    return replace(peer, **given)


def run_ours(args: argparse.Namespace) -> None:
    """Train and sample through the command line, as a user would, and read its own records."""
    samples, record = train_and_sample(
        args.recipe, args.data / TRAIN, args.out, args.name, args.minutes, args.n
    )
    write_result(args.out, args.name, samples, record)


def run_score(args: argparse.Namespace) -> None:
    """Distance of every OUT/*.npz to the test images, and of as many training images to them."""
    reference = read_idx_images(args.data / TEST)
    score = FrechetScore(reference)
    sets = {path.stem: np.load(path)["samples"] for path in sorted(args.out.glob("*.npz"))}
    sizes = {len(images) for images in sets.values()}
    if len(sizes) != 1:
        raise SystemExit(f"{args.out}: expected sets of one size, found {sorted(sizes)} images")
    n = sizes.pop()
    training = read_idx_images(args.data / TRAIN)
    real = training[np.random.default_rng(0).choice(len(training), n, replace=False)]
    distances = {"real": score(real)}
    for name, images in sets.items():
        distances[name] = score(images)
        print(f"{name}: {distances[name]:.1f} (real against real {distances['real']:.1f})")
    extractor = score.extractor
    record = {
        "n": n,
        "reference": len(reference),
        "features": extractor.name,
        "weights": extractor.fingerprint,
    }
    write_text(
        args.out / "scores.json", json.dumps(record | {"distances": distances}, indent=2) + "\n"
    )


def run_table(args: argparse.Namespace) -> None:
    scores = json.loads((args.out / "scores.json").read_text())
    distances = scores["distances"]
    real = distances.pop("real")
    records = {name: json.loads((args.out / f"{name}.json").read_text()) for name in distances}
    text = "\n".join(_table(scores, real, distances, records)) + "\n"
    write_text(args.table, text)
    print(text)
    print(f"table: {args.table}")


def _table(
    scores: dict[str, Any],
    real: float,
    distances: dict[str, float],
    records: dict[str, dict[str, Any]],
) -> Iterator[str]:
    first = next(iter(records.values()))
    minutes = sorted({round(r["training_seconds"] / 60, 1) for r in records.values()})
    yield "# Fashion-MNIST against diffusers\n"
    yield (
        f"{first['date']}; {first['processor']}, {first['cores']} cores; busy before each part: "
        f"{', '.join(str(r['busy_cores']) for r in records.values())}."
    )
    versions = {k: v for r in records.values() for k, v in r["versions"].items()}
    yield f"{', '.join(f'{name} {number}' for name, number in versions.items())}.\n"
    yield (
        f"Trained {' / '.join(map(str, minutes))} minutes each on the 60,000 training images, "
        f"{scores['n']:,} samples each. Fréchet distance to the {scores['reference']:,} test "
        f"images in {scores['features']} (weights {scores['weights']}); as many training images "
        f"are at {real:.1f} from them, and the excess is what is above that.\n"
    )
    yield (
        "| | parameters | arithmetic | training images/s | images seen | sampler (calls) | "
        "s per 1,000 samples | Fréchet distance | excess over real |"
    )
    yield "|---|---:|---|---:|---:|---|---:|---:|---:|"
    for name, r in records.items():
        yield (
            f"| {name}: {r['label']} | {r['parameters']:,} | {r['arithmetic']} | "
            f"{r['images_per_second']:.1f} | {r['images']:,} | "
            f"{r['sampler']} ({r['network_calls']}) | {r['seconds_per_1000']:.0f} | "
            f"{distances[name]:.1f} | {distances[name] - real:.1f} |"
        )
    for name, r in records.items():
        if "command_seconds" in r:
            yield (
                f"\n{name}: {r['training_seconds']:.0f} s of training by its own count, "
                f"{r['command_seconds']:.0f} s for the command (start-up, previews, saving)."
            )
    peers = {name: distances[name] - real for name in records if name.startswith("peer")}
    ours = {name: distances[name] - real for name in records if name.startswith("ours")}
    if peers and ours:
        best_peer, best_ours = min(peers, key=peers.__getitem__), min(ours, key=ours.__getitem__)
        ratio = ours[best_ours] / peers[best_peer]
        yield f"\nExcess of {best_ours} over that of the best peer ({best_peer}): **{ratio:.3f}**."


def run_all(args: argparse.Namespace) -> None:
    """Every part, one after the other, each in its own process."""
    common = ["--data", str(args.data), "--out", str(args.out)]
    size = ["--minutes", str(args.minutes), "-n", str(args.n)]
    _part("ours", *common, *size)
    for network in NETWORKS:
        _part("peer", *common, *size, "--network", network, "--name", network)
    _part("score", *common)
    _part("table", "--out", str(args.out), "--table", str(args.table))


def _part(*arguments: str) -> None:
    print(f"--- {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, __file__, *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(required=True)

    def verb(name: str, run: Any, *, data: bool = True, trains: bool = False) -> Any:
        sub = verbs.add_parser(name, description=run.__doc__)
        sub.set_defaults(run=run)
        sub.add_argument("--out", type=Path, required=True, help="folder of results")
        if data:
            sub.add_argument("--data", type=Path, required=True, help="folder of the IDX files")
        if trains:
            sub.add_argument("--minutes", type=float, default=10.0, help="of training")
            sub.add_argument("-n", type=int, default=2000, help="samples")
        return sub

    peer = verb("peer", run_peer, trains=True)
    peer.add_argument("--name", default="peer")
    peer.add_argument("--network", choices=NETWORKS, default="peer-narrow")
    peer.add_argument("--tuned", action="store_true", help="keep the fastest arithmetic and layout")
    peer.add_argument("--batch-size", type=int)
    peer.add_argument("--learning-rate", type=float)
    peer.add_argument("--warmup-steps", type=int)
    peer.add_argument("--sample-batch", type=int, default=250)
    peer.add_argument("--seed", type=int, default=0)
    ours = verb("ours", run_ours, trains=True)
    ours.add_argument("--name", default="ours")
    ours.add_argument("--recipe", default="edm-tiny")
    verb("score", run_score)
    table = verb("table", run_table, data=False)
    everything = verb("all", run_all, trains=True)
    for sub in (table, everything):
        sub.add_argument("--table", type=Path, default=TABLE, help="markdown file to write")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
