"""Pairs to learn restoration from: images under drawn clouds, the images, and where they differ."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import tomli_w
import torch
from torch import Tensor

from sfumato.data.clouds import Clouds
from sfumato.data.files import FileImages
from sfumato.data.images import Images
from sfumato.data.pixels import PixelFormat, from_model, to_model
from sfumato.data.save import default_suffix, save_image
from sfumato.errors import ConfigError
from sfumato.files import write_text
from sfumato.report.grid import image_grid, save_png

INPUT, TARGET, MASK = "input", "target", "mask"
RECORD, SHEET = "clouds.toml", "pairs.png"
_SHOWN = 8


@dataclass(frozen=True)
class Shares:
    """Of one image's pixels: those under cloud, and those that are not the ground as it is."""

    cover: float
    damaged: float


class PairWriter:
    """Writes images [C, H, W] under clouds, one after the other, to a new or empty folder.

    FOLDER/input/NAME, FOLDER/target/NAME in the images' own format and FOLDER/mask/NAME.png, white
    where damaged; clouds.toml, which says whether all were written, and at the end pairs.png. Image
    i is clouded by seed + i. `force` replaces what an earlier call wrote there. Raises ConfigError
    for a folder of other files or of the images themselves, no images, or a negative seed.
    """

    def __init__(
        self,
        images: Images,
        clouds: Clouds,
        folder: Path,
        *,
        seed: int = 0,
        count: int | None = None,
        force: bool = False,
    ) -> None:
        if count is not None and count < 1:
            raise ConfigError(f"-n must be at least 1, not {count}: there is nothing to cloud")
        if seed < 0:
            raise ConfigError(f"seed must be 0 or more, not {seed}")
        self.images, self.clouds, self.folder, self.seed = images, clouds, folder, seed
        self.count = len(images) if count is None else min(count, len(images))
        if not self.count:
            raise ConfigError(f"{images.source}: expected at least one image, got none")
        _keep_out(Path(images.source), folder)
        _make_room(folder, force)

    def write(self) -> Iterator[Shares]:
        """Write pair by pair, telling the shares of each."""
        form = self.images.format
        suffix = default_suffix(form)
        one_bit = PixelFormat(1, form.height, form.width, "uint8", 0, 255)
        shown: list[Tensor] = []
        names = _names(self.images, self.count)
        self._record(complete=False)
        for i, name in enumerate(names):
            raw = self.images.read([i])[0]
            image = to_model(raw, form)
            field = self.clouds.of((form.height, form.width), self.seed + i)
            mask = field.mask()
            clouded = self.clouds.over(image, field)
            white = np.where(mask.numpy()[None], 255, 0).astype(np.uint8)
            save_image(from_model(clouded, form), form, self.folder / INPUT / f"{name}{suffix}")
            save_image(raw, form, self.folder / TARGET / f"{name}{suffix}")
            save_image(white, one_bit, self.folder / MASK / f"{name}.png")
            if i < _SHOWN:
                shown += [clouded, image, (mask.to(image) * 2 - 1).expand_as(image)]
            yield Shares(field.cover, float(mask.double().mean()))
        save_png(image_grid(torch.stack(shown), columns=3), self.folder / SHEET)
        self._record(complete=True)

    def _record(self, *, complete: bool) -> None:
        record = {
            "images": self.images.source,
            "count": self.count,
            "seed": self.seed,
            "complete": complete,
            "clouds": asdict(self.clouds),
            "format": self.images.format.to_toml(),
        }
        write_text(self.folder / RECORD, tomli_w.dumps(record))


def _keep_out(source: Path, folder: Path) -> None:
    """Make sure that images to be read are none of those that are replaced."""
    if source.exists() and source.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"the images, {source}, lie in {folder} themselves: choose another --out")


def _make_room(folder: Path, force: bool) -> None:
    """Make sure that nothing is in the way of new pairs; only what is ours is ever removed."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    ours = (folder / RECORD).is_file()
    if not (force and ours):
        hint = ", or --force to replace the pairs" if ours else ""
        raise ConfigError(f"{folder} already holds files: choose another --out, empty it{hint}")
    for part in (INPUT, TARGET, MASK):
        shutil.rmtree(folder / part, ignore_errors=True)


def _names(images: Images, count: int) -> list[str]:
    """A name without suffix for each image: its file's, folders and all, else its number."""
    names: list[str] = []
    taken = set[str]()
    for i in range(count):
        name = f"{i:06d}"
        if isinstance(images, FileImages):
            path = PurePosixPath(images.names(i))
            if not path.is_absolute() and ".." not in path.parts:
                name = path.with_suffix("").as_posix()
        if name.casefold() in taken:  # a.jpg and a.png
            name = f"{name}-{i:06d}"
        taken.add(name.casefold())
        names.append(name)
    return names
