"""What lies in a folder or zip of images, from the headers alone: also where it is no one set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sfumato.data.containers import Archive, Container, Folder
from sfumato.data.files import image_names, read_headers
from sfumato.data.images import first_of

_LISTED = 8


@dataclass(frozen=True)
class Survey:
    """Counts of images by size (height, width), channels and dtype, and unreadable files."""

    where: str
    sizes: Counter[tuple[int, int]]
    channels: Counter[int]
    dtypes: Counter[str]
    unreadable: tuple[str, ...]

    @property
    def mixed(self) -> bool:
        """Whether the images differ, so that options must say what they become."""
        return max(len(self.sizes), len(self.channels), len(self.dtypes)) > 1

    def rows(self) -> dict[str, str]:
        """What there is, name by name, the most common first."""
        sizes = Counter({f"{h} x {w}": n for (h, w), n in self.sizes.items()})
        rows = {
            "images": f"{self.sizes.total():,}",
            "sizes": f"{_listed(sizes)} (height x width)",
            "channels": _listed(Counter({str(c): n for c, n in self.channels.items()})),
            "depth": _listed(self.dtypes),
        }
        if self.unreadable:
            rows["unreadable"] = f"{len(self.unreadable):,}: {first_of(self.unreadable, 3)}"
        return rows


def survey(path: Path) -> Survey:
    """Read the headers of a folder tree or zip; DataError where it holds no image file."""
    container: Container = Folder(path) if path.is_dir() else Archive(path)
    headers, complaints = read_headers(container, image_names(container), "drop")
    found = headers.values()
    return Survey(
        str(path),
        Counter((header.height, header.width) for header in found),
        Counter(header.channels for header in found),
        Counter(header.dtype for header in found),
        tuple(complaints),
    )


def _listed(counts: Counter[str]) -> str:
    """`32 x 32 in 90, 16 x 16 in 10`, and how many kinds more."""
    if len(counts) == 1:
        return next(iter(counts))
    text = ", ".join(f"{name} in {n:,}" for name, n in counts.most_common(_LISTED))
    return text + (f" and {len(counts) - _LISTED:,} others" if len(counts) > _LISTED else "")
