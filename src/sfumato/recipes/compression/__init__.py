"""Images to compressed files and back, by a trained model."""

from sfumato.recipes.compression.packing import Effort, Packed, pack, unpack
from sfumato.recipes.compression.preparing import load_profile, prepare, steps_table
from sfumato.recipes.compression.showing import (
    Preview,
    preview_sheet,
    previews,
    rmse_255,
    write_images,
)

__all__ = [
    "Effort",
    "Packed",
    "Preview",
    "load_profile",
    "pack",
    "prepare",
    "preview_sheet",
    "previews",
    "rmse_255",
    "steps_table",
    "unpack",
    "write_images",
]
