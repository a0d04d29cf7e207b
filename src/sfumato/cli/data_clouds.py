"""`sfumato data clouds IMAGES -o PAIRS`: images under clouds, with the truth beneath."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from sfumato.cli.parse import OutPath, parse
from sfumato.errors import ConfigError


@dataclass(frozen=True)
class CloudOptions:
    """Options of `sfumato data clouds`."""

    images: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IMAGES")]
    """A folder, zip, array, IDX file, or built-in set of images."""
    out: OutPath = None
    """Folder for the pairs: input/, target/ and mask/ (white: damaged). Needed."""
    cover: float = 0.3
    """Share of each image under cloud, between 0 and 1."""
    shadow: float = 0.5
    """Share of its light that ground loses in the densest shadow; 0 draws none."""
    softness: float = 0.5
    """How gradually clouds become opaque from their edge."""
    beta: float = 3.0
    """Power spectrum 1 / frequency^beta: 2 is rugged, 4 smooth."""
    reach: float = 0.12
    """How far shadows fall, as a share of the image's short side."""
    seed: int = 0
    """Image i is clouded by seed + i: the same clouds for any -n."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """The first so many images; all if not given."""
    size: tuple[int, int] | None = None
    """Height and width images are brought to (crops to the centre)."""
    channels: int | None = None
    """1 or 3 to turn RGB grey or grey RGB."""
    value_range: tuple[float, float] | None = None
    """Raw values that mean black and white, for float images."""
    force: bool = False
    """Replace the pairs that an earlier call wrote to the folder."""


def run(arguments: Sequence[str]) -> int:
    """Cloud the images and say where the pairs are."""
    options = parse(
        CloudOptions,
        arguments,
        "data clouds",
        "Draw fractal clouds and their shadows over images, each by its own seed, and write what "
        "is seen, what is beneath, and a mask of where they differ.",
    )
    if options.out is None:
        raise ConfigError("say where the pairs go: sfumato data clouds IMAGES -o PAIRS")
    from tqdm import tqdm

    from sfumato.data.clouds import Clouds
    from sfumato.data.sources import open_images
    from sfumato.files import usable
    from sfumato.recipes.cloud_pairs import INPUT, MASK, SHEET, TARGET, PairWriter

    clouds = Clouds(options.cover, options.shadow, options.softness, options.beta, options.reach)
    usable(options.out)
    images = open_images(
        options.images,
        size=options.size,
        channels=options.channels,
        value_range=options.value_range,
    )
    writer = PairWriter(
        images, clouds, options.out, seed=options.seed, count=options.n, force=options.force
    )
    print(f"clouding {writer.count} of {images.describe()}")
    shares = list(tqdm(writer.write(), total=writer.count, unit="image"))
    cover = sum(share.cover for share in shares) / len(shares)
    damaged = sum(share.damaged for share in shares) / len(shares)
    print(f"under cloud: {cover:.1%} of the pixels; with shadows, masked: {damaged:.1%}")
    for name in (INPUT, TARGET, MASK):
        print(f"{name}: {options.out / name}")
    print(f"to look at: {options.out / SHEET}")
    return 0
