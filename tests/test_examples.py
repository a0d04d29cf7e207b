"""The examples run as a reader would run them, for less time, and do what they say."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name


def test_your_own_network_finds_the_ring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("your_own_network.py", "--steps", "600", monkeypatch=monkeypatch)
    found = re.findall(r"radius ([\d.]+) \+- ([\d.]+)", capsys.readouterr().out)
    assert len(found) == 3
    for mean, spread in found:
        assert float(mean) == pytest.approx(0.7, abs=0.06)
        assert float(spread) < 0.15


def test_train_on_arrays_writes_16_bit_bands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "blobs"
    run("train_on_arrays.py", "--minutes", "0.02", "--out", str(out), monkeypatch=monkeypatch)
    assert "2 x 16 x 16 uint16" in capsys.readouterr().out
    import sfumato

    written = sfumato.open_images(out / "new", alpha="keep")
    assert len(written) == 16
    assert written.format.dtype == "uint16"
    assert np.unique(written.read(range(16))).size > 256  # more than 8 bits' worth of values
