"""`sfumato bench [RECIPE or RUN]`: this machine's ceilings, what is reached, what to change."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sfumato.cli.parse import duration, parse


@dataclass(frozen=True)
class BenchOptions:
    """Options of `sfumato bench`."""

    subject: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE|RUN")] = "edm-tiny"
    """A recipe's name, or a run's folder."""
    batch: int = 0
    """Images of a network call; 0: the recipe's, or as many of them as fit --seconds."""
    size: tuple[int, int] | None = None
    """Height and width of a recipe's images, 32 x 32 if not given; a run has its own."""
    channels: int | None = None
    """Channels of a recipe's images, 3 if not given; a run has its own."""
    data: str = ""
    """Images to train on, to see whether loading them keeps up; random ones if not given."""
    fit: Literal["crop", "stretch", "strict"] = "crop"
    """How images of another size become that size."""
    seconds: float = 30.0
    """About how long to measure, all together; large networks take longer."""
    json: Path | None = None
    """Write everything measured there, as JSON."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""


def run(arguments: Sequence[str]) -> int:
    """Measure, print the tables and the advice."""
    options = parse(
        BenchOptions,
        arguments,
        "bench",
        "Measure what this machine can do at best (matrix products, convolutions, copies), how "
        "much of that a recipe's network reaches in sampling and training, where the time goes, "
        "and what to change.",
    )
    # Read when torch is loaded: its profiler would report on itself in between.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import time

    from sfumato.data.sources import open_images
    from sfumato.errors import ConfigError
    from sfumato.files import usable, write_json
    from sfumato.recipes.bench.measure import Settings, measure
    from sfumato.recipes.bench.subject import Subject
    from sfumato.recipes.bench.words import in_lines
    from sfumato.recipes.environment import pick_device, set_threads

    subject = Subject.of(options.subject, options.size, options.channels)
    settings = Settings(options.batch, options.seconds, pick_device(options.device))
    set_threads(options.threads)
    images = None
    if options.data:
        channels, height, width = subject.shape
        images = open_images(options.data, size=(height, width), fit=options.fit, channels=channels)
    if options.json is not None:
        if options.json.is_dir():
            raise ConfigError(f"--json: {options.json} is a folder; give a file")
        usable(options.json.parent, "--json")
    start = time.perf_counter()
    print(f"measuring {subject.name} for about {duration(options.seconds)}", flush=True)

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    result = measure(subject, settings, images, say)
    print()
    print("\n".join(in_lines(result)))
    print(f"\nmeasured in {duration(time.perf_counter() - start)}")
    if options.json is not None:
        write_json(options.json, result.to_json())
        print(f"everything as JSON: {options.json}")
    return 0
