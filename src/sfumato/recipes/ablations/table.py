"""What an ablation is: a table whose cells are recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfumato.errors import ConfigError
from sfumato.recipes.config import Recipe


@dataclass(frozen=True)
class Cell:
    """One entry of the table: `row` of it in `column`, and the recipe that is trained for it."""

    row: str
    column: str
    recipe: Recipe
    run: str
    """The folder of its training; several cells may look at one at different times."""
    step: int | None = None
    """The checkpoint it is measured at; the last if None."""


@dataclass(frozen=True)
class Ablation:
    """A table of recipes, in a paper's shape."""

    title: str
    about: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    cells: Sequence[Cell]
    bits: bool = False
    """Whether bits per dimension are measured, too."""
    save_every: int = 0
    """Steps between checkpoints, some of which are measured; 0: only the last is."""
    keep: int = 1
    """How many checkpoints of a training are kept."""

    @property
    def runs(self) -> dict[str, Cell]:
        """A cell of each training, by its folder's name."""
        return {cell.run: cell for cell in self.cells}


def known(asked: Sequence[str], table: Mapping[str, str], what: str) -> list[str]:
    """Return the asked ones in the table's order, all if none are asked.

    Raises ConfigError for one that the table lacks.
    """
    if unknown := [name for name in asked if name not in table]:
        raise ConfigError(f"unknown {what} {unknown[0]!r}; known: {', '.join(table)}")
    return [name for name in table if name in asked or not asked]


def check_length(images: int) -> None:
    """Raise ConfigError for a training without images."""
    if images < 1:
        raise ConfigError(f"--images must be at least 1, not {images}")
