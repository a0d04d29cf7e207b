"""Files that appear whole or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path


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
