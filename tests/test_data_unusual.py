"""Images that no image file holds: their range, their classes, samples read back as data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from sfumato.cli import main
from sfumato.data.arrays import InMemory
from sfumato.data.pixels import range_option, to_model
from sfumato.data.save import save_images
from sfumato.data.sources import class_names, open_images
from sfumato.errors import DataError

RNG = np.random.default_rng(0)
SCANS = RNG.integers(-1000, 3001, (4, 12, 20), np.int16)
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64"])
def test_whole_numbers_in_a_stated_range_are_read(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "scans.npy", SCANS.astype(dtype))
    images = open_images(tmp_path / "scans.npy", value_range=(-1000, 3000))
    x = to_model(images.read(range(4)), images.format)
    np.testing.assert_allclose(x[:, 0].numpy(), (SCANS + 1000) / 2000 - 1, atol=1e-6)
    with pytest.raises(DataError, match="stated range"):
        open_images(tmp_path / "scans.npy", value_range=(0, 3000))


def test_a_folder_of_signed_tiffs_is_read(tmp_path: Path) -> None:
    for i, scan in enumerate(SCANS):
        tifffile.imwrite(tmp_path / f"{i}.tif", scan)
    images = open_images(tmp_path, value_range=(-1000, 3000))
    np.testing.assert_array_equal(images.read(range(4))[:, 0], SCANS)
    with pytest.raises(DataError, match=f"--value-range {SCANS.min()} {SCANS.max()}$"):
        open_images(tmp_path)


def test_info_says_the_span_and_what_to_state(tmp_path: Path, capsys: Capture) -> None:
    scans = np.linspace(-3, 8, 4 * 12 * 20).reshape(4, 12, 20)
    np.save(tmp_path / "scans.npy", scans)
    assert main(["info", str(tmp_path / "scans.npy")]) == 0
    printed = capsys.readouterr().out
    assert "4 images, 1 x 12 x 20 float32 in [-3, 8]" in printed
    assert "--value-range -3 8\n" in printed
    assert "no class labels" in printed
    np.save(tmp_path / "labels.npy", np.array([0, 1, 2, 1]))
    assert main(["info", str(tmp_path / "scans.npy")]) == 0
    assert "3 classes, learned with --classes: 0, 1, 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("low", "high", "option"),
    [
        (-3.899418, 3.066041, "-3.9 3.07"),
        (-1024.0, 3071.0, "-1024 3071"),
        (0.0, 1234567.0, "0 1234567"),
        (-0.5, 12345.6, "-100 12400"),
        (1e-7, 2.5, "0 2.5"),
        (7.0, 7.0, "7 8"),
    ],
)
def test_the_range_to_state_holds_the_span(low: float, high: float, option: str) -> None:
    assert range_option(low, high) == f"--value-range {option}"
    said = [float(word) for word in option.split()]
    assert said[0] <= low <= high <= said[1]


def test_info_names_the_classes_of_sub_folders(tmp_path: Path, capsys: Capture) -> None:
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        Image.fromarray(RNG.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / name / "a.png")
    assert class_names(tmp_path) == ("cat", "dog")
    assert main(["info", str(tmp_path)]) == 0
    assert "2 classes, learned with --classes: cat, dog" in capsys.readouterr().out


def test_one_image_read_as_many_is_told() -> None:
    told = InMemory(np.zeros((24, 20, 5), np.uint8)).describe()
    assert "read as 24 grey images of 20 x 5" in told
    assert "24 x 20 with 5 channels" in told
    assert "read as" not in InMemory(np.zeros((24, 20, 18), np.uint8)).describe()
    assert "read as" not in InMemory(np.zeros((24, 8, 8), np.uint8)).describe()
    with pytest.raises(DataError, match="24 x 20 with 3 channels"):
        InMemory(np.zeros((24, 20, 3), np.uint8))
    assert len(InMemory(np.zeros((24, 20, 3), np.uint8)[..., None])) == 24


@pytest.mark.parametrize("shape", [(5, 12, 20), (1, 12, 20)])
def test_arrays_as_written_are_read_back(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    stack = RNG.random((3, *shape), np.float32)
    form = InMemory(stack, layout="NCHW").format
    save_images(stack, form, tmp_path, suffix=".npy")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "grid.png")
    (tmp_path / "sample.toml").write_text("images = 3\n")
    images = open_images(tmp_path)
    assert images.format.shape == shape
    np.testing.assert_array_equal(images.read(range(3)), stack)


def test_sheets_count_only_where_samples_lie_beside_them(tmp_path: Path) -> None:
    for folder in (tmp_path / "drawn", tmp_path / "own"):
        folder.mkdir()
        for name in ("000000.png", "grid.png", "progressive.png"):
            Image.fromarray(RNG.integers(0, 256, (8, 8), np.uint8)).save(folder / name)
    (tmp_path / "drawn" / "sample.toml").write_text("images = 1\n")
    images = open_images(tmp_path)
    assert [images.names(i) for i in range(len(images))] == [
        "drawn/000000.png", "own/000000.png", "own/grid.png", "own/progressive.png",
    ]  # fmt: skip
    assert len(open_images(tmp_path / "drawn")) == 1


def test_a_folder_of_stacks_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 1, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"give the \.npy itself"):
        open_images(tmp_path)
