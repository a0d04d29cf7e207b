"""What a whole evaluation is: what is compared with what, and where results go."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from sfumato.errors import ConfigError
from sfumato.metrics.statistics_file import read_statistics
from sfumato.processes import own_device
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.evaluation.opening import (
    Opened,
    config_of,
    gone,
    of_class,
    open_set,
    unlike_training,
)
from sfumato.recipes.evaluation.plan import Reference
from sfumato.recipes.evaluation.sets import ImageSet, Stored
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model
from sfumato.recipes.run_config import DataConfig
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.recipes.tuned import load_tuned, samplers

Choose = Callable[[SamplerConfig, Mapping[int, SamplerConfig]], SamplerConfig]
"""The run's own sampler, and the tuned ones by their calls, to the one that is meant."""


@dataclass(frozen=True)
class Places:
    """Where things are read from and go; None is the default of the task."""

    out: Path | None = None
    cache: Path | None = None
    statistics: Path | None = None
    """Reference statistics to read."""
    save_statistics: Path | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """Sets of images and what to do with them."""

    title: str
    samples: Sequence[ImageSet]
    """One a repeat."""
    references: Sequence[Reference]
    training: ImageSet | None
    held_out: ImageSet | None
    settings: Settings
    places: Places
    cache: Cache
    out: Path
    device: str
    asked: bool
    """Whether the user named the metrics."""
    run: Path | None = None
    """The run whose report gets a section, if any."""
    notes: Sequence[str] = ()
    """What the reader should know of the sets."""

    def real_images(self) -> ImageSet:
        """The first reference that is images; ConfigError where there are statistics alone."""
        for reference in self.references:
            if reference.images is not None:
                return reference.images
        raise ConfigError("this needs real images to compare with, not their statistics: --data")


def of_run(
    which: str | Model,
    settings: Settings,
    places: Places,
    *,
    test: str = "",
    training: str = "",
    label: str | None = None,
    sampler: Choose = lambda default, tuned: default,
    opening: Callable[[DataConfig], DataConfig] = lambda default: default,
    weights: str = "ema",
    device: str = "cpu",
    asked: bool = True,
) -> Task:
    """Images drawn from a run against its test and training images.

    `which` is its folder, or what was loaded from it (then with its own weights, on its device).
    `test` and `training` name data in place of the run's own; `sampler` chooses from the run's
    sampler and those tuned for a number of calls, `opening` how its images are opened. With `label`
    a class is drawn and compared with the images of that class, where they have labels. Raises
    ConfigError where there is nothing to compare with, or the model needs images to start from.
    """
    device = own_device(device)
    model = which if isinstance(which, Model) else load(which, weights=weights, device=device)
    run = model.run
    assert model.path is not None
    config = config_of(run)
    if model.condition is not None:
        pairs = (config.data.test if config else "") or "PAIRS"
        raise ConfigError(
            f"this model needs images to start from ({model.condition.describe()}): use "
            "sfumato restore RUN IMAGE; to measure what it makes of test pairs: "
            f"sfumato restore {quote(str(run))} {quote(f'{pairs}/input')} -o RESTORED; "
            f"sfumato evaluate RESTORED {quote(f'{pairs}/target')} --metrics fd psnr"
        )
    how = opening(config.data if config else DataConfig(size=model.format.shape[1:]))
    asked_of = model.classes_for([0], label)
    if label is not None:
        how = replace(how, classes=True)
    known = [
        ("test images", test, config.data.test if config else "", "--data"),
        ("training images", training, config.data.data if config else "", "--training"),
    ]
    opened = Opened()
    for name, given, own, option in known:
        missing = "" if given or not own else gone(own, name, option)
        if missing:
            opened.notes.append(missing)
        elif given or own:
            opened.add(name, open_set(how, given or own, name), settings.reference_n)
    if not opened.sets and places.statistics is None:
        reasons = "; ".join(opened.notes) or "give --data IMAGES or --stats FILE"
        raise ConfigError(f"there is nothing to compare with: {reasons}")
    learned = opened.images.get("training images")
    if learned is not None and (unlike := unlike_training(model, learned)):
        opened.notes.append(unlike)
    out = places.out or run / "evaluation"
    cache = Cache(places.cache or out / "cache")
    tuned, notes = load_tuned(model)
    opened.notes += notes
    chosen = sampler(model.recipe.sampler, samplers(tuned))
    samples = [
        Drawn(
            model,
            settings.n,
            cache,
            seed=settings.seed + settings.n * repeat,
            label=label,
            sampler=chosen,
        )
        for repeat in range(settings.repeats)
    ]
    judges = opened
    if label is not None and asked_of is not None:
        judges = of_class(opened, model.classes[asked_of[0]], settings.reference_n)
        if places.statistics is not None:
            judges.notes.append(
                f"{places.statistics.name} is compared with as it is, of whatever classes it was "
                "made: --class chooses only among images."
            )
    return Task(
        f"{run.name}: {settings.n:,} samples of {model.path.name}",
        samples,
        [*_judging(opened, judges, settings.n), *_stored(places)],
        opened.sets.get("training images"),
        opened.sets.get("test images"),
        settings,
        places,
        cache,
        out,
        device,
        asked,
        run,
        judges.notes,
    )


def of_sets(
    a: str,
    b: str,
    opening: DataConfig,
    settings: Settings,
    places: Places,
    *,
    training: str = "",
    device: str = "cpu",
    asked: bool = True,
) -> Task:
    """One set of images judged by another, both opened as `opening` says.

    `b` may be "" where there are statistics to judge by.
    """
    if settings.repeats > 1:
        raise ConfigError("--repeats draws images anew, which stored images cannot: leave it out")
    # Pairs must stay pairs: then nothing is thinned.
    most = 0 if "psnr" in settings.metrics else settings.reference_n
    samples = Stored(open_set(opening, a, f"images {a}"), "samples")
    reference = Stored(open_set(opening, b, f"images {b}"), "reference", most) if b else None
    learned = None
    if training:
        learned = Stored(
            open_set(opening, training, "training images"), "training images", settings.reference_n
        )
    judge = b or str(places.statistics)
    names = (re.sub(r"[^\w.-]+", "-", Path(path).name) or "set" for path in (a, judge))
    out = places.out or Path("evaluations") / "-vs-".join(names)
    return Task(
        f"{a} against {judge}",
        [samples],
        [*([Reference("reference", reference)] if reference else []), *_stored(places)],
        learned,
        reference,
        settings,
        places,
        Cache(places.cache or out / "cache"),
        out,
        own_device(device),
        asked,
    )


def _judging(opened: Opened, judges: Opened, n: int) -> list[Reference]:
    """The references, and the training images beside the test images where they are alike."""
    references = [Reference(images.name, images) for images in judges.sets.values()]
    learned = judges.images.get("training images")
    alike = len({judges.images[name] is opened.images[name] for name in judges.images}) == 1
    if "test images" in judges.sets and learned is not None and alike and len(learned) >= n:
        real = Stored(learned, "training images, as many as samples", n)
        references[0] = replace(references[0], real=real)
    return references


def _stored(places: Places) -> list[Reference]:
    if places.statistics is None:
        return []
    return [Reference(places.statistics.name, statistics=read_statistics(places.statistics))]
