"""Improved DDPM's Figure 10: bits per dimension and Fréchet distance by width and training time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sfumato.errors import ConfigError
from sfumato.recipes.ablations.table import Ablation, Cell, check_length
from sfumato.recipes.config import Recipe
from sfumato.recipes.presets import recipe

_ALL = 1_000_000
"""Checkpoints kept: an interrupted training saves others between those that are looked at."""
LOOKS = 4
"""Times a training is looked at: after an eighth of its images, a quarter, a half, and all."""


def scaling(images: int, widths: Sequence[int] = (8, 16, 32), looks: int = LOOKS) -> Ablation:
    """Return L_hybrid trainings of networks of these widths, each looked at while it goes on.

    At a constant learning rate, so that an early look is what a shorter training would have given.
    `images` is rounded up to whole steps of the earliest look. Raises ConfigError for no widths,
    or some that are below 1 or given twice.
    """
    check_length(images)
    if not widths or len(set(widths)) < len(widths) or min(widths) < 1:
        raise ConfigError(f"--widths must be different and at least 1, not {list(widths)}")
    shares = [2 ** (looks - 1 - look) for look in range(looks)]
    first = -(-images // (recipe("iddpm-tiny").batch * shares[0]))
    steps = [first * shares[0] // share for share in shares]
    cells = [
        Cell(str(step), f"width-{width}", _recipe(width, steps[-1]), f"width-{width}", step)
        for width in widths
        for step in steps
    ]
    batch = cells[0].recipe.batch
    rows = {str(step): f"{step * batch:,} images" for step in steps}
    columns = {f"width-{width}": f"width {width}" for width in widths}
    about = (
        "Improved DDPM's Figure 10 at a small size: L_hybrid, cosine levels, networks of several "
        "widths, each looked at while its training goes on at a constant learning rate."
    )
    return Ablation("Width and training time", about, rows, columns, cells, True, first, _ALL)


def _recipe(width: int, steps: int) -> Recipe:
    base = recipe("iddpm-tiny")
    return replace(
        base,
        name=f"iddpm-width-{width}",
        network=replace(base.network, width=width),
        optimizer=replace(base.optimizer, decay="constant"),
        sampler=replace(base.sampler, steps=50),
        images=steps * base.batch,
    )
