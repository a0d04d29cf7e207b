"""DDPM's Table 2: what the network predicts, the objective, and the reverse step's variance.

The table has no cell of a learned variance under the simple loss, which does not teach any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sfumato.recipes.ablations.table import Ablation, Cell, check_length, known
from sfumato.recipes.config import Recipe
from sfumato.recipes.presets import recipe

DDPM_ROWS = {
    "bound-learned": "L, learned diagonal variance",
    "bound-fixed": "L, fixed isotropic variance",
    "simple": "mean squared error of the output",
}
DDPM_COLUMNS = {"mean": "mean of x[t-1]", "noise": "noise"}


def ddpm_ablation(
    images: int,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    width: int = 16,
    levels: int = 100,
) -> Ablation:
    """Return the table's six configurations, each trained on so many images.

    The learned variance is the logarithm of the step's itself, not a fraction between bounds.
    `levels` is the ladder's length, with betas in proportion; all are sampled on every level.
    Raises ConfigError for rows or columns that the table lacks.
    """
    check_length(images)
    chosen = known(rows, DDPM_ROWS, "row"), known(columns, DDPM_COLUMNS, "column")
    cells = [
        Cell(row, column, _recipe(row, column, images, width, levels), f"{row}-{column}")
        for row in chosen[0]
        for column in chosen[1]
    ]
    about = (
        "DDPM's Table 2 at a small size. Columns: what the network predicts; rows: the objective "
        "(L is the variational bound) and the variance of the reverse steps. Lower is better."
    )
    return Ablation("DDPM's Table 2", about, DDPM_ROWS, DDPM_COLUMNS, cells, bits=True)


def _recipe(row: str, column: str, images: int, width: int, levels: int) -> Recipe:
    base = recipe("ddpm-tiny")
    simple = "simple" if column == "noise" else "mean"
    return replace(
        base,
        name=f"ddpm-{row}-{column}",
        network=replace(base.network, width=width),
        process=replace(base.process, steps=levels),
        sampler=replace(base.sampler, steps=levels, clip=True),
        predicts=column,
        objective=simple if row == "simple" else "bound",
        variance="free" if row == "bound-learned" else "unit-gaussian",
        images=images,
    )
