"""The guidance benchmark: every setting once, and what it asks of a sampler."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import guidance


def test_every_setting_has_its_own_row_and_one_is_without_guidance() -> None:
    found = guidance.settings([1.0, 1.5, 2.0, 3.0], (0.3, 5.0))
    names = [one.name for one in found]
    assert len(set(names)) == len(names) == 13
    assert [one.name for one in found if one.scale == 1] == ["no guidance"]
    inside = [one for one in found if one.high < 100]
    assert len(inside) == 6
    assert all("0.3 < sigma <= 5" in one.name and one.low == 0.3 for one in inside)
