"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import math
import secrets
import tempfile
from pathlib import Path
from typing import Any, cast

from sfumato.errors import ConfigError


def write_bytes(path: Path, data: bytes) -> None:
    """Write under a temporary name in the same folder, then rename; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        # A full disk names no file, and nobody asked for the temporary one.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, by `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON, one a line, by `write_bytes`; NaN and infinity are null."""
    text = json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def finite(content: Any) -> Any:
    """Return plain values with None for NaN and infinity, which JSON has no words for."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: finite(value) for key, value in cast("dict[str, Any]", content).items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in cast("list[Any]", content)]
    return content


def usable(folder: Path, option: str = "--out") -> Path:
    """Return the folder if files can be written to it, once it is made; ConfigError otherwise.

    Nothing is left behind: work that takes long asks before, and makes the folder after it.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise ConfigError(f"{place} is a file, where {option} needs a folder")
    try:
        # A permission alone tells nothing of a read-only disk, nor to root.
        with tempfile.TemporaryFile(dir=place):
            return folder
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror or error}; choose another {option}"
        ) from error
