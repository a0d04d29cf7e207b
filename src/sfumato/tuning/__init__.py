"""Tuning: levels and weights of a few-step solver learned from the model's own trajectories.

No training data and no change of the network: a teacher of many steps says where the probability
flow leads; a path of levels is chosen by dynamic programming (`levels`), weights are fitted to it
in one pass (`fit`), and both are refined by gradients through the denoiser (`refine`).
"""

from sfumato.tuning.fit import fit, miss
from sfumato.tuning.levels import Moments, shortest_path, step_costs
from sfumato.tuning.refine import Refined, refine
from sfumato.tuning.teacher import Lesson, teach

__all__ = [
    "Lesson",
    "Moments",
    "Refined",
    "fit",
    "miss",
    "refine",
    "shortest_path",
    "step_costs",
    "teach",
]
