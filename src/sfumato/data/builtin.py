"""The data set that ships with Sfumato: the 10,000 test images of Fashion-MNIST.

28 x 28 grey photographs of garments in 10 classes of 1,000 (Xiao, Rasul and Vollgraf 2017,
arXiv:1708.07747), under the MIT licence beside the files. Every fifth image (index 4, 9, 14, ...)
is held out: 8,000 to train on, 2,000 to measure with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from sfumato.data.arrays import InMemory
from sfumato.data.files import Shaping
from sfumato.data.idx import open_idx
from sfumato.data.images import Images, Subset

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_IMAGES = Path(__file__).parent / "assets" / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"


def fashion_mnist(
    part: Literal["train", "test"], shaping: Shaping | None = None, *, labels: bool = True
) -> Images:
    """8,000 training or 2,000 held-out images, 1 x 28 x 28 uint8 unless `shaping` says other."""
    shaping = shaping or Shaping()
    array, numbers = open_idx(_IMAGES, want_labels=labels)
    whole = InMemory(
        array,
        numbers,
        CLASSES if labels else (),
        shaping.value_range,
        size=shaping.size,
        fit=shaping.fit,
        channels=shaping.channels,
        source="fashion-mnist",
    )
    index = np.arange(len(whole))
    held_out = index % 5 == 4
    return Subset(whole, index[held_out if part == "test" else ~held_out], f"fashion-mnist:{part}")
