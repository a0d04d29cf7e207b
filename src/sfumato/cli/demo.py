"""`sfumato demo`: the main job on real images that come with the package, in minutes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sfumato.cli.parse import OutPath, duration, free_folder, parse
from sfumato.errors import ConfigError
from sfumato.recipes.presets import recipe
from sfumato.recipes.run_config import Bookkeeping, DataConfig, RunConfig


@dataclass(frozen=True)
class DemoOptions:
    """Options of `sfumato demo`."""

    minutes: float = 5.3
    """Minutes of training; sampling and measuring take about two more on 2 CPU cores."""
    samples: int = 500
    """Images drawn and measured for the report."""
    out: OutPath = None
    """The run's folder; runs/demo (runs/demo-2, ...) if not given."""
    seed: int = 0
    """Seed of the whole run."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""


def run(arguments: Sequence[str]) -> int:
    """Train on the built-in Fashion-MNIST images, draw new ones, and print the report's path."""
    options = parse(
        DemoOptions,
        arguments,
        "demo",
        "Train on 8,000 real images of garments (Fashion-MNIST, built in), draw new ones by class, "
        "compare them with 2,000 images held out, and write one self-contained report.html.",
    )
    if options.samples < 2 or options.minutes <= 0:
        raise ConfigError("the demo needs --samples of at least 2 and --minutes above 0")
    from sfumato.cli.train import train

    start = time.perf_counter()
    tiny = recipe("edm-tiny")
    preset = replace(
        tiny,
        seed=options.seed,
        # So few minutes suit a smaller network; guidance then picks what it is sure of.
        network=replace(tiny.network, multipliers=(1, 2, 4), label_dropout=0.1),
        sampler=replace(tiny.sampler, steps=10, guidance=5.0),
    )
    config = RunConfig(
        preset,
        DataConfig(data="fashion-mnist:train", test="fashion-mnist:test", classes=True),
        Bookkeeping(
            minutes=options.minutes, report_samples=options.samples, threads=options.threads
        ),
    )
    folder = options.out or free_folder(Path("runs") / "demo")
    status = train(config, folder, resume=False)
    if status == 0:
        print(f"the demo took {duration(time.perf_counter() - start)}; open this in a browser:")
        print((folder / "report.html").resolve())
    return status
