"""What a benchmark measured is kept as it comes, for the same settings only."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import sampling_overhead
from _shared import Kept


def test_values_come_back_for_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    first = Kept(path, {"n": 3, "sizes": (1, 2)})
    first.add("a", [1.5, 2])
    again = Kept(path, {"n": 3, "sizes": (1, 2)})
    assert "a" in again
    assert "b" not in again
    assert again["a"] == [1.5, 2]
    with pytest.raises(SystemExit, match="remove it to begin anew"):
        Kept(path, {"n": 4, "sizes": (1, 2)})


def test_the_overhead_of_sampling_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, measured = sampling_overhead.TRY, []

    def overhead(solver: object, *_: object) -> tuple[float, float]:
        measured.append(solver)
        return 0.1 * len(measured), 0.001

    monkeypatch.setattr(sampling_overhead, "overhead", overhead)
    kept = Kept(tmp_path / "kept.json", {})
    kept.add("Heun, round 0", [0.4, 0.002])
    sampling_overhead.times(plan, kept)
    others = [s for name, s in sampling_overhead.SOLVERS.items() if name != "Heun"]
    assert measured[1:] == others  # after warming up
    sampling_overhead.times(plan, Kept(kept.path, {}))
    assert len(measured) == 1 + len(others)
    for steps in plan.grids:
        for count in plan.images:
            kept.add(f"peak of {count} in {steps}", 2_000_000)
    kept.add("busy", [0.1, 1.9])
    about = {"date": "today", "processor": "one", "cores": 2, "versions": {}}
    table = sampling_overhead.table(plan, kept, about)
    assert "| Heun | 400.0 | 2.00 | 0.50 % |" in table
    assert "busy before: 0.1, 1.9" in table
