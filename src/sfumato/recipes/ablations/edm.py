"""EDM's Table 2: from Score-SDE's training (A) step by step to EDM's (F).

For the VP formulation with the DDPM++ network and for VE with NCSN++, all sampled by EDM's
deterministic sampler. What the paper counts in images of its long training (ramps, averages) keeps
its share of the short one; batch sizes are a sixteenth of the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sfumato.networks.config import UNetConfig
from sfumato.recipes.ablations.table import Ablation, Cell, check_length, known
from sfumato.recipes.config import EmaConfig, NoiseConfig, OptimizerConfig, ProcessConfig, Recipe
from sfumato.recipes.presets import recipe
from sfumato.recipes.sampler_config import SamplerConfig

EDM_ROWS = {
    "A": "baseline (Score-SDE)",
    "B": "+ hyper-parameters",
    "C": "+ capacity moved to high resolution",
    "D": "+ EDM's preconditioning",
    "E": "+ EDM's loss and noise levels",
    "F": "+ non-leaking augmentation",
}
EDM_COLUMNS = {"vp": "VP, DDPM++", "ve": "VE, NCSN++"}
_BATCH = {"A": 8}
_LATER_BATCH = 32
_EDM_LENGTH, _SDE_LENGTH = 200e6, 1.3e6 * 128


def edm_ablation(
    images: int, rows: Sequence[str] = (), columns: Sequence[str] = (), width: int = 16
) -> Ablation:
    """Return EDM's configurations, each trained on so many images, with networks of `width`.

    Raises ConfigError for rows or columns that the table lacks.
    """
    check_length(images)
    chosen = known(rows, EDM_ROWS, "row"), known(columns, EDM_COLUMNS, "column")
    cells = [
        Cell(row, column, _edm_recipe(row, column, images, width), f"{row}-{column}")
        for row in chosen[0]
        for column in chosen[1]
    ]
    about = "EDM's Table 2 at a small size; lower is nearer to the real images."
    return Ablation("EDM's configurations A to F", about, EDM_ROWS, EDM_COLUMNS, cells)


def _edm_recipe(row: str, column: str, images: int, width: int) -> Recipe:
    """The recipe of a row: everything of the rows above it, too."""
    score_sde = recipe(column)
    assert isinstance(score_sde.network, UNetConfig)
    later = row >= "B"
    share = images / (_EDM_LENGTH if later else _SDE_LENGTH)
    if later:
        optimizer = OptimizerConfig(learning_rate=1e-3, ramp_images=int(10e6 * share))
        ema = EmaConfig(kind="half-life", halflife_images=max(1, int(500e3 * share)))
    else:
        ramp = int(5_000 * 128 * share)
        optimizer = OptimizerConfig(learning_rate=2e-4, ramp_images=ramp, clip=1.0)
        # Score-SDE's decay per step of 128 images, as a half-life in images.
        decay = {"vp": 0.9999, "ve": 0.999}[column]
        ema = EmaConfig(kind="constant", decay=decay ** (_BATCH["A"] / (128 * share)))
    network = replace(
        score_sde.network,
        width=width,
        multipliers=(2, 2, 2) if row >= "C" else (1, 2, 2, 2),
        blocks=1,
        dropout=0.13 if later else 0.1,
    )
    made = replace(
        score_sde,
        name=f"edm-{row}-{column}",
        network=network,
        optimizer=optimizer,
        ema=ema,
        images=images,
        batch=_LATER_BATCH if later else _BATCH["A"],
        flip=True,
        sampler=_sampler(column, row),
    )
    if row >= "D":
        low, high = (0.01, 50.0) if column == "ve" and row == "D" else (0.002, 80.0)
        made = replace(made, predicts="edm", process=ProcessConfig(kind="edm", low=low, high=high))
    if row >= "E":
        made = replace(made, objective="edm", noise=NoiseConfig(antithetic=False))
    return replace(made, augment=0.12) if row >= "F" else made


def _sampler(column: str, row: str) -> SamplerConfig:
    """EDM's deterministic sampler of 18 steps, within the levels that were trained."""
    vp = column == "vp" and row < "D"
    return SamplerConfig(
        solver="heun", grid="karras", steps=18,
        sigma_min=0.002 if vp else None, sigma_max=80.0 if vp else None,
    )  # fmt: skip
