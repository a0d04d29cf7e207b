"""`sfumato data clouds`: pairs on disk in the images' own format, and what it refuses."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.cli import main
from sfumato.data.clouds import Clouds
from sfumato.data.pixels import from_model, to_model
from sfumato.data.save import save_images
from sfumato.data.sources import open_images
from sfumato.recipes.cloud_pairs import RECORD, PairWriter

Capture = pytest.CaptureFixture[str]


def source(folder: Path, channels: int, dtype: str, count: int = 5) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(4)
    shape = (count, channels, 30, 22)
    if dtype == "float32":
        raw = rng.random(shape).astype(np.float32)
        folder.mkdir()
        np.save(folder / "set.npy", raw)
        return raw
    raw = rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype)
    form = open_images_of(raw).format
    save_images(raw, form, folder)
    return raw


def open_images_of(raw: np.ndarray[Any, Any]):
    from sfumato.data.arrays import InMemory

    return InMemory(raw, None, layout="NCHW", source="test")


def call(*arguments: object) -> int:
    try:
        return main([str(item) for item in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(
    ("channels", "dtype"), [(3, "uint8"), (1, "uint8"), (1, "uint16"), (3, "uint16"), (5, "uint16")]
)
def test_pairs_keep_depth_and_channels(
    tmp_path: Path, capsys: Capture, channels: int, dtype: str
) -> None:
    raw = source(tmp_path / "photos", channels, dtype)
    out = tmp_path / "pairs"
    assert call("data", "clouds", tmp_path / "photos", "-o", out, "--seed", 7, "-n", 4) == 0
    told = capsys.readouterr().out
    assert "under cloud: 30.0%" in told
    assert str(out / "pairs.png") in told
    seen, target = open_images(out / "input"), open_images(out / "target")
    assert seen.format == target.format == open_images_of(raw).format
    assert len(seen) == len(target) == 4
    assert np.array_equal(target.read(range(4)), raw[:4])
    masks = sorted((out / "mask").glob("*.png"))
    assert [p.stem for p in masks] == [Path(seen.names(i)).stem for i in range(4)]
    for i, path in enumerate(masks):
        field = Clouds().of((30, 22), 7 + i)
        mask = np.asarray(Image.open(path))
        assert np.array_equal(mask, field.mask().numpy() * np.uint8(255))
        expected = from_model(Clouds.over(to_model(raw[i], target.format), field), target.format)
        image = seen.read([i])[0]
        assert np.array_equal(image, expected)
        assert np.array_equal(image[:, mask == 0], raw[i][:, mask == 0])
    width = Image.open(out / "pairs.png").size[0]
    assert width == 3 * (22 * 2 + 2) + 2
    record = tomllib.loads((out / "clouds.toml").read_text())
    assert (record["seed"], record["count"], record["clouds"]["cover"]) == (7, 4, 0.3)


def test_floats_come_back_as_floats(tmp_path: Path) -> None:
    raw = source(tmp_path / "photos", 2, "float32")
    out = tmp_path / "pairs"
    array = tmp_path / "photos" / "set.npy"
    assert call("data", "clouds", array, "-o", out, "--value-range", 0, 1) == 0
    target = open_images(out / "target", value_range=(0, 1))
    assert target.format.dtype == "float32"
    assert np.array_equal(target.read(range(5)), raw)
    seen = open_images(out / "input", value_range=(0, 1)).read([2])[0]
    keep = ~Clouds().of((30, 22), 2).mask().numpy()
    np.testing.assert_allclose(seen[:, keep], raw[2][:, keep], atol=1e-6)


def test_names_of_files_stay_and_never_collide(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "north").mkdir(parents=True)
    for name in ("a.png", "a.bmp", "north/a.png"):
        Image.fromarray(np.full((8, 8), 90, np.uint8)).save(photos / name)
    assert call("data", "clouds", photos, "-o", tmp_path / "pairs") == 0
    found = sorted(
        p.relative_to(tmp_path / "pairs" / "input").as_posix()
        for p in (tmp_path / "pairs" / "input").rglob("*.png")
    )
    assert len(found) == 3
    assert {"a.png", "north/a.png"} < set(found)


def test_force_replaces_pairs_and_nothing_else(tmp_path: Path, capsys: Capture) -> None:
    source(tmp_path / "photos", 3, "uint8")
    out = tmp_path / "pairs"
    arguments = ["data", "clouds", tmp_path / "photos", "--size", 16, 16, "-o", out]
    assert call(*arguments) == 0
    capsys.readouterr()
    assert call(*arguments, "-n", 2) == 2
    assert "already holds files" in capsys.readouterr().err
    assert call(*arguments, "-n", 2, "--force") == 0
    assert len(open_images(out / "input")) == 2
    # The images to be clouded are never what is replaced.
    assert call("data", "clouds", out / "target", "-o", out, "--force") == 2
    assert "choose another --out" in capsys.readouterr().err
    assert len(open_images(out / "target")) == 2
    other = tmp_path / "other"
    (other / "input").mkdir(parents=True)
    (other / "input" / "mine.txt").write_text("mine")
    assert call("data", "clouds", tmp_path / "photos", "-o", other, "--force") == 2
    assert (other / "input" / "mine.txt").read_text() == "mine"


def test_pairs_that_were_cut_short_say_so_and_can_be_replaced(tmp_path: Path) -> None:
    source(tmp_path / "photos", 3, "uint8")
    images, out = open_images(tmp_path / "photos", size=(16, 16)), tmp_path / "pairs"
    next(PairWriter(images, Clouds(), out).write())
    record = tomllib.loads((out / RECORD).read_text())
    assert record["complete"] is False
    list(PairWriter(images, Clouds(), out, force=True).write())
    record = tomllib.loads((out / RECORD).read_text())
    assert (record["complete"], len(open_images(out / "input"))) == (True, 5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--cover", 0], "cover: expected between 0 and 1, both left out, got 0.0"),
        (["--cover", 1], "cover: expected"),
        (["--shadow", -1], "shadow: expected 0 (none) to 1 (black), got -1.0"),
        (["-n", 0], "-n must be at least 1"),
        (["--seed", -1], "seed must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, capsys: Capture, options: list[object], reason: str
) -> None:
    source(tmp_path / "photos", 1, "uint8", 1)
    out = tmp_path / "pairs"
    assert call("data", "clouds", tmp_path / "photos", "-o", out, *options) == 2
    assert reason in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert not out.exists()


def test_usage(tmp_path: Path, capsys: Capture) -> None:
    assert call("data") == 2
    assert call("data", "--help") == 0
    assert "clouds" in capsys.readouterr().out
    assert call("data", "cluods") == 2
    assert "did you mean 'clouds'?" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert call("data", "clouds", tmp_path / "empty") == 2
    assert "-o PAIRS" in capsys.readouterr().err
    assert call("data", "clouds", tmp_path / "empty", "-o", tmp_path / "out") == 1
    assert "expected images" in capsys.readouterr().err
    assert call("data", "clouds", tmp_path / "none", "-o", tmp_path / "out") == 1
    assert "no such data" in capsys.readouterr().err
