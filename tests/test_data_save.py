"""Writing: what goes in at 8 or 16 bits comes out at 8 or 16 bits, read by others."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from sfumato.data import save
from sfumato.data.pixels import from_model, pixel_format, to_model
from sfumato.data.save import default_suffix, save_image, save_images
from sfumato.data.sources import open_images
from sfumato.errors import DataError, MissingExtraError

RNG = np.random.default_rng(2)


def random_images(channels, dtype):
    shape = (2, channels, 6, 9)
    if dtype == "float32":
        return RNG.random(shape).astype(np.float32)
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def independent(path):
    """Decoded by another library than the one that wrote it, as [C, H, W]."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".png":
        array = imagecodecs.png_decode(path.read_bytes())
    else:
        array = tifffile.imread(path)
        if array.ndim == 3 and array.shape[-1] != 3:
            return array
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_images_survive_writing_and_reading(tmp_path, dtype, channels):
    raw = random_images(channels, dtype)
    fmt = pixel_format((channels, 6, 9), dtype, (0, 1) if dtype == "float32" else None)
    generated = from_model(to_model(raw, fmt), fmt)
    paths = save_images(generated, fmt, tmp_path / "out", start=41)
    assert [path.stem for path in paths] == ["000041", "000042"]
    assert sorted((tmp_path / "out").iterdir()) == paths  # no temporary file is left
    for path, image in zip(paths, generated, strict=True):
        assert independent(path).dtype == dtype
        np.testing.assert_array_equal(independent(path), image)
    if dtype != "float32":
        np.testing.assert_array_equal(generated, raw)
        again = open_images(tmp_path / "out", alpha="keep")
        assert again.format == fmt
        np.testing.assert_array_equal(again.read([0, 1]), raw)


def test_four_bands_come_back_as_four_and_transparency_as_transparency(tmp_path):
    raw = random_images(4, "uint16")
    np.save(tmp_path / "scenes.npy", raw)
    bands = open_images(tmp_path / "scenes.npy").format
    save_images(raw, bands, tmp_path / "drawn")
    np.testing.assert_array_equal(open_images(tmp_path / "drawn").read([0, 1]), raw)

    shown = random_images(4, "uint8")
    (tmp_path / "shown").mkdir()
    for i, image in enumerate(shown):
        Image.fromarray(np.moveaxis(image, 0, -1)).save(tmp_path / "shown" / f"{i}.png")
    opaque, clear = (open_images(tmp_path / "shown", alpha=how).format for how in ("drop", "keep"))
    assert (opaque.channels, opaque.alpha, clear.channels, clear.alpha) == (3, False, 4, True)
    again = pixel_format((4, 6, 9), "uint8", None)
    assert again == clear
    assert type(clear).from_toml(clear.to_toml()).alpha
    assert "alpha" not in again.to_toml()
    assert {path.suffix for path in save_images(shown, clear, tmp_path / "clear")} == {".png"}


def test_grey_sixteen_bit_png_is_readable_by_pillow(tmp_path):
    raw = random_images(1, "uint16")
    path = save_image(raw[0], pixel_format((1, 6, 9), "uint16", None), tmp_path / "a.png")
    with Image.open(path) as picture:
        assert picture.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(picture), raw[0, 0])


def test_the_suffix_depends_on_what_is_needed_and_installed(monkeypatch):
    def suffix(channels, dtype, alpha=True):
        span = (0, 1) if dtype == "float32" else None
        return default_suffix(pixel_format((channels, 2, 2), dtype, span, alpha=alpha))

    assert suffix(3, "uint8") == suffix(3, "uint16") == suffix(4, "uint16") == ".png"
    assert suffix(5, "uint8") == suffix(1, "float32") == ".tif"
    # Bands that nobody said are transparency are not written as such.
    assert {suffix(channels, "uint8", alpha=False) for channels in (1, 3)} == {".png"}
    assert {suffix(channels, "uint16", alpha=False) for channels in (2, 4)} == {".tif"}
    monkeypatch.setattr(save, "_installed", lambda package: package == "tifffile")
    assert suffix(1, "uint16") == suffix(4, "uint8") == ".png"
    assert suffix(3, "uint16") == ".tif"
    monkeypatch.setattr(save, "_installed", lambda package: False)
    assert suffix(3, "uint16") == suffix(5, "uint8") == ".npy"


def test_an_existing_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    raw = random_images(1, "uint8")
    fmt = pixel_format((1, 6, 9), "uint8", None)
    path = save_image(raw[0], fmt, tmp_path / "a.png")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save_image(raw[1], fmt, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_file_type_cannot_hold_is_refused(tmp_path):
    fmt = pixel_format((5, 6, 9), "uint8", None)
    raw = random_images(5, "uint8")
    with pytest.raises(DataError, match=r"1 to 4 channels.*not 5 of uint8.*\.tif or \.npy"):
        save_image(raw[0], fmt, tmp_path / "a.png")
    with pytest.raises(DataError, match=r"not as '\.jpg'"):
        save_image(raw[0], fmt, tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="raw 5 x 6 x 9 uint8"):
        save_image(raw[0].astype(float), fmt, tmp_path / "a.npy")


@pytest.mark.parametrize(("package", "name"), [("imagecodecs", "a.png"), ("tifffile", "a.tif")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, package, name):
    raw = random_images(3, "uint16")
    fmt = pixel_format((3, 6, 9), "uint16", None)
    path = save_image(raw[0], fmt, tmp_path / name)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*sfumato\[data\]"):
        save_image(raw[0], fmt, tmp_path / name)
    with pytest.raises(MissingExtraError, match=rf"{path.name}.*'{package}'.*sfumato\[data\]"):
        open_images(tmp_path)
