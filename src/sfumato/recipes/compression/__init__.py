"""Images to compressed files and back, by a trained model."""

from sfumato.recipes.compression.packing import Effort, Packed, check_quality, pack, unpack
from sfumato.recipes.compression.preparing import (
    load_profile,
    prepare,
    profile_grid,
    steps_table,
)
from sfumato.recipes.compression.showing import (
    Preview,
    check_out,
    preview_sheet,
    previews,
    rmse_255,
    write_images,
)

__all__ = [
    "Effort",
    "Packed",
    "Preview",
    "check_out",
    "check_quality",
    "load_profile",
    "pack",
    "prepare",
    "preview_sheet",
    "previews",
    "profile_grid",
    "rmse_255",
    "steps_table",
    "unpack",
    "write_images",
]
