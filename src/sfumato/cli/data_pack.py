"""`sfumato data pack IMAGES -o SHARDS`: images as tar shards, to train from a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Annotated, Literal

import tyro

from sfumato.cli.parse import OutPath, parse
from sfumato.errors import ConfigError


@dataclass(frozen=True)
class PackOptions:
    """Options of `sfumato data pack`."""

    images: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IMAGES")]
    """A folder, zip, array, IDX file, shards, or built-in set of images."""
    out: OutPath = None
    """Folder for the shards and their index.json. Needed."""
    shard_mib: int = 64
    """A shard ends before so many MiB; 0: no bound. One shard is held in memory."""
    shard_images: int = 10_000
    """A shard ends after so many images, if that comes first; 0: no bound."""
    keep: bool = True
    """Keep files that are PNG, JPEG or WebP, and small, byte by byte; else pixels without loss."""
    shuffle: bool = True
    """In a random order, so that any shard stands for all."""
    seed: int = 0
    """Of that order."""
    lanes: int = 16
    """Shards that every batch mixes: a multiple of the processes that will train."""
    classes: bool = False
    """Store labels: sub-folders, dataset.json or a label file."""
    condition: Literal["none", "image"] = "none"
    """image: pairs, of input/ and target/."""
    size: tuple[int, int] | None = None
    """Height and width images are brought to."""
    fit: Literal["crop", "stretch", "strict"] = "crop"
    """How images of another size become that size."""
    alpha: Literal["drop", "keep"] = "drop"
    """What happens to transparency in image files."""
    value_range: tuple[float, float] | None = None
    """Raw values that mean black and white, for float images."""
    layout: Literal["NHWC", "NCHW"] | None = None
    """Axis order of 4-D arrays where it cannot be told from the shape."""
    channels: int | None = None
    """1 or 3 to turn RGB grey or grey RGB."""
    force: bool = False
    """Replace the shards that an earlier call wrote to the folder."""


def run(arguments: Sequence[str]) -> int:
    """Pack the images and say where the shards are."""
    options = parse(
        PackOptions,
        arguments,
        "data pack",
        "Write images as tar shards in WebDataset's layout, with an index of their checksums.",
    )
    if options.out is None:
        raise ConfigError("say where the shards go: sfumato data pack IMAGES -o SHARDS")
    from tqdm import tqdm

    from sfumato.data.shards.opening import open_shards
    from sfumato.data.shards.pack import Packing, ShardWriter
    from sfumato.files import usable
    from sfumato.recipes.run_config import DataConfig
    from sfumato.recipes.run_data import open_data

    packing = Packing(
        options.shard_mib * 2**20,
        options.shard_images,
        options.keep,
        options.shuffle,
        options.seed,
        options.lanes,
    )
    config = DataConfig(
        size=options.size,
        fit=options.fit,
        alpha=options.alpha,
        value_range=options.value_range,
        layout=options.layout,
        channels=options.channels,
        classes=options.classes,
        condition=options.condition,
    )
    usable(options.out)
    images = open_data(config, options.images)
    writer = ShardWriter(images, options.out, packing, force=options.force)
    print(f"packing {images.describe()}")
    with tqdm(total=len(images), unit="image") as bar:
        for _ in writer.write():
            bar.update()
    for complaint in writer.skipped:
        print(f"left out, unreadable: {complaint}")
    packed = open_shards(options.out, labels=options.classes, pairs=images.inputs is not None)
    total = sum(shard.bytes or 0 for shard in packed.store.shards)
    print(f"{packed.describe()}, {total / 2**20:,.1f} MiB")
    more = " --classes" * options.classes
    more += " --condition image" * (options.condition == "image")
    print(f"to train: sfumato train edm-tiny --data {quote(str(options.out))}{more}")
    return 0
