"""sfumato evaluate --class: one class is drawn, and judged by the images of that class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation_helpers import image_folder, pooled_features, trained, trained_on_classes
from sfumato.cli import main

Capture = pytest.CaptureFixture[str]
COUNT = {"dark": 20, "light": 30}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pooled_features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and light images, in a sub-folder each."""
    draw = np.random.default_rng(0)
    names = [f"{kind}/{i:02d}" for kind, count in COUNT.items() for i in range(count)]
    means = np.repeat([60, 200], list(COUNT.values()))
    values = means[:, None, None] + draw.integers(-20, 20, (50, 8, 8))
    return Path(image_folder(tmp_path_factory.mktemp("images") / "all", values, names))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    return trained_on_classes(tmp_path_factory.mktemp("run"), images)


def evaluated(run: Path, features: Path, out: Path, *more: str) -> dict[str, Any]:
    words = ["evaluate", str(run), "-n", "8", "--metrics", "fd", "--threads", "1"]
    assert main([*words, "--features", str(features), "--out", str(out), *more]) == 0
    newest = max(out.glob("evaluation-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())


def test_the_reference_is_of_the_class_that_is_drawn(
    tmp_path: Path, run: Path, images: Path, features: Path, capsys: Capture
) -> None:
    whole = evaluated(run, features, tmp_path)["provenance"]["references"]
    assert {name: about["n"] for name, about in whole.items()} == {
        "test images": 50,
        "training images": 50,
    }
    for number, (name, count) in enumerate(COUNT.items()):
        for words in (name, name.upper(), str(number)):  # with features of the others in the cache
            found = evaluated(run, features, tmp_path, "--class", words)
            told = found["provenance"]["references"]
            for kind in ("test", "training"):
                assert told[f"{kind} images of class {name}"]["n"] == count
            assert not found["verdicts"]
        # The same numbers as by a folder that has nothing else.
        alone = evaluated(
            run, features, tmp_path / f"alone-{name}", "--class", name,
            "--data", str(images / name), "--training", str(images / name),
        )  # fmt: skip
        assert [row["value"] for row in alone["rows"]] == [row["value"] for row in found["rows"]]
        assert sum("fewer than two labelled" in note for note in alone["verdicts"]) == 2
        assert f"labelled {name!r}" in str(alone["verdicts"])
        assert "compared with all of them" in capsys.readouterr().out


def test_a_set_of_other_classes_is_compared_whole_and_without_the_others_column(
    tmp_path: Path, run: Path, images: Path, features: Path
) -> None:
    both = evaluated(run, features, tmp_path / "both", "--class", "dark")
    assert both["rows"][0]["real"] is not None
    bare = evaluated(
        run, features, tmp_path / "bare", "--class", "dark", "--data", str(images / "light")
    )
    told = bare["provenance"]["references"]
    assert told["test images"]["n"] == 30
    assert told["training images of class dark"]["n"] == 20
    # Dark training images are no measure of what could be had against light ones.
    assert bare["rows"][0]["real"] is None
    (note,) = bare["verdicts"]
    assert note.startswith("The test images have fewer than two labelled 'dark'")


def test_a_run_without_classes_has_none_to_draw(
    tmp_path: Path, features: Path, capsys: Capture
) -> None:
    words = ["evaluate", str(trained(tmp_path)), "-n", "4", "--features", str(features)]
    assert main([*words, "--class", "dark"]) == 2
    assert "was trained without classes" in capsys.readouterr().err
