"""Folders of images that differ: what there is can be told before anything is chosen."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.cli import main
from sfumato.data.survey import survey
from sfumato.errors import DataError

Capture = pytest.CaptureFixture[str]


def write(folder: Path, shapes: list[tuple[int, ...]], dtype: str = "uint8") -> None:
    for i, shape in enumerate(shapes):
        Image.fromarray(np.zeros(shape, dtype)).save(folder / f"{dtype}-{i}.png")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    write(tmp_path, [(16, 12, 3)] * 3 + [(10, 20, 3), (9, 9)])
    return tmp_path


def test_every_size_and_channel_count_is_counted(mixed: Path) -> None:
    found = survey(mixed)
    assert found.mixed
    assert found.sizes == {(16, 12): 3, (10, 20): 1, (9, 9): 1}
    assert found.channels == {3: 4, 1: 1}
    assert found.dtypes == {"uint8": 5}
    assert found.unreadable == ()


def test_info_on_images_of_several_sizes(mixed: Path, capsys: Capture) -> None:
    assert main(["info", str(mixed)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"images +5\n", printed)
    assert "16 x 12 in 3, 10 x 20 in 1, 9 x 9 in 1 (height x width)" in printed
    assert "3 in 4, 1 in 1" in printed
    # What it advises is what training takes.
    assert "--channels 3 --size 8 8" in printed


def test_info_in_a_zip_and_of_several_depths(mixed: Path, tmp_path: Path, capsys: Capture) -> None:
    write(mixed, [(16, 12)], "uint16")
    (mixed / "broken.png").write_bytes(b"no image")
    archive = mixed.parent / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in mixed.iterdir():
            file.write(path, path.name)
    assert main(["info", str(archive)]) == 0
    printed = capsys.readouterr().out
    assert "uint8 in 5, uint16 in 1" in printed
    assert "one bit depth" in printed
    assert re.search(r"unreadable +1: broken.png", printed)


def test_what_is_wrong_otherwise_stays_an_error(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path, [(8, 8, 3)] * 2)
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert main(["info", str(tmp_path)]) == 1
    assert "1 of 3 images cannot be read" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected images"):
        survey(tmp_path / "empty")
    assert main(["info", str(tmp_path / "empty")]) == 1


def test_many_kinds_are_summed_up(tmp_path: Path) -> None:
    write(tmp_path, [(4 + i, 5) for i in range(11)])
    assert survey(tmp_path).rows()["sizes"].endswith("and 3 others (height x width)")
