"""`sfumato evaluate RUN --data TEST`, or `sfumato evaluate A B`: how good, and how sure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sfumato.cli.parse import OutPath, check_seeds, duration, parse
from sfumato.cli.sampler_options import SamplerOptions
from sfumato.errors import ConfigError
from sfumato.recipes.evaluation.settings import METRICS, Settings
from sfumato.recipes.run_config import DataConfig

if TYPE_CHECKING:
    from sfumato.recipes.model import Model

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
    """Draw only this class, and compare with real images of this class."""
    sampler: Annotated[SamplerOptions, tyro.conf.arg(name="")] = field(
        default_factory=SamplerOptions
    )
    """Sampler."""
    autoguidance: Annotated[str | None, tyro.conf.arg(metavar="RUN|CHECKPOINT")] = None
    """A weaker model for --guidance to lead away from, such as RUN/checkpoints/NUMBER."""
    classes: bool = False
    """Read labels of real images (and of A) from sub-folders, for --metrics classes."""
    size: tuple[int, int] | None = None
    """Height and width images are brought to; a run's own if not given, as all that follows."""
    fit: Literal["crop", "stretch", "strict"] | None = None
    """How images of another size become that size."""
    transparency: Literal["drop", "keep"] | None = None
    """What happens to transparency in image files (--alpha is the sampler's)."""
    channels: int | None = None
    """Channels expected of the images."""
    value_range: tuple[float, float] | None = None
    """Raw values that mean black and white, for float arrays."""
    layout: Literal["NHWC", "NCHW"] | None = None
    """Axis order of 4-D arrays where it cannot be told from the shape."""
    weights: Literal["ema", "network"] | None = None
    """The moving average of the weights (ema, if not given), or the raw ones."""
    out: OutPath = None
    """Folder of the results; RUN/evaluation, or evaluations/A-vs-B."""
    cache: Path | None = None
    """Folder of drawn images and features, to share between runs; OUT/cache if not given."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""

    def opening(self, default: DataConfig) -> DataConfig:
        """Return how images are opened, what was given in place of the default."""
        given = {
            "size": self.size,
            "fit": self.fit,
            "alpha": self.transparency,
            "channels": self.channels,
            "value_range": self.value_range,
            "layout": self.layout,
        }
        changed = {name: value for name, value in given.items() if value is not None}
        return replace(default, classes=default.classes or self.classes, **changed)


def run(arguments: Sequence[str]) -> int:
    """Evaluate, print the table, and say where the JSON and the page are."""
    options = parse(
        EvaluateOptions,
        arguments,
        "evaluate",
        f"Measure the images of a run, or of one set against another. Metrics: {_LISTED}. "
        "Interrupted, the same command goes on where it stopped; torchrun shares the work.",
    )
    asked_for = options.settings
    check_seeds(asked_for.seed, asked_for.n * asked_for.repeats)
    paths = options.paths
    if len(paths) not in (1, 2):
        raise ConfigError("give a run, or two sets of images: sfumato evaluate RUN --data TEST")
    drawing = len(paths) == 1 and _is_run(paths[0])
    if not drawing:
        _check_stored(options, arguments)
    from sfumato.files import usable
    from sfumato.recipes.environment import pick_device, set_threads
    from sfumato.recipes.evaluation.job import carry_out
    from sfumato.recipes.evaluation.task import Places, of_run, of_sets

    set_threads(options.threads)
    places = Places(
        options.out and usable(options.out), options.cache, options.stats, options.save_stats
    )
    device = pick_device(options.device)
    asked = _given(arguments, "--metrics")
    if drawing:
        task = of_run(
            paths[0] if options.autoguidance is None else _autoguided(options, device),
            options.settings,
            places,
            test=options.data,
            training=options.training,
            label=options.class_,
            sampler=options.sampler.over,
            opening=options.opening,
            weights=options.weights or "ema",
            device=device,
            asked=asked,
        )
    else:
        task = of_sets(
            paths[0], paths[1] if len(paths) == 2 else "", options.opening(DataConfig()),
            options.settings, places,
            training=options.training, device=device, asked=asked,
        )  # fmt: skip
    finished = carry_out(task, print)
    if finished is None:
        return 0
    outcome, written = finished
    print()
    print(outcome.text())
    print(f"\nevaluated in {duration(outcome.seconds)}")
    for name, path in written.items():
        print(f"{name}: {path}")
    if outcome.evaluation.failed:
        reasons = "; ".join(outcome.evaluation.left_out)
        print(f"sfumato evaluate: not all metrics could be had: {reasons}", file=sys.stderr)
        return 1
    return 0


def _autoguided(options: EvaluateOptions, device: str) -> Model:
    from sfumato.processes import own_device
    from sfumato.recipes.autoguidance import load_autoguided
    from sfumato.recipes.loading import load

    assert options.autoguidance is not None
    model = load(options.paths[0], weights=options.weights or "ema", device=own_device(device))
    return load_autoguided(model, options.autoguidance, options.sampler.guidance)


def _is_run(path: str) -> bool:
    folder = Path(path)
    names = ("config.toml", "checkpoint.toml", "checkpoints")
    return not folder.exists() or any((folder / name).exists() for name in names)


def _check_stored(options: EvaluateOptions, arguments: Sequence[str]) -> None:
    """ConfigError for options that only drawing from a run has a use for, or no second set."""
    first = options.paths[0]
    if len(options.paths) == 2 and Path(first).exists() and _is_run(first):
        raise ConfigError(
            f"{first} is a run, which is measured against --data: "
            f"sfumato evaluate {quote(first)} --data {quote(options.paths[1])}"
        )
    if len(options.paths) == 1 and options.stats is None:
        raise ConfigError(
            f"{first} is no run: if it is a set of images, say what to judge it by: "
            f"sfumato evaluate {quote(first)} REFERENCE, or --stats FILE"
        )
    drawing = {
        "-n": _given(arguments, "-n", "--n"),
        "--data": bool(options.data),
        "--class": options.class_ is not None,
        "--weights": options.weights is not None,
        "--autoguidance": options.autoguidance is not None,
        "the sampler's options": options.sampler != SamplerOptions(),
    }
    useless = [name for name, given in drawing.items() if given]
    if useless:
        raise ConfigError(
            f"two sets of images are measured as they are, without {', '.join(useless)}: "
            "these are for a run (B is the reference; --training names training images)"
        )


def _given(arguments: Sequence[str], *names: str) -> bool:
    return any(word.partition("=")[0] in names for word in arguments)
