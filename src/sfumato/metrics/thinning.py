"""Which images stand for all of them: picked at random, but the same ones every time.

Every k-th image would not do: in a set that cycles through its classes, those are few classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spread(total: int, count: int) -> NDArray[np.int64]:
    """Return `count` of 0..total-1 (all, where fewer), ascending, picked at random but fixed.

    The pick of a smaller count is part of that of a larger one.
    """
    if count >= total:
        return np.arange(total, dtype=np.int64)
    return np.sort(_shuffled(total, 0)[:count])


def dealt(total: int, parts: int) -> NDArray[np.int64]:
    """Return a part [total], 0 to parts - 1, for each image: of equal sizes, random but fixed."""
    return _shuffled(total, 1) % parts


def _shuffled(total: int, purpose: int) -> NDArray[np.int64]:
    # No seed that somebody would shuffle their images with.
    return np.random.default_rng((7_450_386_219, purpose)).permutation(total).astype(np.int64)
