"""Work that is done once: arrays in files, found again by a description of how they were made."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.files import write_bytes

Description = Mapping[str, Any]


class Cache:
    """A folder of folders, one for each description; several processes may fill it together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shelf(self, kind: str, description: Description) -> Shelf:
        """The place of everything made as described (plain values, as in JSON)."""
        text = json.dumps(description, sort_keys=True, indent=1)
        key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        shelf = Shelf(self.folder / f"{kind}-{key}")
        shelf.describe(text)
        return shelf


class Shelf:
    """Numbered arrays in one folder, each file whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def describe(self, text: str) -> None:
        """Leave the description beside the arrays, for people."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / "description.json"
        if not target.exists():
            write_bytes(target, text.encode())

    def has(self, number: int) -> bool:
        """Whether array `number` is there; a file cut short counts as absent."""
        try:
            np.load(self._path(number), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        return True

    def put(self, number: int, array: NDArray[Any]) -> None:
        """Keep an array; another process writing the same one does no harm."""
        memory = io.BytesIO()
        np.save(memory, array, allow_pickle=False)
        write_bytes(self._path(number), memory.getvalue())

    def get(self, number: int) -> NDArray[Any]:
        """Read array `number`, which is there."""
        return np.load(self._path(number), allow_pickle=False)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npy"
