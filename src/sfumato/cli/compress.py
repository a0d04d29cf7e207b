"""`sfumato compress RUN IMAGES... -o FILE`: images to a file that the same model decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sfumato.cli.parse import duration, parse
from sfumato.errors import ConfigError

_SUFFIX = ".sfu"


@dataclass(frozen=True)
class CompressOptions:
    """Options of `sfumato compress`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run's folder (its newest checkpoint), or one checkpoint folder."""
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGES...")]
    """Image files, folders, zips or arrays, in the format of the run's own images."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file to write; the first image's name with .sfu if not given."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """The first so many images; all if not given."""
    levels: int = 64
    """Noise levels to code through, at most: more take longer and need fewer bits."""
    streams: int = 0
    """Images coded at once: faster, and each stream costs first bits; 0: one per 100 images."""
    size: tuple[int, int] | None = None
    """Crop images to height and width."""
    channels: int | None = None
    """Turn images into so many channels (1 or 3)."""
    force: bool = False
    """Replace a file that is there."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default. The decoder uses as many."""


def run(arguments: Sequence[str]) -> int:
    """Compress, say how far, and where the file is."""
    options = parse(
        CompressOptions,
        arguments,
        "compress",
        "Compress images without loss by a trained model: fewest bits for many images of the kind "
        "it was trained on. The file decodes with the same model only.",
    )
    if not options.images:
        raise ConfigError("give the images to compress: sfumato compress RUN FOLDER -o FILE.sfu")
    import time

    from tqdm import tqdm

    from sfumato.data.pixels import from_model
    from sfumato.files import write_bytes
    from sfumato.recipes.compression import Effort, pack
    from sfumato.recipes.environment import set_threads
    from sfumato.recipes.inputs import Opening, read_inputs
    from sfumato.recipes.model import load

    out = options.out or Path(Path(options.images[0]).stem + _SUFFIX)
    if out.exists() and not options.force:
        raise ConfigError(f"{out} exists already: --force replaces it, or give another -o")
    effort = Effort(options.levels, options.streams)
    set_threads(options.threads)
    model = load(options.run)
    inputs = read_inputs(
        options.images, model.format, Opening(options.size, options.channels), options.n
    )
    images = from_model(inputs.x, model.format)
    start = time.perf_counter()
    with tqdm(total=len(images), unit="image") as bar:
        packed = pack(model, images, effort, bar.update)
    write_bytes(out, packed.data)
    seconds = time.perf_counter() - start
    print(
        f"{packed.count:,} images in {len(packed.data):,} bytes: {packed.bits_per_dim:.3f} bits a "
        f"value, {len(packed.data) / images.nbytes:.1%} of the raw pixels; "
        f"{duration(seconds)}"
    )
    if packed.raw:
        print(f"note: {packed.raw} are too unlike what the model knows, and kept as they are")
    print(f"to decode: sfumato decompress {options.run} {out} -o FOLDER")
    print(f"file: {out}")
    return 0
