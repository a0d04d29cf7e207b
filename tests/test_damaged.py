"""Damaged images: what is unknown in them, exact values, georeference, and clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from PIL import Image
from rasterio.transform import from_origin

from sfumato.data.pixels import PixelFormat, pixel_format, to_model
from sfumato.data.save import save_image
from sfumato.errors import DataError, MissingExtraError
from sfumato.recipes.restoring.damaged import Damaged, read_damaged, write_restored

H, W = 37, 53


def form_of(channels: int, dtype: Any) -> PixelFormat:
    return pixel_format((channels, 16, 16), dtype, (0.0, 1.0) if dtype == "float32" else None)


RGB = form_of(3, "uint8")
GREY = form_of(1, "uint8")
FLOAT = form_of(2, "float32")


def pixels(channels: int, dtype: str, low: float = 0) -> np.ndarray:
    rng = np.random.default_rng(channels)
    if dtype == "float32":
        return rng.random((channels, H, W), np.float32)
    return rng.integers(int(low), np.iinfo(dtype).max, (channels, H, W), dtype, endpoint=True)


def saved(array: np.ndarray, path: Path) -> Path:
    """Write [C, H, W] as it is: .npy, .tif by tifffile, or .png by pillow (alpha by its mode)."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif" and len(array) > 1:
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig="separate")
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array[0])
    else:
        Image.fromarray(np.moveaxis(array, 0, -1).squeeze()).save(path)
    return path


def unknown(damaged: Damaged) -> np.ndarray:
    return ~damaged.known.numpy()


def boxes(*corners: tuple[int, int]) -> np.ndarray:
    out = np.zeros((1, H, W), bool)
    for y, x in corners:
        out[:, y : y + 4, x : x + 3] = True
    return out


# --- what is unknown ---------------------------------------------------------------------------


def test_an_intact_image_is_known_everywhere(tmp_path: Path):
    image = pixels(3, "uint8")
    got = read_damaged(saved(image, tmp_path / "a.png"), RGB)
    assert got.known.dtype == torch.bool
    assert got.known.shape == (1, H, W)
    assert got.share == 0
    assert (got.format.height, got.format.width, got.format.channels) == (H, W, 3)
    assert (got.name, got.geo) == ("a.png", None)
    assert np.allclose(got.x, image / 127.5 - 1, atol=1e-7)


MASKS = {
    "grey.png": lambda m: Image.fromarray(m[0].astype(np.uint8) * 255),
    "faint.png": lambda m: Image.fromarray(m[0].astype(np.uint8)),
    "bits.png": lambda m: Image.fromarray(m[0]),
    "rgb.png": lambda m: Image.fromarray(np.stack([m[0].astype(np.uint8) * 255] * 3, -1)),
    "rgb.bmp": lambda m: Image.fromarray(np.stack([m[0].astype(np.uint8) * 255] * 3, -1)),
    "grey.tif": lambda m: Image.fromarray(m[0].astype(np.uint8) * 255),
    "bool.npy": lambda m: m[0],
    "float.npy": lambda m: m.astype(np.float32),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_says_what_is_unknown(name: str, tmp_path: Path):
    where, mask = boxes((0, 0), (30, 49)), tmp_path / name
    content = MASKS[name](where)
    if isinstance(content, np.ndarray):
        np.save(mask, content)
    else:
        content.save(mask)
    got = read_damaged(saved(pixels(3, "uint8"), tmp_path / "a.png"), RGB, mask=mask)
    assert np.array_equal(unknown(got), where)
    assert not got.x.numpy()[:, where[0]].any()
    assert got.share == pytest.approx(where.mean())


@pytest.mark.parametrize(("bands", "form"), [(4, RGB), (2, GREY)])
def test_less_than_opaque_is_unknown(bands: int, form: PixelFormat, tmp_path: Path):
    image = pixels(bands, "uint8")
    image[-1] = 255
    image[-1, 3, 4], image[-1, 5, 6], image[-1, 7, 8] = 0, 128, 254
    got = read_damaged(saved(image, tmp_path / "a.png"), form)
    assert [tuple(p) for p in np.argwhere(unknown(got)[0])] == [(3, 4), (5, 6), (7, 8)]
    known = got.known[0].numpy()
    assert np.array_equal(got.raw[:, known], image[:-1][:, known])


def test_alpha_of_a_model_with_alpha_is_a_channel(tmp_path: Path):
    image = pixels(4, "uint8")
    got = read_damaged(saved(image, tmp_path / "a.png"), form_of(4, "uint8"))
    assert got.share == 0
    assert np.array_equal(got.raw, image)


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_nan_is_unknown_where_it_stands(suffix: str, tmp_path: Path):
    image = pixels(2, "float32")
    image[0, 1, 2] = image[:, 5, 6] = np.nan
    got = read_damaged(saved(image, tmp_path / f"a{suffix}"), FLOAT)
    assert np.array_equal(unknown(got), np.isnan(image))  # [C, H, W]: the channels differ
    assert got.x.isfinite().all()
    assert got.share == pytest.approx(3 / image.size)


def test_nan_in_every_channel_needs_one_map(tmp_path: Path):
    image = pixels(2, "float32")
    image[:, 5, 6] = np.nan
    got = read_damaged(saved(image, tmp_path / "a.npy"), FLOAT)
    assert got.known.shape == (1, H, W)
    assert np.argwhere(unknown(got)).tolist() == [[0, 5, 6]]


def test_nodata_of_the_user_goes_before_the_file_s_own(tmp_path: Path):
    image = pixels(1, "uint16", low=10)
    image[0, 1, 2], image[0, 3, 4] = 0, 7
    form, path = form_of(1, "uint16"), tmp_path / "a.tif"
    tifffile.imwrite(path, image[0], extratags=[(42113, 2, 0, "7", True)])
    assert np.argwhere(unknown(read_damaged(path, form))).tolist() == [[0, 3, 4]]
    assert np.argwhere(unknown(read_damaged(path, form, nodata=0))).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("dtype", "value"), [("float64", -1.7976931348623157e308), ("int16", -32768)]
)
def test_nodata_of_kinds_that_become_float32(dtype: str, value: float, tmp_path: Path):
    image = np.zeros((H, W), dtype)
    image[2, 3] = value
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, extratags=[(42113, 2, 0, repr(value), True)])
    got = read_damaged(path, form_of(1, "float32"))
    assert np.argwhere(unknown(got)).tolist() == [[0, 2, 3]]


def test_a_tag_that_no_pixel_can_have_is_ignored(tmp_path: Path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels(1, "uint8")[0], extratags=[(42113, 2, 0, "-9999", True)])
    assert read_damaged(path, GREY).share == 0


def test_all_sources_add_up(tmp_path: Path):
    image = np.concatenate([pixels(2, "float32"), np.ones((1, H, W), np.float32)])
    image[0, 0, 0], image[1, 1, 1], image[2, 2, 2] = np.nan, -9999, 0
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, image, photometric="minisblack", planarconfig="separate", extrasamples=[0, 2]
    )
    np.save(tmp_path / "mask.npy", boxes((10, 10)))
    got = read_damaged(path, FLOAT, mask=tmp_path / "mask.npy", nodata=-9999)
    want = np.repeat(boxes((10, 10)), 2, axis=0)
    want[0, 0, 0] = want[1, 1, 1] = want[:, 2, 2] = True
    assert np.array_equal(unknown(got), want)


def test_grey_and_rgb_convert_where_asked(tmp_path: Path):
    grey = saved(pixels(1, "uint8", low=1), tmp_path / "grey.png")
    assert torch.equal(*read_damaged(grey, RGB, channels=3).x[:2])
    colour = pixels(3, "uint8", low=1)
    colour[1, 4, 5] = 0
    got = read_damaged(saved(colour, tmp_path / "rgb.png"), GREY, channels=1, nodata=0)
    assert np.argwhere(unknown(got)).tolist() == [[0, 4, 5]]
    luma = np.rint(np.tensordot([0.299, 0.587, 0.114], colour.astype(float), 1))
    luma[4, 5] = 0
    assert np.array_equal(got.raw[0], luma)


# --- there and back ----------------------------------------------------------------------------

KEPT = [
    (channels, dtype, suffix)
    for channels in (1, 2, 3, 4, 13)
    for dtype in ("uint8", "uint16", "float32")
    for suffix in (".png", ".tif", ".npy")
    if suffix != ".png" or (channels <= 4 and dtype != "float32")
]


@pytest.mark.parametrize(("channels", "dtype", "suffix"), KEPT)
def test_values_come_back_exactly(channels: int, dtype: str, suffix: str, tmp_path: Path):
    image, form = pixels(channels, dtype, low=1), form_of(channels, dtype)
    path = save_image(image, form, tmp_path / f"a{suffix}")
    np.save(tmp_path / "mask.npy", boxes((20, 20)))
    got = read_damaged(path, form, mask=tmp_path / "mask.npy")
    out = write_restored(got.compose(got.x * 0 + 1), got, tmp_path / "new" / f"out{suffix}")
    back = read_damaged(out, form).raw
    hole = boxes((20, 20))[0]
    assert str(back.dtype) == dtype
    assert np.array_equal(back[:, ~hole], image[:, ~hole])
    assert (back[:, hole] == form.high).all()
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def scene(path: Path, image: np.ndarray, **options: Any) -> Path:
    """A GeoTIFF written by GDAL."""
    channels, height, width = image.shape
    size = {"count": channels, "height": height, "width": width, "dtype": str(image.dtype)}
    where = {"crs": "EPSG:32633", "transform": from_origin(500_000.5, 4_649_000, 10, 20)}
    with rasterio.open(path, "w", driver="GTiff", **size, **where | options) as file:
        file.write(image)
        for band in range(channels):
            file.set_band_description(band + 1, f"Bänd {band}")
            file.update_tags(band + 1, STATISTICS_MEAN="3", wavelength=f"{band}")
        file.update_tags(acquired="2024-05-01", AREA_OR_POINT="Point")
    return path


GEO = [
    (1, "uint8", {"nodata": 0}),
    (3, "uint8", {"compress": "lzw", "nodata": 255}),
    (4, "uint16", {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}),
    (13, "uint16", {"interleave": "band", "nodata": 65535}),
    (13, "float32", {"nodata": -9999, "compress": "deflate", "predictor": 3, "tiled": True,
                     "blockxsize": 16, "blockysize": 32}),
    (2, "float32", {"nodata": float("nan"), "crs": "EPSG:4326", "BIGTIFF": "YES"}),
    (2, "float32", {"crs": "+proj=laea +lat_0=52 +lon_0=10 +ellps=GRS80 +units=m",
                    "transform": rasterio.Affine(2, 0.5, 10, 0.25, -3, 20)}),
]  # fmt: skip


@pytest.mark.parametrize(("channels", "dtype", "options"), GEO)
def test_a_georeference_is_kept(channels: int, dtype: str, options: dict, tmp_path: Path):
    image = pixels(channels, dtype, low=1)
    nodata = options.get("nodata")
    if nodata is not None:
        image[image == nodata] -= 1
        image[:, 4:9, 5:7] = nodata
    path = scene(tmp_path / "a.tif", image, **options)
    got = read_damaged(path, form_of(channels, dtype))
    hole = np.zeros((1, H, W), bool)
    hole[:, 4:9, 5:7] = nodata is not None
    assert np.array_equal(unknown(got), hole)
    out = write_restored(got.compose(torch.ones_like(got.x)), got, tmp_path / "out.tif")
    with rasterio.open(path) as before, rasterio.open(out) as after:
        assert after.crs == before.crs
        assert after.transform == before.transform
        assert after.descriptions == before.descriptions
        assert after.dtypes == before.dtypes
        assert np.array_equal([after.nodata], [before.nodata], equal_nan=nodata is not None)
        assert after.tags()["acquired"] == "2024-05-01"
        assert after.tags()["AREA_OR_POINT"] == before.tags()["AREA_OR_POINT"]
        assert after.tags(channels) == {"wavelength": f"{channels - 1}"}
        values = after.read()
    assert np.array_equal(values[:, ~hole[0]], image[:, ~hole[0]])
    if nodata is not None and nodata == nodata:
        assert not (values == nodata).any()  # a restored 255 is no hole again
        assert read_damaged(out, form_of(channels, dtype)).share == 0


def test_tags_of_bands_that_are_gone_are_too(tmp_path: Path):
    image = pixels(4, "uint8", low=1)
    image[3] = 255
    path = scene(tmp_path / "a.tif", image, photometric="RGB", alpha="yes")
    got = read_damaged(path, RGB)
    assert got.share == 0
    with rasterio.open(write_restored(got.raw, got, tmp_path / "rgb.tif")) as file:
        assert file.descriptions == ("Bänd 0", "Bänd 1", "Bänd 2")
    grey = read_damaged(path, GREY, channels=1)
    with rasterio.open(write_restored(grey.raw, grey, tmp_path / "grey.tif")) as file:
        assert file.descriptions == (None,)
        assert file.crs == "EPSG:32633"


def test_a_georeferenced_image_may_become_a_png(tmp_path: Path):
    image = pixels(3, "uint8")
    got = read_damaged(scene(tmp_path / "a.tif", image), RGB)
    out = write_restored(got.raw, got, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(out)), np.moveaxis(image, 0, -1))


# --- errors ------------------------------------------------------------------------------------


def refused(expected: str, path: Path, form: PixelFormat, **options: Any) -> None:
    with pytest.raises(DataError) as caught:
        read_damaged(path, form, **options)
    assert expected in str(caught.value)


def test_another_format_is_refused(tmp_path: Path):
    rgb = saved(pixels(3, "uint8"), tmp_path / "rgb.png")
    refused(
        "rgb.png: expected the channels and depth of the model's images, 1 x uint8, got 3 x uint8: "
        "add --channels 1", rgb, GREY,
    )  # fmt: skip
    refused("got --channels 1; say --channels 3 or leave it out", rgb, RGB, channels=1)
    refused("3 x uint16, got 3 x uint8: give uint16 images", rgb, form_of(3, "uint16"))
    refused("not 3 channels", rgb, form_of(13, "uint8"), channels=13)
    bands = saved(pixels(5, "uint8"), tmp_path / "bands.tif")
    refused("only grey and RGB convert into each other, not 5 channels", bands, RGB, channels=3)


def test_values_outside_the_model_s_range_are_refused(tmp_path: Path):
    image = pixels(2, "float32")
    image[0, 0, 0] = -9999
    path = saved(image, tmp_path / "a.npy")
    refused("inside the model's range [0, 1], got [-9999, ", path, FLOAT)
    refused("name the one that stands for missing pixels as nodata", path, FLOAT)
    image[0, 0, 0] = np.inf
    refused("inf]; bring the values", saved(image, path), FLOAT)
    twelve = pixel_format((1, 16, 16), "uint16", (0, 4095))
    refused("range [0, 4095]", saved(pixels(1, "uint16"), tmp_path / "a.tif"), twelve)


@pytest.mark.parametrize("value", [-9999, 256, 0.5, float("nan")])
def test_nodata_that_cannot_occur_is_refused(value: float, tmp_path: Path):
    path = saved(pixels(3, "uint8"), tmp_path / "a.png")
    refused("expected nodata to be a value that uint8 pixels can have, a whole number from 0 to "
            f"255, got {value:g}", path, RGB, nodata=value)  # fmt: skip


def test_masks_that_do_not_fit_are_refused(tmp_path: Path):
    path = saved(pixels(3, "uint8"), tmp_path / "a.png")
    mask = saved(boxes((0, 0))[:, :-1].astype(np.uint8), tmp_path / "small.png")
    refused(f"small.png: expected a mask of the image's size, {H} x {W} (height x width of a.png), "
            f"got {H - 1} x {W}", path, RGB, mask=mask)  # fmt: skip
    mask = saved(pixels(3, "uint8"), tmp_path / "colour.png")
    refused("got colours; save it as a grey PNG", path, RGB, mask=mask)
    mask = saved(pixels(2, "uint8"), tmp_path / "two.npy")
    refused("got 2 channels", path, RGB, mask=mask)
    mask = saved(np.full((1, H, W), np.nan), tmp_path / "nan.npy")
    refused("numbers without NaN", path, RGB, mask=mask)
    mask = saved(np.zeros(5), tmp_path / "flat.npy")
    refused("got shape (5,)", path, RGB, mask=mask)
    refused("expected a mask as .png, .tif, .tiff, .bmp, .npy, got '.jpg'; save it as PNG", path,
            RGB, mask=tmp_path / "mask.jpg")  # fmt: skip


def test_files_that_cannot_be_read_are_refused(tmp_path: Path):
    refused("but there is none; check the path", tmp_path / "none.png", RGB)
    refused("got a folder", tmp_path, RGB)
    (tmp_path / "a.txt").write_text("x")
    refused("got '.txt'", tmp_path / "a.txt", RGB)
    whole = saved(pixels(3, "uint8"), tmp_path / "a.png").read_bytes()
    for name, data in (("cut.png", whole[:800]), ("no.png", b"hello"), ("no.npy", b""),
                       ("no.tif", b"II*\0\x08\0\0\0")):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        refused("the file may be damaged or cut short", tmp_path / name, RGB)


def test_what_cannot_be_written_is_refused(tmp_path: Path):
    image = pixels(2, "float32")
    got = read_damaged(saved(image, tmp_path / "a.npy"), FLOAT)
    with pytest.raises(DataError, match="a PNG holds 1 to 4 channels of 8 or 16 bits"):
        write_restored(image, got, tmp_path / "out.png")
    with pytest.raises(DataError, match="images are written as"):
        write_restored(image, got, tmp_path / "out.jpg")
    with pytest.raises(ValueError, match=r"like a\.npy, got float32 of shape"):
        write_restored(image[:, 1:], got, tmp_path / "out.npy")
    assert not list(tmp_path.glob("out*"))


def test_turned_georeferences_are_refused(tmp_path: Path):
    path = tmp_path / "a.tif"
    tags = [(33550, 12, 3, (1.0, 1.0, 0.0), True), (274, 3, 1, 6, True)]
    tifffile.imwrite(path, pixels(1, "uint8")[0], extratags=tags)
    refused("expected a georeferenced TIFF to begin at the top left, got orientation 6", path, GREY)


def test_a_georeference_without_tifffile_names_the_extra(tmp_path: Path, monkeypatch: Any):
    path = scene(tmp_path / "a.tif", pixels(3, "uint8"))
    plain = tmp_path / "plain.tif"
    Image.new("RGB", (W, H)).save(plain)
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sfumato\[data\]'"):
        read_damaged(path, RGB)
    assert read_damaged(plain, RGB).geo is None


def test_compose_keeps_known_values_and_takes_the_rest(tmp_path: Path):
    image, form = pixels(2, "float32"), FLOAT
    image[0, 3, 3] = np.nan
    got = read_damaged(saved(image, tmp_path / "a.npy"), form)
    other = pixels(2, "float32")[::-1].copy()
    new = got.compose(to_model(other, got.format))
    assert new[0, 3, 3] == pytest.approx(other[0, 3, 3], abs=1e-6)
    new[0, 3, 3] = image[0, 3, 3]
    assert np.array_equal(new, image, equal_nan=True)
