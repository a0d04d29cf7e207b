"""Names of restoration's methods; no torch here, so that `--help` answers quickly."""

from __future__ import annotations

from typing import Literal, get_args

MethodName = Literal[
    "spectral", "moment-matching", "repaint", "replace", "ddrm", "dps", "pigdm", "diffpir", "daps"
]
METHODS: tuple[str, ...] = get_args(MethodName)
