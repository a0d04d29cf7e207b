"""The images that `sfumato restore` is given, what goes with each, and where answers go."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from sfumato.recipes.model import Model

FILES = (".png", ".tif", ".tiff", ".npy")
"""Endings of what is written."""


def one_file(out: Path | None, images: int, answers: int, force: bool) -> bool:
    """Whether one file is written; ConfigError where it cannot be, or is there."""
    if out is None or out.suffix.lower() not in FILES or out.is_dir():
        if out is not None and out.suffix and not out.is_dir():
            raise ConfigError(f"images are written as {', '.join(FILES)} or into a folder: {out}")
        return False
    if images > 1 or answers > 1:
        raise ConfigError(f"{images} images of {answers} answers: give a folder, not {out}")
    if out.exists() and not force:
        raise ConfigError(f"{out} exists already: --force replaces it, or give another -o")
    return True


def check_tiffs(names: Sequence[Path]) -> None:
    """Raise MissingExtraError where a TIFF would be written and nothing can."""
    there = any(name.suffix.lower() in (".tif", ".tiff") for name in names)
    if there and importlib.util.find_spec("tifffile") is None:
        raise MissingExtraError("tifffile", "data", "writing TIFFs")


def partner(given: Path | None, path: Path, option: str, count: int, below: Path) -> Path | None:
    """The file of a folder that has an image's name, `below` it where it has such a folder too.

    A file is for all.
    """
    if given is None or not given.is_dir():
        if given is not None and not given.exists():
            raise ConfigError(f"{option} {given} does not exist")
        if given is not None and count > 1 and option == "--truth":
            raise ConfigError(f"{option} is one file, and there are {count} images: give a folder")
        return given
    folder = given / below if (given / below).is_dir() else given
    there = [one for one in images_in(folder) if one.stem == path.stem]
    if len(there) != 1:
        raise ConfigError(
            f"{option} {folder}: expected one file named {path.stem}.*, got {len(there)}"
        )
    return there[0]


def images_in(folder: Path) -> list[Path]:
    """Images that lie in a folder, by their endings: not what other programs keep beside them."""
    there = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."]
    return [path for path in there if path.suffix.lower() in _endings()]


def _endings() -> tuple[str, ...]:
    from sfumato.data.decode import ARRAY, SUFFIXES  # slow: not for --help

    return (*SUFFIXES, ARRAY)


def images_below(folder: Path) -> list[Path]:
    """Images that lie in a folder, or, where it holds none itself, in its sub-folders."""
    deeper = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    shown = [entry for entry in deeper if entry.name[0] != "."]
    return images_in(folder) or [path for entry in shown for path in images_below(entry)]


def below(path: Path, given: Sequence[Path]) -> Path:
    """Where an image lies below the folder that was given; "." for files and images right in it."""
    for one in given:
        if one.is_dir() and path.is_relative_to(one):
            return path.parent.relative_to(one)
    return Path()


def listed(given: Sequence[Path]) -> list[Path]:
    """Files, and those in folders."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = images_below(path)
            if not inside:
                raise ConfigError(f"{path} holds no images ({', '.join(_endings())})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"{path} does not exist")
    if not found:
        raise ConfigError("give images: sfumato restore RUN IMAGE --mask MASK")
    stems = [str(below(path, given) / path.stem) for path in found]
    twice = next((stem for stem, count in Counter(stems).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"two images are called {twice}: restore them one after another")
    return found


def names_in(out: Path, path: Path, given: Sequence[Path], model: Model) -> Callable[[str], Path]:
    """Names of answers in a folder, of the image's own kind where it can hold the model's."""
    suffix = path.suffix.lower() if path.suffix.lower() in FILES else ".png"
    if suffix == ".png":
        suffix = png_instead(model)
    folder = out / below(path, given)
    return lambda ending: folder / f"{path.stem}{ending}{suffix}"


def png_instead(model: Model) -> str:
    """.png, or what holds the model's images where a PNG cannot."""
    from sfumato.data.save import default_suffix

    return default_suffix(model.format)
