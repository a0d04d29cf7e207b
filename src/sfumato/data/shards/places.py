"""Which files a path, pattern or URL of shards means."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from urllib.parse import unquote

from sfumato.data.containers import is_junk, natural_key
from sfumato.data.decode import SUFFIXES
from sfumato.data.shards.fetch import beside, is_url
from sfumato.data.shards.index import INCOMPLETE, INDEX, MARK
from sfumato.errors import DataError

TAR = ".tar"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_GLOB = re.compile(r"[*?\[]")
_MOST = 10_000_000


@dataclass(frozen=True)
class Whereabouts:
    """A folder (or URL ending in a slash) and names in it; without names its index says them."""

    folder: str
    names: tuple[str, ...] = ()

    @property
    def remote(self) -> bool:
        """Whether they are behind a URL."""
        return is_url(self.folder)

    def of(self, name: str) -> str:
        """Path or URL of one of its files."""
        return beside(self.folder, name) if self.remote else str(Path(self.folder) / name)


def holds_shards(path: str) -> bool:
    """Whether a path, pattern or URL means tar shards: see `find`. Looks at no more than names."""
    if "://" in path or _means_tars(path):
        return True
    where = Path(path)
    if where.is_dir():
        entries = list(where.iterdir())
        if (where / INCOMPLETE).is_file():
            return True
        if not any(entry.suffix == TAR and entry.is_file() for entry in entries):
            return False
        # A tar among images or folders of them is no shard.
        others = [e for e in entries if e.is_dir() or e.suffix.lower() in (*SUFFIXES, ".zip")]
        return (where / INDEX).is_file() or all(is_junk(entry.name) for entry in others)
    return where.is_file() and where.name == INDEX and holds_shards(str(where.parent))


def find(path: str) -> Whereabouts:
    """The shards that a path means; DataError where there are none, or packing was interrupted.

    A folder of .tar files; its index.json; a .tar; a pattern like shards/{000..099}.tar, where {}
    counts or lists and *, ? and [] match files on the disk; a URL of one of these, which counts
    and lists but does not match, and which without .tar is a folder with an index.json.
    """
    found = _find(path)
    if found.remote:
        return found
    for inner in sorted({"", *(name.rpartition("/")[0] for name in found.names)}):
        folder = Path(found.folder) / inner
        if (folder / INCOMPLETE).is_file():
            raise DataError(
                f"{folder}: expected whole shards, but packing did not come to its end, so images "
                f"are missing ({INCOMPLETE} is there); pack again: sfumato data pack IMAGES -o "
                f"{folder} --force"
            )
    return found


def _find(path: str) -> Whereabouts:
    if path.lower().endswith(_PACKED):
        raise DataError(
            f"{path}: expected plain .tar shards, which can be read at any place, got compressed "
            "ones; unpack them (gunzip, unxz, unzstd): images are compressed as they are"
        )
    if is_url(path):
        return _find_url(path)
    if "://" in path:
        raise DataError(
            f"{path}: expected http:// or https://, no other kind of URL is read; most stores give "
            "such a link, or copy the shards to a disk"
        )
    where = Path(path)
    if where.is_dir():
        if (where / INCOMPLETE).is_file():
            return Whereabouts(str(where))
        tars = [entry.name for entry in where.iterdir() if entry.suffix == TAR]
        if not tars:
            raise DataError(f"{path}: expected .tar shards in this folder, found none")
        indexed = _is_index(where / INDEX)
        return Whereabouts(str(where), () if indexed else tuple(sorted(tars, key=natural_key)))
    if where.name == INDEX:
        return Whereabouts(str(where.parent))
    if where.is_file():
        return Whereabouts(str(where.parent), (where.name,))
    return _find_pattern(path)


def absolute(path: str) -> str:
    """The path or pattern as it is found from any working directory; URLs as they are."""
    return path if "://" in path else str(Path.cwd() / path)


def expand(pattern: str) -> list[str]:
    """Every word that {a,b} and {000..099} in a pattern stand for; DataError for other braces."""
    parts = _BRACES.split(pattern)
    choices = [[part] if i % 2 == 0 else _choices(part, pattern) for i, part in enumerate(parts)]
    if any("{" in part or "}" in part for part in parts[::2]):
        raise DataError(f"{pattern}: braces do not match; expected {{000..099}} or {{a,b}}")
    return ["".join(words) for words in product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    if counted := _RANGE.fullmatch(inside):
        first, last = counted[1], counted[2]
        width = len(first) if first[0] == "0" or len(first) == len(last) else 0
        if not int(first) <= int(last) < _MOST:
            raise DataError(f"{pattern}: {{{inside}}} counts down, or too far; write it upwards")
        return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    if "," in inside:
        return inside.split(",")
    raise DataError(f"{pattern}: {{{inside}}} was expected as {{000..099}} or {{a,b}}")


def _is_index(path: Path) -> bool:
    """Whether this is our index of shards, be it damaged, and not another program's."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return True
    except OSError:
        return False
    return isinstance(content, dict) and MARK in content


def _means_tars(path: str) -> bool:
    return path.lower().endswith((TAR, *_PACKED)) and (
        Path(path).is_file() or bool(_BRACES.search(path) or _GLOB.search(path))
    )


def _find_url(path: str) -> Whereabouts:
    bare, question, query = path.partition("?")
    after = question + query
    if bare.endswith("/" + INDEX):
        return Whereabouts(bare.removesuffix(INDEX) + after)
    if not bare.endswith(TAR):
        return Whereabouts(bare.removesuffix("/") + "/" + after)
    return _together([name + after for name in expand(bare)], path)


def _find_pattern(path: str) -> Whereabouts:
    found: list[str] = []
    for name in expand(path):
        if not _GLOB.search(name):
            found.append(name)
            continue
        root = Path(name).anchor or "."
        matching = Path(root).glob(str(Path(name).relative_to(Path(name).anchor)))
        found += sorted((str(match) for match in matching), key=natural_key)
    there = [name for name in found if Path(name).is_file()]
    if not there:
        some = found[0] if found else "nothing"
        raise DataError(f"no such shards: {path} (looked for {some}, and {len(found):,} in all)")
    return _together(found, path)


def _together(paths: list[str], pattern: str) -> Whereabouts:
    """All of them as names in their common folder."""
    if len(set(paths)) < len(paths):
        raise DataError(f"{pattern}: names a shard twice; every shard may stand there once")
    query = paths[0].partition("?")[1] + paths[0].partition("?")[2] if is_url(paths[0]) else ""
    bare = [path.removesuffix(query) if query else path for path in paths]
    folders = [path.rpartition("/")[0] for path in bare]
    common = folders[0].split("/")
    for folder in folders:
        parts = folder.split("/")
        same = [a == b for a, b in zip(common, parts, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    base = "/".join(common)
    skip = len(base) + 1 if base or bare[0].startswith("/") else 0
    folder = base + "/" if is_url(bare[0]) else (base or ("/" if skip else "."))
    names = [path[skip:] for path in bare]
    if is_url(bare[0]):
        names = [unquote(name) for name in names]  # quoted again when they are asked for
    return Whereabouts(folder + query, tuple(names))
