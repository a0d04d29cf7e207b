"""`sfumato evaluate RUN --data TEST`, or `sfumato evaluate A B`: how good, and how sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sfumato.cli.parse import duration, parse
from sfumato.cli.sampler_options import SamplerOptions
from sfumato.errors import ConfigError
from sfumato.recipes.evaluation.settings import METRICS, Settings
from sfumato.recipes.run_config import DataConfig

_LISTED = "; ".join(f"{name}: {text}" for name, text in METRICS.items())


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `sfumato evaluate`."""

    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN | A B")]
    """A run (or one of its checkpoints) to draw from; or two sets of images, A judged by B."""
    data: str = ""
    """Images the model was not trained on; the run's own test images if not given."""
    training: str = ""
    """Training images, for a second column; the run's own if not given."""
    stats: Path | None = None
    """Reference statistics (.npz with mu and sigma), for one more column of fd or fid."""
    save_stats: Path | None = None
    """Write the reference's feature statistics there, readable by other programs too."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    """Measuring."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Draw only this class."""
    sampler: Annotated[SamplerOptions, tyro.conf.arg(name="")] = field(
        default_factory=SamplerOptions
    )
    """Sampler."""
    classes: bool = False
    """Read labels of A and B from their sub-folders (for --metrics classes)."""
    size: tuple[int, int] | None = None
    """Height and width A and B are brought to."""
    channels: int | None = None
    """Channels expected of A and B."""
    value_range: tuple[float, float] | None = None
    """Raw values that mean black and white, for float arrays."""
    weights: Literal["ema", "network"] = "ema"
    """The moving average of the weights, or the raw ones."""
    out: Path | None = None
    """Folder of the results; RUN/evaluation, or evaluations/A-vs-B."""
    cache: Path | None = None
    """Folder of drawn images and features, to share between runs; OUT/cache if not given."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""


def run(arguments: Sequence[str]) -> int:
    """Evaluate, print the table, and say where the JSON and the page are."""
    options = parse(
        EvaluateOptions,
        arguments,
        "evaluate",
        f"Measure the images of a run, or of one set against another. Metrics: {_LISTED}. "
        "Interrupted, the same command goes on where it stopped; torchrun shares the work.",
    )
    paths = options.paths
    if len(paths) not in (1, 2):
        raise ConfigError("give a run, or two sets of images: sfumato evaluate RUN --data TEST")
    from sfumato.recipes.environment import pick_device, set_threads
    from sfumato.recipes.evaluation import job

    set_threads(options.threads)
    places = job.Places(options.out, options.cache, options.stats, options.save_stats)
    device = pick_device(options.device)
    asked = "--metrics" in arguments
    if len(paths) == 1:
        task = job.of_run(
            paths[0],
            options.settings,
            places,
            test=options.data,
            training=options.training,
            label=options.class_,
            sampler=options.sampler.over,
            weights=options.weights,
            device=device,
            asked=asked,
        )
    else:
        opening = DataConfig(
            classes=options.classes,
            size=options.size,
            channels=options.channels,
            value_range=options.value_range,
        )
        task = job.of_sets(
            paths[0], paths[1], opening, options.settings, places, training=options.training,
            device=device, asked=asked,
        )  # fmt: skip
    finished = job.carry_out(task, print)
    if finished is None:
        return 0
    outcome, written = finished
    print()
    print(outcome.text())
    print(f"\nevaluated in {duration(outcome.seconds)}")
    for name, path in written.items():
        print(f"{name}: {path}")
    return 0
