"""A run's images: opening them as its configuration says, and what must be known of them first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from os import cpu_count
from typing import Any

import torch
from torch import Tensor

from sfumato.data.images import Images, Subset
from sfumato.data.loader import CACHE_BYTES, Batches, one_pass
from sfumato.data.pairs import holds_pairs, pairs_of
from sfumato.data.shards.batches import ShardBatches
from sfumato.data.shards.images import ShardImages
from sfumato.data.sources import Opening
from sfumato.errors import ConfigError, DataError
from sfumato.parameterization import Spectral
from sfumato.processes import Processes
from sfumato.recipes.run_config import DataConfig
from sfumato.training.statistics import measure_sigma_data

IN_MEMORY = "(in memory)"
"""Stands in a run's configuration for images that no path and options lead to."""

_MEASURED_IMAGES = 10_000


def open_data(config: DataConfig, path: str) -> Images:
    """Open images as a run is told to; ConfigError for those that only Python code had."""
    if path in ("", IN_MEMORY):
        raise ConfigError(
            "this run's images were made or opened by Python code, in a way that its config.toml "
            "cannot tell: go on from Python, with sfumato.train(..., resume=True)"
        )
    opening = Opening(
        config.size, config.fit, config.alpha, config.value_range, config.layout, config.classes,
        config.channels,
    )  # fmt: skip
    if config.condition == "image":
        return pairs_of(path, opening, config.input_range, config.input_channels)
    if config.input_range is not None or config.input_channels is not None:
        raise ConfigError(
            "--input-range and --input-channels are for pairs of images: add --condition image, "
            "or leave them out"
        )
    return opening.images(path)


def stream_of(
    images: Images,
    batch: int,
    seed: int,
    *,
    position: int,
    flip: bool,
    labels: bool,
    pinned: bool = False,
    processes: Processes | None = None,
) -> Batches:
    """Return the endless stream of training batches, from shards where the images are in such.

    Of several `processes` each gets its part; those of a machine share its cores and memory.
    """
    here = processes or Processes()
    local = here.local_count
    workers = None if local == 1 else max(min((cpu_count() or 1) // local, 8), 1)
    if isinstance(images, ShardImages):
        return ShardBatches(
            images,
            batch,
            seed,
            position=position,
            flip=flip,
            labels=labels,
            workers=workers,
            pinned=pinned,
            rank=here.rank,
            count=here.count,
        )
    return Batches(
        images,
        batch,
        seed,
        position=position,
        flip=flip,
        labels=labels,
        workers=workers,
        cache_bytes=CACHE_BYTES // local,
        pinned=pinned,
        rank=here.rank,
        count=here.count,
    )


def remark(config: DataConfig) -> str | None:
    """Return what to say of a folder that looks like pairs, and is not to be opened as such."""
    if config.condition == "image" or not holds_pairs(config.data):
        return None
    return (
        f"note: {config.data} holds input and target: their images are learned alike, as one set; "
        "to learn targets given inputs add --condition image"
    )


def open_to_measure(config: DataConfig, path: str) -> Images:
    """Open images as a run opens its own, but with labels only where they have any."""
    try:
        return open_data(config, path)
    except DataError:
        if not config.classes:
            raise
        return open_data(replace(config, classes=False), path)


def data_config(images: Images, test: Images | None) -> DataConfig:
    """Return the configuration that opens these sets again, as far as that is possible."""
    told = "" if test is None else IN_MEMORY
    if images.opened is None:
        classes = images.labels is not None
        condition = "none" if images.inputs is None else "image"
        return DataConfig(data=IN_MEMORY, test=told, classes=classes, condition=condition)
    options: dict[str, Any] = dict(images.opened)
    path, classes = options.pop("path"), options.pop("labels")
    if test is not None and test.opened is not None:
        theirs = dict(test.opened)
        test_path = theirs.pop("path")
        told = test_path if theirs == {**options, "labels": classes} else IN_MEMORY
    return DataConfig(data=path, test=told, classes=classes, **options)


def check_sets(images: Images, test: Images | None) -> None:
    """Raise DataError for no images, ConfigError for test images unlike the training images."""
    if not len(images):
        raise DataError(f"{images.source}: there are no images to train on, the set is empty")
    if test is None:
        return
    if test.format != images.format:
        raise ConfigError(
            f"the test images are {test.format.describe()}, "
            f"the training images {images.format.describe()}: they must agree"
        )
    ours, theirs = (None if x.inputs is None else x.inputs.format for x in (images, test))
    if ours != theirs:
        names = ["no pairs" if x is None else f"pairs from {x.describe()}" for x in (theirs, ours)]
        raise ConfigError(
            f"the test images are {names[0]}, the training images {names[1]}: they must agree"
        )
    labelled = images.labels is not None and test.labels is not None
    if labelled and test.classes != images.classes:
        raise ConfigError(
            f"the test images have the classes {_listed(test.classes)}, the training images "
            f"{_listed(images.classes)}: they must be the same, in name and order"
        )


def sigma_data_of(images: Images, say: Callable[[str], None]) -> float:
    """Measure the standard deviation of the images in [-1, 1], of some where there are many."""
    chosen, of = _some(images)
    value = round(measure_sigma_data(batch.x for batch in one_pass(chosen, 256)), 4)
    say(f"sigma_data {value:g}: the standard deviation{of} in [-1, 1]")
    return value


def spectrum_of(images: Images, *, flip: bool, say: Callable[[str], None]) -> dict[str, Tensor]:
    """Measure the frequencies of the images, or of some, as `Spectral`'s state."""
    chosen, of = _some(images)
    given = 0 if images.inputs is None else images.inputs.format.channels
    spectrum = Spectral(*images.format.shape, given=given)
    batches = (
        b.x if b.condition is None else torch.cat([b.x, b.condition], 1)
        for b in one_pass(chosen, 256)
    )
    try:
        spectrum.measure(batches, flip=flip)
    except ValueError as error:
        raise DataError(f"{images.source}: {error}; train with --skip scalar") from error
    half = int((spectrum.var.flatten().sort(descending=True).values.cumsum(0)
                < spectrum.var.sum() / 2).sum()) + 1  # fmt: skip
    say(f"spectrum: half the variance{of} lies in {half:,} of {spectrum.var.numel():,} frequencies")
    return spectrum.state_dict()


def _some(images: Images) -> tuple[Images, str]:
    """Images to measure on, and how to say how many: at most about 10,000.

    Of images above 32 x 32 pixels fewer are taken, down to 1,000: each costs more and says more.
    """
    _, height, width = images.format.shape
    most = max(1_000, _MEASURED_IMAGES * 1024 // max(1024, height * width))
    some = images.representative()
    step = -(-len(some) // most)
    chosen = some if step == 1 else Subset(some, range(0, len(some), step))
    return chosen, "" if chosen is images else f" of {len(chosen):,} images"


def _listed(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:12]) + (f", ... ({len(classes)})" if len(classes) > 12 else "")
