"""`sfumato compress RUN IMAGES... -o FILE`: images to a file that the same model decodes."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sfumato.cli.parse import OutPath, duration, parse
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.codec import Profile
    from sfumato.recipes.compression import Effort, Packed
    from sfumato.recipes.model import Model, RawImages

_SUFFIX = ".sfu"
_KINDS = {
    "bits-back": "by bits-back coding through {} noise levels",
    "staged": "by {} noise levels, then the pixels: smaller than bits-back for so few images",
    "lossy": "by {} noise levels",
    "plain": "by zlib, which was smallest: the model knows too little of such images",
}
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".npy", ".npz")


@dataclass(frozen=True)
class CompressOptions:
    """Options of `sfumato compress`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run's folder (its newest checkpoint), or one checkpoint folder."""
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGES...")]
    """Image files, folders, zips or arrays, in the format of the run's own images."""
    out: OutPath = None
    """The file to write; the first image's name with .sfu if not given."""
    quality: int | None = None
    """Send so many noise levels (--list tells what each costs) in place of every pixel."""
    lossless: bool = False
    """Every pixel as it is: what happens without --quality."""
    list: bool = False
    """Print what each quality is expected to cost and to look like, and stop."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """The first so many images; all if not given."""
    levels: int | None = None
    """Noise levels to code through without loss: more take longer and need fewer bits; 48 if not
    given."""
    streams: int | None = None
    """Images coded at once without loss: faster, and each stream costs first bits; one per 100
    images if not given."""
    search: int | None = None
    """Search among 2 to this candidates for every 13 bits or so of a --quality (or of few images
    without loss): two more take four times as long, for some 4 % fewer bits; 20 if not given."""
    size: tuple[int, int] | None = None
    """Crop images to height and width."""
    channels: int | None = None
    """Turn images into so many channels (1 or 3)."""
    prepare: str = ""
    """Images to measure the model on, once (a minute); the run's training images if not given."""
    force: bool = False
    """Replace a file that is there, or what was measured: files made before do not decode then."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default. The decoder uses as many."""


def run(arguments: Sequence[str]) -> int:
    """Compress, say how far, and where the file is."""
    options = parse(
        CompressOptions,
        arguments,
        "compress",
        "Compress images by a trained model, without loss or to few bits. It pays for many images "
        "of the kind the model was trained on. The file decodes with the same model only.",
    )
    if options.lossless and options.quality is not None:
        raise ConfigError("--lossless and --quality exclude each other")
    if options.quality is not None and (options.levels, options.streams) != (None, None):
        raise ConfigError("--levels and --streams are of lossless files: leave them out")
    if not options.images and not options.list and not options.prepare:
        what = options.run if Path(options.run).is_file() else "RUN"
        first = f"{what} is no run, which comes first" if what != "RUN" else "give images"
        raise ConfigError(f"{first}: sfumato compress RUN IMAGES -o FILE.sfu")
    if options.out is not None and options.out.suffix.lower() in _PICTURES:
        raise ConfigError(f"{options.out} is named like images: call it NAME{_SUFFIX}")
    from sfumato.codec.stack import constriction
    from sfumato.files import usable
    from sfumato.recipes.compression import Effort, check_quality
    from sfumato.recipes.environment import set_threads
    from sfumato.recipes.loading import load

    constriction()
    given = {"levels": options.levels, "streams": options.streams, "search": options.search}
    effort = Effort(**{name: value for name, value in given.items() if value is not None})
    out = options.out or Path(Path((*options.images, "images")[0]).stem + _SUFFIX)
    if options.images and out.exists() and not options.force:
        raise ConfigError(f"{out} exists already: --force replaces it, or give another -o")
    if options.images:
        usable(out.parent)
    set_threads(options.threads)
    if options.search is not None and options.quality is None:
        print("note: --search is of --quality, and of up to eight images without loss")
    model = load(options.run)
    for note in model.notes:
        print(f"note: {note}")
    profile = _profile(options, model)
    if options.quality is not None:
        check_quality(profile, options.quality)
    if options.list:
        _list(model, profile)
    if not options.images or options.list:
        return 0
    return _compress(options, model, profile, effort, out)


def _compress(
    options: CompressOptions, model: Model, profile: Profile, effort: Effort, out: Path
) -> int:
    import time

    from tqdm import tqdm

    from sfumato.data.pixels import from_model
    from sfumato.files import write_bytes
    from sfumato.recipes.compression import pack
    from sfumato.recipes.inputs import Opening, read_inputs

    inputs = read_inputs(
        options.images, model.format, Opening(options.size, options.channels), options.n
    )
    images = from_model(inputs.x, model.format)
    start = time.perf_counter()
    with tqdm(total=len(images), unit="image") as bar:
        packed = pack(
            model, profile, images, quality=options.quality, effort=effort, tick=bar.update
        )
    write_bytes(out, packed.data)
    _say(packed, images, model, time.perf_counter() - start)
    names = shlex.join([str(options.run), str(out)])
    print(f"to decode: sfumato decompress {names} -o FOLDER")
    print(f"file: {out}")
    return 0


def _say(packed: Packed, images: RawImages, model: Model, seconds: float) -> None:
    from sfumato.recipes.compression import rmse_255

    header, size = packed.container.header, len(packed.data)
    print(
        f"{len(images):,} images in {size:,} bytes, {size / len(images):,.0f} each: "
        f"{packed.bits_per_dim:.3f} bits a value ({packed.payload_bits_per_dim:.3f} without the "
        f"header), {size / images.nbytes:.2%} of the raw pixels; {duration(seconds)}"
    )
    print(_KINDS[header.kind].format(header.levels))
    if header.kind == "lossy":
        print(f"RMSE {rmse_255(images, packed.images, model.format):.2f} of 255")
    if header.raw:
        print(f"note: {len(header.raw)} are too unlike what the model knows, and kept as they are")


def _profile(options: CompressOptions, model: Model) -> Profile:
    from tqdm import tqdm

    from sfumato.recipes.compression import load_profile, prepare, profile_grid
    from sfumato.recipes.inputs import Opening

    known = load_profile(model) if not (options.prepare and options.force) else None
    if known is not None and options.prepare:
        raise ConfigError(
            "this model was prepared before, and what was compressed with it decodes with that: "
            "--force prepares it again"
        )
    if known is not None:
        return known
    opening = Opening(options.size, options.channels)
    total = len(profile_grid(model))
    with tqdm(desc="measuring the model, once", total=total, unit="level", leave=False) as bar:
        profile, path = prepare(model, options.prepare, opening, bar.update)
    print(f"measured the model for the codec: {path}")
    return profile


def _list(model: Model, profile: Profile) -> None:
    from sfumato.recipes.compression import steps_table

    values = math.prod(model.format.shape)
    print("what each --quality takes by the model's bound; files need a third to a half more,")
    print("and some 40 bytes for the header:")
    print(f"{'quality':>8}{'RMSE of 255':>13}{'bits a value':>14}{'bytes an image':>16}")
    for number, rmse, bits, size in steps_table(profile, values):
        print(f"{number:>8}{rmse:>13.2f}{bits:>14.3f}{size:>16.0f}")
