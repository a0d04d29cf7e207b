"""Images in and out: readers, pixel conversion, writing, and the training stream.

Names are resolved on first use, so importing this package loads neither torch nor pillow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfumato.data.arrays import InMemory
    from sfumato.data.images import Images, Subset
    from sfumato.data.loader import Batch, Batches, one_pass
    from sfumato.data.pairs import Pairs, open_pairs
    from sfumato.data.pixels import PixelFormat, from_model, to_model
    from sfumato.data.reader import as_arrays
    from sfumato.data.save import default_suffix, save_image, save_images
    from sfumato.data.shards.opening import open_shards
    from sfumato.data.sources import open_images

__all__ = [
    "Batch",
    "Batches",
    "Images",
    "InMemory",
    "Pairs",
    "PixelFormat",
    "Subset",
    "as_arrays",
    "default_suffix",
    "from_model",
    "one_pass",
    "open_images",
    "open_pairs",
    "open_shards",
    "save_image",
    "save_images",
    "to_model",
]

_HOME = {
    "InMemory": "arrays",
    "Images": "images",
    "Subset": "images",
    "as_arrays": "reader",
    "Batch": "loader",
    "Batches": "loader",
    "one_pass": "loader",
    "Pairs": "pairs",
    "open_pairs": "pairs",
    "PixelFormat": "pixels",
    "from_model": "pixels",
    "to_model": "pixels",
    "default_suffix": "save",
    "save_image": "save",
    "save_images": "save",
    "open_images": "sources",
    "open_shards": "shards.opening",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
