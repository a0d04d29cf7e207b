"""Scenes by windows: equal to the whole, in flat memory, written whole or not at all."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from PIL import Image
from rasterio.transform import from_origin

from sfumato.data.pixels import PixelFormat, pixel_format
from sfumato.errors import DataError
from sfumato.recipes.restoring.damaged import read_damaged
from sfumato.recipes.restoring.scenes import SceneReader, SceneWriter

H, W = 75, 101


def form_of(channels: int, dtype: Any) -> PixelFormat:
    return pixel_format((channels, 16, 16), dtype, (0.0, 1.0) if dtype == "float32" else None)


def pixels(channels: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(channels)
    if dtype == "float32":
        return rng.random((channels, H, W), np.float32)
    return rng.integers(1, np.iinfo(dtype).max, (channels, H, W), dtype)


def by_gdal(path: Path, image: np.ndarray, **options: Any) -> Path:
    channels, height, width = image.shape
    size = {"count": channels, "height": height, "width": width, "dtype": str(image.dtype)}
    where = {"crs": "EPSG:32633", "transform": from_origin(500_000, 4_649_000, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", **size, **where | options) as file:
        file.write(image)
    return path


TILED = {"tiled": True, "blockxsize": 32, "blockysize": 16}
FILES = [
    (1, "uint8", {"compress": "lzw", "nodata": 9}),
    (3, "uint8", TILED | {"compress": "deflate", "nodata": 9}),
    (3, "uint8", {"photometric": "minisblack", "blockysize": 7, "interleave": "pixel"}),
    (4, "uint8", TILED | {"photometric": "rgb", "alpha": "yes", "compress": "zstd"}),
    (4, "uint16", TILED | {"interleave": "band", "compress": "deflate", "predictor": 2}),
    (13, "uint16", TILED | {"interleave": "pixel", "endianness": "big", "nodata": 9}),
    (13, "float32", {"compress": "deflate", "predictor": 3, "interleave": "band", "nodata": 9}),
    (2, "float32", {"interleave": "band", "nodata": float("nan")}),
    (2, "float32", TILED | {"sparse_ok": True, "nodata": 0}),
]


def damage(image: np.ndarray, nodata: float | None) -> np.ndarray:
    if nodata is not None:
        image[:, 20:40, 10:50] = nodata
        image[0, 0, 0] = nodata
    return image


def same(reader: SceneReader, whole: Any, step: tuple[int, int]) -> None:
    """Every window of this size, and one of another, equals the whole's."""
    corners = [(y, x, *step) for y in range(0, H, step[0]) for x in range(0, W, step[1])]
    for top, left, height, width in [*corners, (13, 29, 40, 41), (H - 1, W - 1, 1, 1)]:
        bottom, right = min(top + height, H), min(left + width, W)
        tile = reader.read(top, left, bottom - top, right - left)
        at = (slice(None), slice(top, bottom), slice(left, right))
        assert torch.equal(tile.x, whole.x[at])
        assert torch.equal(tile.known.expand_as(tile.x), whole.known.expand_as(whole.x)[at])
        assert np.array_equal(tile.raw, whole.raw[at])
        assert tile.format.shape == tile.x.shape


@pytest.mark.parametrize(("channels", "dtype", "options"), FILES)
def test_windows_equal_the_whole(channels: int, dtype: Any, options: dict, tmp_path: Path):
    image = damage(pixels(channels, dtype), options.get("nodata"))
    path, form = by_gdal(tmp_path / "a.tif", image, **options), form_of(channels, dtype)
    if options.get("alpha"):
        form = form_of(3, "uint8")
    whole = read_damaged(path, form)
    with SceneReader(path, form) as reader:
        assert reader.flat
        assert reader.format == whole.format
        assert (reader.geo and reader.geo.tags) == (whole.geo and whole.geo.tags)
        assert reader.share() == pytest.approx(whole.share, abs=1e-12)
        same(reader, whole, (32, 48))


@pytest.mark.parametrize("name", ["a.npy", "a.png", "whole.tif", "pages.tif", "grey.tif"])
def test_other_files_by_windows(name: str, tmp_path: Path):
    image, path, flat = pixels(3, "uint8"), tmp_path / name, True
    form = form_of(3, "uint8")
    if name == "a.npy":
        np.save(path, image)
    elif name == "a.png":
        Image.fromarray(np.moveaxis(image, 0, -1)).save(path)
        flat = False
    elif name == "whole.tif":  # turned: as it is seen, as a photograph is
        turned = np.moveaxis(image[:, ::-1, ::-1], 0, -1)
        tifffile.imwrite(path, turned, photometric="rgb", extratags=[(274, 3, 1, 3, True)])
        flat = False
    elif name == "pages.tif":
        tifffile.imwrite(path, image, photometric="minisblack", metadata=None)
    else:
        tifffile.imwrite(path, image[0], photometric="miniswhite", compression="zlib")
        form = form_of(1, "uint8")
    np.save(tmp_path / "mask.npy", image[0] < 50)
    mask = Image.fromarray(((image[0] < 50) * 255).astype(np.uint8))
    mask.save(tmp_path / "mask.tif", compression="tiff_lzw")
    whole = read_damaged(path, form, mask=tmp_path / "mask.npy")
    assert 0 < whole.share < 1
    for which in ("mask.npy", "mask.tif"):
        with SceneReader(path, form, mask=tmp_path / which) as reader:
            assert reader.flat == flat
            same(reader, whole, (32, 48))


def test_a_jpeg_scene_by_windows_equals_what_gdal_reads(tmp_path: Path):
    image = np.add.outer(np.arange(H), np.arange(W)).astype(np.uint8)[None].repeat(3, 0)
    path = by_gdal(
        tmp_path / "a.tif", image, **TILED, compress="jpeg", photometric="ycbcr", interleave="pixel"
    )
    with rasterio.open(path) as file:
        want = file.read().astype(int)
    with SceneReader(path, form_of(3, "uint8")) as reader:
        assert reader.flat
        got = reader.read(5, 7, 60, 90).raw.astype(int)
    assert abs(got - want[:, 5:65, 7:97]).max() <= 1  # two builds of libjpeg


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".png"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_windows_written_make_the_image(suffix: str, channels: int, tmp_path: Path):
    image, form = damage(pixels(channels, "uint16"), 9), form_of(channels, "uint16")
    path = by_gdal(tmp_path / "a.tif", image, **TILED, nodata=9, compress="deflate")
    out = tmp_path / "new" / f"out{suffix}"
    with SceneReader(path, form) as reader, SceneWriter(out, reader.format, reader.geo) as writer:
        for top in range(0, H, 32):
            for left in range(0, W, 48):
                tile = reader.read(top, left, min(32, H - top), min(48, W - left))
                writer.write(tile.compose(tile.x * 0 - 1 + 18 / 65535), top, left)
        assert not out.exists()
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    back = read_damaged(out, form).raw
    want = image.copy()
    want[image == 9] = 10  # the restored 9 would be taken for missing
    assert np.array_equal(back, want)
    if suffix == ".tif":
        with rasterio.open(path) as before, rasterio.open(out) as after:
            assert (after.crs, after.transform, after.nodata) == (
                before.crs, before.transform, before.nodata,
            )  # fmt: skip
            assert np.array_equal(after.read(), want)


def test_a_failure_leaves_no_file(tmp_path: Path):
    form = form_of(13, "float32")
    for suffix in (".tif", ".npy"):
        with (
            pytest.raises(ValueError, match="at row -1"),
            SceneWriter(tmp_path / f"out{suffix}", form) as writer,
        ):
            writer.write(np.ones((13, 2, 2), np.float32), -1, 0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="a PNG holds 1 to 4 channels"):
        SceneWriter(tmp_path / "out.png", form)
    with pytest.raises(DataError, match=r"as \.tif, \.npy or \.png, got '\.jpg'"):
        SceneWriter(tmp_path / "out.jpg", form)
    assert not list(tmp_path.iterdir())


def test_windows_outside_are_refused(tmp_path: Path):
    np.save(tmp_path / "a.npy", pixels(3, "uint8"))
    form = form_of(3, "uint8")
    reader = SceneReader(tmp_path / "a.npy", form)
    for window in ((-1, 0, 4, 4), (0, 0, H + 1, 4), (0, W - 3, 4, 4), (0, 0, 0, 4)):
        with pytest.raises(ValueError, match=f"expected a window inside {H} x {W}"):
            reader.read(*window)
    with SceneWriter(tmp_path / "out.npy", reader.format) as writer:
        for raw, top in ((np.zeros((3, 4, 4)), 0), (np.zeros((3, 4, 4), np.uint8), H - 3)):
            with pytest.raises(ValueError, match="expected a raw window inside 3 x 75 x 101"):
                writer.write(raw, top, 0)
    with pytest.raises(ValueError, match="is closed"):
        writer.write(np.zeros((3, 4, 4), np.uint8), 0, 0)


def test_scenes_that_do_not_fit_are_refused(tmp_path: Path):
    path = by_gdal(tmp_path / "a.tif", pixels(3, "uint8"), compress="deflate")
    form = form_of(3, "uint8")
    with pytest.raises(DataError, match=r"1 x uint8, got 3 x uint8: add --channels 1"):
        SceneReader(path, form_of(1, "uint8"))
    np.save(tmp_path / "mask.npy", np.zeros((H, W - 1), bool))
    with pytest.raises(DataError, match=f"mask of the image's size, {H} x {W} .* got {H} x 100"):
        SceneReader(path, form, mask=tmp_path / "mask.npy")
    with pytest.raises(DataError, match=r"expected nodata to be a value"):
        SceneReader(path, form, nodata=-1)
    with pytest.raises(DataError, match="there is none"):
        SceneReader(tmp_path / "none.tif", form)
    (tmp_path / "cut.tif").write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="may be damaged or cut short"):
        SceneReader(tmp_path / "cut.tif", form)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].dataoffsets[0]
    data[at : at + 100] = bytes(100)
    (tmp_path / "bad.tif").write_bytes(data)
    reader = SceneReader(tmp_path / "bad.tif", form)
    with pytest.raises(DataError, match=r"bad\.tif damaged near row 0, column 0"):
        reader.read(0, 0, 8, 8)


@pytest.mark.parametrize("kind", ["a.npy", "flat.tif", "tiled.tif"])
def test_memory_is_that_of_a_window(kind: str, tmp_path: Path):
    """200 MB of scene, windows of 1 MB."""
    path, shape = tmp_path / kind, (2, 5000, 5000)
    if kind == "a.npy":
        np.lib.format.open_memmap(path, "w+", np.float32, shape).flush()
    elif kind == "flat.tif":
        options = {"photometric": "minisblack", "planarconfig": "separate"}
        tifffile.memmap(path, shape=shape, dtype=np.float32, **options).flush()
    else:
        size = {"count": 2, "height": 5000, "width": 5000, "dtype": "float32"}
        tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
        with rasterio.open(path, "w", driver="GTiff", **size, **tiles) as file:
            for band in (1, 2):
                file.write(np.full((5000, 5000), 0.5, np.float32), band)
    form = form_of(2, "float32")
    out = tmp_path / ("out.npy" if kind == "a.npy" else "out.tif")
    tracemalloc.start()
    try:
        with SceneReader(path, form) as reader:
            assert reader.flat
            writer = SceneWriter(out, reader.format)
            for corner in range(0, 4500, 1500):
                tile = reader.read(corner, corner, 350, 350)
                writer.write(tile.compose(tile.x), corner, corner)
        _, peak = tracemalloc.get_traced_memory()
        assert next(tmp_path.glob(".out*")).stat().st_size >= 200_000_000
        writer.discard()
    finally:
        tracemalloc.stop()
    assert 1e6 < peak < 30e6  # 27 tiles of half a megabyte are met and kept
