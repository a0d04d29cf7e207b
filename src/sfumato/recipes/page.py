"""The report of a run: samples are drawn and measured, and everything is put on one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sfumato.data.images import Images, first_of
from sfumato.data.pixels import to_model
from sfumato.randomness import noise_for
from sfumato.recipes import measuring, run_log
from sfumato.recipes.build import grid_of, sampler_denoiser
from sfumato.recipes.commands import sample_command, train_command
from sfumato.recipes.environment import describe
from sfumato.recipes.model import Model, RawImages
from sfumato.recipes.paired import answered, picked
from sfumato.recipes.preview import preview_sampler
from sfumato.recipes.real_images import RealImages, held, spread
from sfumato.recipes.toml import to_toml
from sfumato.report.run_page import write_run_report
from sfumato.report.run_report import LevelLoss, RunReport
from sfumato.sampling import sample, start_from_prior
from sfumato.training.noise_sampling import LogNormal
from sfumato.training.statistics import fits_badly, suggest_log_normal

if TYPE_CHECKING:
    from sfumato.recipes.run import Run

_SHOWN = 64
_SEED = 1_000_000
_JUDGED_IMAGES = 20_000  # before, the losses say how far training is and not what suits the images


def write_page(run: Run, say: Callable[[str], None]) -> Path:
    """Draw samples from the finished run, measure them, write report.html and return its path."""
    waited = run.progress.waited
    timings = {"training": run.seconds - waited, "waiting for data": waited}
    model = run.model()
    count = run.config.run.report_samples
    with _timed(timings, "sampling"):
        source = (run.test_set or run.images_set).representative()
        samples = to_model(_draw(model, source, count), model.format)
    with _timed(timings, "measuring"):
        training = _read(run.images_set, "training images")
        held_out = None if run.test_set is None else _read(run.test_set, "held-out images")
        frechet, warnings = measuring.frechet(samples, training, held_out)
        asked = model.classes_for(range(_SEED, _SEED + count))
        if len(run.images_set.classes) > 1:
            say("training a small classifier on the real images, to see what the samples are")
        classes, note = measuring.classes(
            samples, training, held_out, None if asked is None else torch.tensor(asked)
        )
        if note:
            say(note)
        if note and not classes:
            warnings.append(note)
        near = measuring.neighbours(samples, training, held_out)
    warnings += _unreadable(run.images_set.source, (*run.unreadable, *training.broken))
    if held_out is not None:
        warnings += _unreadable(held_out.images.source, held_out.broken)
    path = run.folder / "report.html"
    write_run_report(
        path,
        RunReport(
            name=run.folder.name,
            subtitle=f"{run.recipe.name} on {run.images_set.describe()}",
            recipe=_flat(to_toml(run.recipe)),
            commands=[
                train_command(run.config, run.folder),
                sample_command(run.folder, given=model.condition is not None),
            ],
            log=[line for line in run_log.read(run.log.path) if {"loss", "frechet"} & line.keys()],
            images_seen=run.images,
            levels=_levels(run),
            samples=samples[:_SHOWN],
            real=training.x[torch.from_numpy(spread(len(training.x), _SHOWN))],
            trajectory=_trajectory(model, source),
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


def _draw(model: Model, source: Images, count: int) -> RawImages:
    """Draw `count` images with a progress bar, given those of `source` where that is needed."""
    chunks: list[RawImages] = []
    with tqdm(total=count, unit="img", desc="sampling for the report") as bar:
        for images in answered(model, source, range(_SEED, _SEED + count)):
            chunks.append(images)
            bar.update(len(images))
    return np.concatenate(chunks)


def _read(images: Images, name: str) -> RealImages:
    """Read images to measure against, with a progress bar where that takes time."""
    some = images.representative()
    with measuring.bar(min(len(some), held(some.format.shape)), f"reading {name}") as bar:
        return RealImages(some, tick=bar.update)


def _unreadable(source: str, complaints: Sequence[str]) -> list[str]:
    """What to say of files that could not be read, in training or here."""
    files = list(dict.fromkeys(complaints))
    if not files:
        return []
    shown = first_of(files, 5)
    return [f"{source}: {len(files)} unreadable files were left out or replaced: {shown}"]


def _levels(run: Run) -> LevelLoss | None:
    """Return the loss by noise level against p_train, with advice where they fit badly."""
    statistics = run.state.statistics
    seen = statistics.counts >= 1
    if int(seen.sum()) < 2:
        return None
    advice = "The loss is EDM's: 1 where nothing but mean and variance was learned."
    drawn = run.plan.noise
    better = suggest_log_normal(statistics)
    if isinstance(drawn, LogNormal) and better is not None and run.images >= _JUDGED_IMAGES:
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


def _trajectory(model: Model, source: Images) -> list[Tensor]:
    """Return at most 16 images at successive steps, at unit scale, noise first."""
    config = preview_sampler(model.recipe)
    given = None if model.condition is None else picked(source, 16)[0]
    seeds = list(range(_SEED, _SEED + (16 if given is None else len(given))))
    denoise = model.bound(seeds, sampler=config, images=given)
    grid = grid_of(config, denoise)
    noise = noise_for(_SEED, len(seeds))
    x = start_from_prior(denoise, grid[0], model.format.shape, noise, device=model.device)
    states = [x / (1 + float(grid[0]) ** 2) ** 0.5]
    denoise = sampler_denoiser(config, denoise)
    steps = sample(denoise, model.solver(config), grid, x, noise)
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


@contextmanager
def _timed(into: dict[str, float], name: str) -> Generator[None]:
    start = time.perf_counter()
    yield
    into[name] = time.perf_counter() - start
