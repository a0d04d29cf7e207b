"""Progress bars, kept to see where they end."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import pytest
from tqdm import tqdm


class Kept(tqdm):  # type: ignore[type-arg]
    """A bar that stays in a list."""

    made: ClassVar[list[Kept]] = []

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.made.append(self)


def keep_bars(monkeypatch: pytest.MonkeyPatch, place: str) -> list[Kept]:
    """Put `Kept` in a place, such as "tqdm.tqdm"; return the bars made from now on."""
    made: list[Kept] = []
    monkeypatch.setattr(Kept, "made", made)
    monkeypatch.setattr(place, Kept)
    return made


def ends(bars: list[Kept]) -> dict[str, tuple[int, int]]:
    """Where each bar stopped, and its total, by its title."""
    return {bar.desc.removesuffix(": "): (bar.n, bar.total) for bar in bars}


def last_bar(text: str, title: str) -> tuple[int, int]:
    """Where the bar of this title was seen last in what a command wrote, and its total."""
    found = re.findall(rf"{re.escape(title)}: +\d+%\|.*?\| (\d+)/(\d+) ", text)
    return int(found[-1][0]), int(found[-1][1])
