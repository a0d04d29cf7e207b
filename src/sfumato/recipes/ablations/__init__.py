"""Ablations of the papers as lists of recipes, at a size that a CPU trains in minutes."""

from sfumato.recipes.ablations.ddpm import ddpm_ablation
from sfumato.recipes.ablations.edm import edm_ablation
from sfumato.recipes.ablations.scaling import scaling
from sfumato.recipes.ablations.table import Ablation, Cell

__all__ = ["Ablation", "Cell", "ddpm_ablation", "edm_ablation", "scaling"]
