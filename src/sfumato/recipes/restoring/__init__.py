"""Damaged images of any size, read for a model and written back restored."""

from sfumato.recipes.restoring.damaged import Damaged, read_damaged, write_restored
from sfumato.recipes.restoring.scenes import SceneReader, SceneWriter

__all__ = ["Damaged", "SceneReader", "SceneWriter", "read_damaged", "write_restored"]
