"""Numbers as a person writes them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds in words: 0.42 s, 9.5 s, 38 s, 7 min 05 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
