"""`sfumato decompress RUN FILE -o OUT`: the images of a file that sfumato compress made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sfumato.cli.parse import OutPath, parse
from sfumato.errors import CodecError, ConfigError

if TYPE_CHECKING:
    from sfumato.codec import Container, Profile
    from sfumato.recipes.model import Model


@dataclass(frozen=True)
class DecompressOptions:
    """Options of `sfumato decompress`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run or checkpoint that compressed it."""
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The compressed file."""
    out: OutPath = None
    """NAME.png (one image), NAME.npy (all in one array), or a folder; FILE's name without its
    suffix if not given."""
    preview: bool = False
    """Write what there is after each level into a folder, and a sheet of it. The file may be cut
    short."""
    force: bool = False
    """Replace what is there."""


def run(arguments: Sequence[str]) -> int:
    """Decompress, and say where the images are."""
    options = parse(
        DecompressOptions, arguments, "decompress", "Turn a compressed file into its images again."
    )
    from sfumato.codec import Container
    from sfumato.codec.stack import constriction
    from sfumato.files import usable
    from sfumato.recipes.compression import check_out, load_profile
    from sfumato.recipes.loading import load

    constriction()
    out = options.out or options.file.with_suffix("")
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken and not options.force:
        raise ConfigError(f"{out} exists already: --force replaces it, or give another -o")
    usable(out.parent)
    container = Container.from_bytes(options.file.read_bytes(), beginning=options.preview)
    if not options.preview:
        check_out(out, container.header.count)
    model = load(options.run)
    for note in model.notes:
        print(f"note: {note}")
    profile = load_profile(model)
    if profile is None:
        raise CodecError(
            f"{options.run} has not been prepared for compressing, so it did not make this file: "
            "give the run or checkpoint that did, with its codec.toml"
        )
    if options.preview:
        return _preview(model, profile, container, out)
    from tqdm import tqdm

    from sfumato.recipes.compression import unpack, write_images

    try:
        with tqdm(total=container.header.count, unit="image") as bar:
            images = unpack(model, profile, container, bar.update)
    except MemoryError:
        raise CodecError(
            f"{container.header.count:,} images do not fit into this machine's memory: "
            "compress fewer in a file"
        ) from None
    print(f"{len(images):,} images of {model.format.describe()}")
    print(f"images: {write_images(out, images, model.format)}")
    return 0


def _preview(model: Model, profile: Profile, container: Container, out: Path) -> int:
    from sfumato.files import write_bytes
    from sfumato.recipes.compression import preview_sheet, previews, write_images

    if out.suffix:
        raise ConfigError(f"--preview writes a folder, not {out}")
    found = list(previews(model, profile, container))
    for one in found:
        write_images(out / f"level-{one.levels:02d}", one.images, model.format)
    sheet = out / "progress.png"
    write_bytes(sheet, preview_sheet(found, model.format))
    last, header = found[-1], container.header
    print(
        f"{last.levels} of {header.levels} levels, of {header.count:,} images"
        + ("" if container.whole else ": the file is cut short, or damaged")
    )
    print(f"pictures after each level: {out}")
    print(f"sheet: {sheet}")
    return 0
