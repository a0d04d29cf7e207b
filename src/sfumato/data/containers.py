"""Named files in a folder tree or a zip."""

from __future__ import annotations

import os
import re
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import BinaryIO, cast

from sfumato.errors import DataError

_JUNK = {"__macosx", "thumbs.db", "desktop.ini"}


class Container(ABC):
    """Named files: a folder or a zip. Names use `/` and are relative."""

    where: str
    names: list[str]

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """The file, at its start; OSError if it will not open. Safe in several threads."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Its length in bytes."""


class Folder(Container):
    """A folder tree; links to folders are followed, once each."""

    def __init__(self, path: Path) -> None:
        self.where, self._path = str(path), path
        self.names, visited = [], set[str]()
        for root, folders, files in os.walk(path, followlinks=True):
            real = os.path.realpath(root)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            inside = Path(root).relative_to(path)
            self.names += [(inside / file).as_posix() for file in files]

    def open(self, name: str) -> BinaryIO:
        """The file itself."""
        return (self._path / name).open("rb")

    def size(self, name: str) -> int:
        """Its length in bytes; 0 for a dangling link, which then reads as unreadable."""
        path = self._path / name
        return path.stat().st_size if path.exists() else 0


class Archive(Container):
    """A zip; when everything lies in one outer folder, that folder is not part of the names."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"{path}: expected a zip of images, but it cannot be opened ({error}); the copy "
                "or download may be incomplete"
            ) from error
        entries = {entry.filename: entry for entry in self._zip.infolist() if not entry.is_dir()}
        kept = {name.replace("\\", "/") for name in entries if not is_junk(name)}
        outer = {name.split("/")[0] for name in kept if name.count("/")}
        nested = any(name.count("/") > 1 or name.endswith("/dataset.json") for name in kept)
        wrapped = len(outer) == 1 and nested and all("/" in name for name in kept)
        skip = len(outer.pop()) + 1 if wrapped else 0
        self._entries = {name.replace("\\", "/")[skip:]: entries[name] for name in entries}
        self.names = list(self._entries)

    def open(self, name: str) -> BinaryIO:
        """The decompressed member."""
        try:
            return cast("BinaryIO", self._zip.open(self._entries[name]))
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise OSError(str(error)) from error  # damaged, encrypted, unknown compression

    def size(self, name: str) -> int:
        """Its uncompressed length in bytes."""
        return self._entries[name].file_size


def is_junk(name: str) -> bool:
    """Whether a path is hidden or litter of an operating system."""
    return any(part.startswith(".") or part.lower() in _JUNK for part in name.split("/"))


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts img2 before img10, ignoring case; ties by exact name."""
    pieces = re.split(r"(\d+)", name.lower())
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], name
