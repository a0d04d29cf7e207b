"""`sfumato decompress RUN FILE -o OUT`: the images of a file that sfumato compress made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sfumato.cli.parse import parse
from sfumato.errors import ConfigError


@dataclass(frozen=True)
class DecompressOptions:
    """Options of `sfumato decompress`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run or checkpoint that compressed it."""
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The compressed file."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """NAME.png (one image), NAME.npy (all in one array), or a folder; FILE's name without its
    suffix if not given."""
    force: bool = False
    """Replace what is there."""


def run(arguments: Sequence[str]) -> int:
    """Decompress, and say where the images are."""
    options = parse(
        DecompressOptions, arguments, "decompress", "Turn a compressed file into its images again."
    )
    from tqdm import tqdm

    from sfumato.codec import Container
    from sfumato.recipes.compression import unpack, write_images
    from sfumato.recipes.model import load

    out = options.out or options.file.with_suffix("")
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken and not options.force:
        raise ConfigError(f"{out} exists already: --force replaces it, or give another -o")
    container = Container.from_bytes(options.file.read_bytes())
    model = load(options.run)
    with tqdm(total=container.header.count, unit="image") as bar:
        images = unpack(model, container, bar.update)
    print(f"{len(images):,} images of {model.format.describe()}")
    print(f"images: {write_images(out, images, model.format)}")
    return 0
