"""The report of a run: samples are drawn and measured, and everything is put on one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sfumato.data.images import Images, Subset
from sfumato.data.loader import one_pass
from sfumato.data.pixels import to_model
from sfumato.errors import MissingExtraError
from sfumato.metrics.classifier import Classifier, train_classifier
from sfumato.metrics.efficientnet import efficientnet_features
from sfumato.metrics.features import FeatureExtractor, extract
from sfumato.metrics.frechet import frechet_distance
from sfumato.metrics.memorisation import MemorisationTest, memorisation_test, nearest
from sfumato.randomness import noise_for
from sfumato.recipes import run_log
from sfumato.recipes.build import grid_of, sampler_denoiser, solver_of
from sfumato.recipes.environment import describe
from sfumato.recipes.model import Model, RawImages
from sfumato.recipes.preview import preview_sampler
from sfumato.recipes.toml import to_toml
from sfumato.report.run_page import (
    ClassRow,
    FrechetRow,
    LevelLoss,
    Neighbours,
    RunReport,
    write_run_report,
)
from sfumato.sampling import sample, start_from_prior
from sfumato.training.noise_sampling import LogNormal
from sfumato.training.statistics import fits_badly, suggest_log_normal

if TYPE_CHECKING:
    from sfumato.recipes.run import Run

_SHOWN = 64
_SEED = 1_000_000
_MOST = 10_000


def write_page(run: Run, say: Callable[[str], None]) -> Path:
    """Draw samples from the finished run, measure them, write report.html and return its path."""
    timings: dict[str, float] = {"training": run.seconds}
    model = run.model()
    with _timed(timings, "sampling"):
        raw = _draw(model, run.config.run.report_samples)
    samples = to_model(raw, model.format)
    training, held_out = _tensor(run.images_set), None
    if run.test_set is not None:
        held_out = _tensor(run.test_set)
    with _timed(timings, "measuring"):
        frechet, warnings = _frechet(samples, training, held_out)
        classes, note = _classes(run, samples, training, say)
        near = _neighbours(samples, training, held_out)
    path = run.folder / "report.html"
    write_run_report(
        path,
        RunReport(
            name=run.folder.name,
            subtitle=f"{run.recipe.name} on {run.images_set.describe()}",
            recipe=_flat(to_toml(run.recipe)),
            commands=_commands(run),
            log=[line for line in run_log.read(run.log.path) if "loss" in line],
            levels=_levels(run),
            samples=raw[:_SHOWN],
            real=run.images_set.read(_spread(len(run.images_set), _SHOWN)),
            trajectory=_trajectory(model),
            neighbours=near,
            frechet=frechet,
            classes=classes,
            class_note=note,
            timings=timings,
            environment=describe(run.device) | {"arithmetic": str(run.precision)},
            warnings=warnings,
        ),
    )
    return path


def _draw(model: Model, count: int) -> RawImages:
    """Draw `count` images with a progress bar."""
    chunks: list[RawImages] = []
    with tqdm(total=count, unit="img", desc="sampling for the report") as bar:
        for images in model.samples(range(_SEED, _SEED + count)):
            chunks.append(images)
            bar.update(len(images))
    return np.concatenate(chunks)


def _tensor(images: Images) -> Tensor:
    """Return up to 10,000 images, evenly spread, in [-1, 1]."""
    if len(images) > _MOST:
        images = Subset(images, _spread(len(images), _MOST), images.source)
    return torch.cat([batch.x for batch in one_pass(images, 500)])


def _spread(total: int, count: int) -> list[int]:
    count = min(total, count)
    return [i * total // count for i in range(count)]


def _frechet(
    samples: Tensor, training: Tensor, held_out: Tensor | None
) -> tuple[list[FrechetRow], list[str]]:
    """Return distances to held-out (else training) images, beside those of real images."""
    try:
        extractor: FeatureExtractor = efficientnet_features()
    except MissingExtraError as error:
        return [], [f"No Fréchet distance: {error}"]
    reference = training if held_out is None else held_out
    name = "training images" if held_out is None else "held-out images"
    target = extract(_parts(reference), extractor)
    drawn = extract(_parts(samples), extractor)
    real = None
    if held_out is not None:
        picked = training[_spread(len(training), len(samples))]
        real = frechet_distance(extract(_parts(picked), extractor), target)
    label = f"{extractor.name} ({extractor.fingerprint})"
    row = FrechetRow(
        f"samples against {name}",
        frechet_distance(drawn, target),
        len(samples),
        len(reference),
        label,
        real,
    )
    few = [] if len(samples) >= 1000 else [
        f"The Fréchet distance of only {len(samples)} samples is far above its value for many: "
        "compare it with the number beside it, or draw more (--report-samples 2000)."
    ]  # fmt: skip
    return [row], few


def _parts(images: Tensor) -> Iterator[Tensor]:
    yield from images.split(256)


def _classes(
    run: Run, samples: Tensor, training: Tensor, say: Callable[[str], None]
) -> tuple[list[ClassRow], str]:
    """Return each class's share of the samples, by a classifier trained on the real images."""
    labels = run.images_set.labels
    if labels is None or len(run.images_set.classes) < 2:
        return [], ""
    index = _spread(len(labels), _MOST)
    known = torch.from_numpy(labels[index])
    held_out = None
    if run.test_set is not None and run.test_set.labels is not None:
        spread = _spread(len(run.test_set), _MOST)
        held_out = (_tensor(run.test_set), torch.from_numpy(run.test_set.labels[spread]))
    names = run.images_set.classes
    say("training a small classifier on the real images, to see what the samples are")
    classifier = train_classifier(training, known, names, epochs=12, held_out=held_out)
    rows, sure = class_rows(classifier, samples, known)
    note = (
        f"By a {classifier.name}, right on {100 * classifier.accuracy:.1f} % of "
        f"{classifier.held_out:,} held-out images; it is at least 90 % sure of "
        f"{100 * sure:.0f} % of the samples"
    )
    if held_out is not None:
        _, sure_of_real = class_rows(classifier, held_out[0], known)
        note += f" ({100 * sure_of_real:.0f} % of the held-out images)"
    note += "."
    if run.classes:
        asked = run.model().labels_for(range(_SEED, _SEED + len(samples)), None)
        assert asked is not None
        agree = classifier.probabilities(samples).argmax(1) == asked.argmax(1)
        note += f" {100 * float(agree.double().mean()):.0f} % are of the class that was asked for."
    say(note)
    return rows, note


def class_rows(
    classifier: Classifier, samples: Tensor, real_labels: Tensor
) -> tuple[list[ClassRow], float]:
    """Return shares and certainty by class, and the share of samples it is 90 % sure of."""
    certainty, chosen = classifier.probabilities(samples).max(1)
    rows = [
        ClassRow(
            name,
            float((chosen == k).double().mean()),
            float(certainty[chosen == k].mean()) if (chosen == k).any() else None,
            float((real_labels == k).double().mean()),
        )
        for k, name in enumerate(classifier.classes)
    ]
    return rows, float((certainty >= 0.9).double().mean())


def _neighbours(samples: Tensor, training: Tensor, held_out: Tensor | None) -> Neighbours:
    shown = min(16, len(samples))
    if held_out is None:
        distances, index = nearest(samples, training)
        return Neighbours(samples[:shown], training[index[:shown, 0]], distances[:, 0].tolist())
    test: MemorisationTest = memorisation_test(samples, training, held_out)
    return Neighbours(
        samples[:shown],
        training[test.indices[:shown]],
        test.distances.tolist(),
        ratio=test.ratio,
        closer_share=test.closer_share,
        closer_share_error=test.closer_share_error,
    )


def _levels(run: Run) -> LevelLoss | None:
    """Return the loss by noise level against p_train, with advice where they fit badly."""
    statistics = run.state.statistics
    seen = statistics.counts >= 1
    if int(seen.sum()) < 2:
        return None
    advice = "The loss is EDM's: 1 where nothing but mean and variance was learned."
    drawn = run.plan.noise
    better = suggest_log_normal(statistics)
    if isinstance(drawn, LogNormal) and better is not None:
        if fits_badly(drawn, better):
            advice += (
                f" Training drew ln sigma from N({drawn.mean:g}, {drawn.std:g}^2); the levels "
                f"where the network learned most suggest --noise.mean {better.mean:g} "
                f"--noise.std {better.std:g}."
            )
        else:
            advice += " The levels that training drew suit these images."
    return LevelLoss(
        statistics.centres[seen].tolist(),
        statistics.mean[seen].tolist(),
        drawn.density(statistics.centres[seen]).tolist(),
        advice,
    )


def _trajectory(model: Model) -> list[Tensor]:
    """Return 16 images at successive steps, at unit scale, noise first."""
    config = preview_sampler(model.recipe)
    seeds = list(range(_SEED, _SEED + 16))
    denoise = model.bound(seeds, sampler=config)
    grid = grid_of(config, denoise)
    noise = noise_for(_SEED, len(seeds))
    x = start_from_prior(denoise, grid[0], model.format.shape, noise, device=model.device)
    states = [x / (1 + float(grid[0]) ** 2) ** 0.5]
    steps = sample(sampler_denoiser(config, denoise), solver_of(config), grid, x, noise)
    states.extend(step.x / (1 + step.sigma_next**2) ** 0.5 for step in steps)
    return [state.cpu() for state in states]


def _flat(tables: dict[str, object], prefix: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            out[prefix + key] = str(value)
    return out


def _commands(run: Run) -> list[str]:
    data = run.config.data
    parts = [f"sfumato train {run.recipe.name}", f"--data {data.data}"]
    if data.test:
        parts.append(f"--test {data.test}")
    if data.size:
        parts.append(f"--size {data.size[0]} {data.size[1]}")
    if data.classes:
        parts.append("--classes")
    if run.config.run.minutes:
        parts.append(f"--minutes {run.config.run.minutes:g}")
    return [
        " ".join(parts) + "    # every other option: config.toml beside this page",
        f"sfumato sample {run.folder} -n 64",
    ]


@contextmanager
def _timed(into: dict[str, float], name: str) -> Generator[None]:
    start = time.perf_counter()
    yield
    into[name] = time.perf_counter() - start
