"""What a benchmark measured is kept as it comes, for the same settings only."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recipe_helpers import array_file, open_run, small
from sfumato.data.pixels import pixel_format
from sfumato.recipes.loading import load

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import precision
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


def test_sets_in_both_precisions_are_kept_and_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = tmp_path / "run", array_file(tmp_path)
    for _ in open_run(run, data, small(steps=2)).steps():
        pass
    about = {"date": "today", "processor": "one", "cores": 2, "busy_cores": 0.5, "versions": {}}
    monkeypatch.setattr(precision, "machine", lambda: about)
    scored = []

    def score(images: np.ndarray) -> float:
        assert images.shape == (3, 8, 8, 1)
        scored.append(images)
        return float(len(scored) // 3)

    monkeypatch.setattr(precision, "FrechetScore", lambda _: score)

    def table(sets: int) -> str:
        command = ["--run", str(run), "--data", str(data), "--name", "x", "--results"]
        command += [str(tmp_path), "-n", "3", "--steps", "2", "--sets", str(sets)]
        monkeypatch.setattr(sys, "argv", ["precision.py", *command])
        precision.main()
        return (tmp_path / "precision_x.md").read_text("utf-8")

    two = table(2)
    assert len(scored) == 4
    three = table(3)
    assert len(scored) == 6
    assert [text in three for text in two.splitlines() if text.startswith("| 100")] == [True]
    # 0 and 0, 1 and 1, 1 and 2: a mean difference of 1/3 with this error, over this deviation.
    assert "the same seeds: +0.333, standard error 0.333: a shift of +50.00 %." in three
    assert "That is 0.58 of the standard deviation between sets of other seeds" in three
    # The same seed in the other precision is nearly the same picture, another seed is not.
    model = load(run)
    one, same, other = (images.transpose(0, 3, 1, 2) for images in scored[:3])
    near, far = precision.apart(model, one, same), precision.apart(model, one, other)
    assert near["levels"] < 2 < 20 < far["levels"]


def test_pictures_apart_are_counted_by_hand() -> None:
    first = np.zeros((2, 1, 2, 2), np.uint8)
    second = first.copy()
    second[1] = [[0, 1], [0, 51]]
    model = SimpleNamespace(format=pixel_format((1, 2, 2), "uint8", None))
    found = precision.apart(model, first, second)  # type: ignore[arg-type]
    decibels = 10 * np.log10(255**2 / ((1 + 51**2) / 4))
    assert found["levels"] == 52 / 8
    assert found["beyond"] == 1 / 8
    assert found["identical"] == 1
    assert found["psnr"] == found["lowest"] == pytest.approx(decibels, abs=1e-3)
