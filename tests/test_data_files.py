"""Folders and zips: every file type and depth against the array an independent writer stored."""

from __future__ import annotations

import json
import zipfile

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from sfumato.data.files import FileImages
from sfumato.data.images import Subset
from sfumato.data.reader import as_arrays
from sfumato.data.sources import open_images
from sfumato.errors import DataError

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (6, 9), np.uint8)
GREY16 = RNG.integers(0, 65536, (6, 9), np.uint16)
RGB8 = RNG.integers(0, 256, (6, 9, 3), np.uint8)
RGB16 = RNG.integers(0, 65536, (6, 9, 3), np.uint16)
RGBA8 = RNG.integers(0, 256, (6, 9, 4), np.uint8)
RGBA16 = RNG.integers(0, 65536, (6, 9, 4), np.uint16)
LA8, LA16 = RGBA8[..., :2].copy(), RGBA16[..., :2].copy()
BANDS8 = RNG.integers(0, 256, (6, 9, 5), np.uint8)
BANDS16 = RNG.integers(0, 65536, (6, 9, 5), np.uint16)
FLOAT = RNG.random((6, 9)).astype(np.float32)


def pillow(array, **options):
    return lambda path: Image.fromarray(array).save(path, **options)


def tiff(array, **options):
    return lambda path: tifffile.imwrite(path, array, **options)


def png16(array):
    return lambda path: path.write_bytes(imagecodecs.png_encode(array))


def planes(array):
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


LOSSLESS = {
    "grey8.png": (pillow(GREY8), GREY8),
    "grey16.png": (pillow(GREY16), GREY16),
    "rgb8.png": (pillow(RGB8), RGB8),
    "rgb16.png": (png16(RGB16), RGB16),
    "rgba8.png": (pillow(RGBA8), RGBA8),
    "rgba16.png": (png16(RGBA16), RGBA16),
    "la8.png": (pillow(LA8), LA8),
    "la16.png": (png16(LA16), LA16),
    "grey8.bmp": (pillow(GREY8), GREY8),
    "rgb8.bmp": (pillow(RGB8), RGB8),
    "rgb8.webp": (pillow(RGB8, lossless=True), RGB8),
    "rgba8.webp": (pillow(RGBA8, lossless=True, exact=True), RGBA8),
    "grey8.tif": (pillow(GREY8), GREY8),
    "rgb8.tiff": (pillow(RGB8, compression="tiff_lzw"), RGB8),
    "rgba8.tif": (pillow(RGBA8), RGBA8),
    "grey16.tif": (tiff(GREY16, compression="zlib"), GREY16),
    "grey16be.tif": (tiff(GREY16, byteorder=">"), GREY16),
    "inverted16.tif": (tiff(65535 - GREY16, photometric="miniswhite"), GREY16),
    "rgb16.tif": (tiff(RGB16, photometric="rgb"), RGB16),
    "rgba16.tif": (tiff(RGBA16, photometric="rgb", extrasamples=["unassalpha"]), RGBA16),
    "bands8.tif": (tiff(BANDS8, photometric="minisblack", planarconfig="contig"), BANDS8),
    "bands16.tif": (
        tiff(planes(BANDS16), photometric="minisblack", planarconfig="separate"),
        BANDS16,
    ),
    "pages16.tif": (tiff(planes(BANDS16), photometric="minisblack"), BANDS16),
    "fourbands8.tif": (
        tiff(RGBA8, photometric="rgb", extrasamples=["unspecified"]),
        RGBA8,
    ),
    "float.tif": (tiff(FLOAT), FLOAT),
    "double.tif": (tiff(FLOAT.astype(np.float64)), FLOAT),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_come_back_exactly(tmp_path, name):
    write, stored = LOSSLESS[name]
    write(tmp_path / name)
    expected = np.moveaxis(np.atleast_3d(stored), -1, 0)

    kept = open_images(tmp_path, alpha="keep")
    assert kept.format.shape == expected.shape
    assert kept.format.dtype == str(expected.dtype)
    assert kept.read([0]).dtype == expected.dtype
    np.testing.assert_array_equal(kept.read([0])[0], expected)

    has_alpha = name.startswith(("la", "rgba"))
    dropped = open_images(tmp_path)
    np.testing.assert_array_equal(dropped.read([0])[0], expected[: len(expected) - has_alpha])


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossy_files_come_back_as_their_reference_decoder_sees_them(tmp_path, suffix, channels):
    picture = Image.radial_gradient("L").resize((20, 12))
    picture = picture if channels == 1 else picture.convert("RGB")
    picture.save(tmp_path / f"a{suffix}", quality=90)
    images = open_images(tmp_path, channels=channels)  # webp always stores colour
    assert images.format.shape == (channels, 12, 20)
    assert (
        np.abs(images.read([0])[0].astype(int) - np.atleast_3d(picture).transpose(2, 0, 1)).max()
        < 20
    )
    if suffix != ".webp":
        decoder = np.atleast_3d(imagecodecs.jpeg_decode((tmp_path / f"a{suffix}").read_bytes()))
        assert np.abs(images.read([0])[0].astype(int) - decoder.transpose(2, 0, 1)).max() <= 1


def test_one_bit_becomes_eight_bit_grey(tmp_path):
    bits = RNG.random((5, 7)) < 0.5
    for suffix in ("png", "bmp", "tif"):
        Image.fromarray(bits).save(tmp_path / f"a.{suffix}")
    images = open_images(tmp_path)
    assert images.format.shape == (1, 5, 7)
    for image in images.read([0, 1, 2]):
        np.testing.assert_array_equal(image[0], bits * np.uint8(255))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_palettes_become_rgb_or_grey(tmp_path, grey, suffix):
    palette = RNG.integers(0, 256, (256, 3), np.uint8)
    if grey:
        palette[:] = palette[:, :1]
    index = RNG.integers(0, 256, (6, 9), np.uint8)
    picture = Image.fromarray(index)
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / f"a.{suffix}")
    expected = np.moveaxis(palette[index], -1, 0)[: 1 if grey else 3]
    images = open_images(tmp_path)
    assert images.format.shape == expected.shape
    np.testing.assert_array_equal(images.read([0])[0], expected)


def test_png_transparency_counts_as_alpha(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    picture.putpalette(bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
    picture.save(tmp_path / "a.png", transparency=1)
    colours = [[[255, 0], [0, 0]], [[0, 255], [0, 255]], [[0, 0], [255, 0]]]
    np.testing.assert_array_equal(open_images(tmp_path).read([0])[0], colours)
    kept = open_images(tmp_path, alpha="keep").read([0])[0]
    np.testing.assert_array_equal(kept, [*colours, [[255, 0], [255, 0]]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "tiff"])
def test_orientation_is_applied(tmp_path, orientation, suffix):
    gradient = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    if suffix == "tiff":  # 16 bits: through tifffile
        tifffile.imwrite(path, gradient, extratags=[(274, "H", 1, orientation, True)])
    else:
        gradient = (gradient // 2).astype(np.uint8)
        lossless = {"lossless": True} if suffix == "webp" else {}
        Image.fromarray(gradient).save(path, exif=exif, **lossless)
    if suffix == "jpg":
        with Image.open(path) as stored:
            gradient = np.asarray(stored)
    upright = Image.fromarray(gradient)
    upright.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(upright))
    images = open_images(tmp_path)
    assert images.format.shape[1:] == expected.shape
    np.testing.assert_array_equal(images.read([0])[0, 0], expected)
    assert expected.shape == ((24, 16) if orientation >= 5 else (16, 24))


def test_a_tree_is_sorted_naturally_and_litter_is_ignored(tmp_path):
    for name in ("b/img10.png", "b/img2.png", "a/x/deep.png", "A1.png", ".hidden/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY8).save(tmp_path / name)
    for name in ("b/Thumbs.db", "notes.txt", "b/.DS_Store", "dataset.json", "b/._img2.png"):
        (tmp_path / name).write_bytes(b"{}")
    images = open_images(tmp_path)
    assert [images.names(i) for i in range(len(images))] == [
        "A1.png",
        "a/x/deep.png",
        "b/img2.png",
        "b/img10.png",
    ]
    assert images.labels is None
    assert "4 images, 1 x 6 x 9 uint8" in images.describe()


def tree(root, count=3):
    for k, folder in enumerate(("cat", "Dog", "ant10", "ant9")):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((4, 4, 3), 10 * k + i, np.uint8)).save(
                root / folder / f"{i}.png"
            )


def zipped(root, path, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(root).as_posix())
        archive.writestr("__MACOSX/._0.png", b"litter")
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "wrapped zip"])
def test_sub_folders_are_classes(tmp_path, kind):
    tree(tmp_path / "set")
    path = tmp_path / "set"
    if kind != "folder":
        prefix = "set/" if kind == "wrapped zip" else ""
        path = zipped(path, tmp_path / "set.zip", prefix)
    images = open_images(path, labels=True)
    assert images.classes == ("ant9", "ant10", "cat", "Dog")
    assert images.labels.dtype == np.int64
    first = dict(zip(("cat", "Dog", "ant10", "ant9"), (0, 10, 20, 30), strict=True))
    values = images.read(range(12))[:, 0, 0, 0]
    for value, label in zip(values, images.labels, strict=True):
        assert value // 10 * 10 == first[images.classes[label]]
    assert "4 classes" in images.describe()


@pytest.mark.parametrize("kind", ["folder", "zip", "wrapped zip"])
@pytest.mark.parametrize("classes", [True, False])
def test_dataset_json_gives_labels(tmp_path, kind, classes):
    root = tmp_path / "set"
    tree(root)
    names = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*.png"))]
    label_of = {name: (7 * i) % 3 for i, name in enumerate(names)}
    table = {"labels": [*label_of.items(), ["elsewhere.png", 2]]}
    if classes:
        table["classes"] = ["red", "green", "blue"]
    (root / "dataset.json").write_text(json.dumps(table))
    path = root
    if kind != "folder":
        path = zipped(root, tmp_path / "set.zip", "set/" if kind == "wrapped zip" else "")
    images = open_images(path, labels=True)
    assert images.classes == (("red", "green", "blue") if classes else ("0", "1", "2"))
    for i, label in enumerate(images.labels):
        assert label == label_of[images.names(i)]


def test_dataset_json_without_labels_leaves_the_folders(tmp_path):
    tree(tmp_path)
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    assert open_images(tmp_path, labels=True).classes == ("ant9", "ant10", "cat", "Dog")


def test_zip_and_folder_agree_and_the_fingerprint_follows_the_content(tmp_path):
    tree(tmp_path / "set")
    folder = open_images(tmp_path / "set")
    archive = open_images(zipped(tmp_path / "set", tmp_path / "set.zip"))
    np.testing.assert_array_equal(as_arrays(folder)[0], as_arrays(archive)[0])
    assert folder.fingerprint == archive.fingerprint == open_images(tmp_path / "set").fingerprint
    assert open_images(tmp_path / "set", size=(2, 2)).fingerprint != folder.fingerprint
    (tmp_path / "set/cat/0.png").unlink()
    assert open_images(tmp_path / "set").fingerprint != folder.fingerprint


def test_crop_keeps_the_centre_and_stretch_keeps_everything(tmp_path):
    wide = np.zeros((10, 30), np.uint8)
    wide[:, :10], wide[:, 10:20], wide[:, 20:] = 50, 100, 150
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.T.copy()).save(tmp_path / "tall.png")
    tall, centre = open_images(tmp_path, size=(10, 10)).read([0, 1])
    assert (centre == 100).all()
    assert (tall == 100).all()
    _, stretched = open_images(tmp_path, size=(10, 10), fit="stretch").read([0, 1])
    assert np.abs(stretched[0, 0, [0, 5, 9]] - np.array([50.0, 100, 150])).max() < 5  # soft edges
    assert open_images(tmp_path, size=(40, 20)).format.shape == (1, 40, 20)


def test_resizing_is_antialiased_and_keeps_sixteen_bits(tmp_path):
    """A checkerboard shrinks to its mean; 16-bit resizing equals 8-bit times 257."""
    board = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    assert np.abs(open_images(tmp_path, size=(8, 8)).read([0]).astype(int) - 100).max() <= 3

    soft = np.asarray(Image.radial_gradient("L"))
    for name, array in (("8", soft), ("16", soft.astype(np.uint16) * 257)):
        (tmp_path / name).mkdir()
        Image.fromarray(array).save(tmp_path / name / "a.png")
    eight = open_images(tmp_path / "8", size=(40, 30)).read([0])
    sixteen = open_images(tmp_path / "16", size=(40, 30)).read([0])
    assert sixteen.dtype == np.uint16
    assert np.abs(sixteen / 257 - eight).max() < 1.01  # 8 bits are rounded after each direction
    assert (sixteen % 257 != 0).any()


def test_channels_convert_between_grey_and_colour(tmp_path):
    Image.fromarray(RGB8).save(tmp_path / "a.png")
    Image.fromarray(GREY8).save(tmp_path / "b.png")
    colour, repeated = open_images(tmp_path, channels=3).read([0, 1])
    np.testing.assert_array_equal(colour, np.moveaxis(RGB8, -1, 0))
    np.testing.assert_array_equal(repeated, np.stack([GREY8] * 3))
    luma, grey = open_images(tmp_path, channels=1).read([0, 1])
    reference = np.asarray(Image.fromarray(RGB8).convert("L")).astype(int)
    assert np.abs(luma[0] - reference).max() <= 1
    np.testing.assert_array_equal(grey[0], GREY8)

    Image.fromarray(RGBA8).save(tmp_path / "c.png")
    opaque, _, kept = open_images(tmp_path, channels=4, alpha="keep").read([0, 1, 2])
    assert (opaque[3] == 255).all()
    np.testing.assert_array_equal(kept, np.moveaxis(RGBA8, -1, 0))
    with pytest.raises(DataError, match="cannot become images of 5"):
        open_images(tmp_path, channels=5)


def test_float_files_take_a_stated_or_default_range(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", FLOAT * 300)
    with pytest.raises(DataError, match="--value-range LOW HIGH"):
        open_images(tmp_path)
    images = open_images(tmp_path, value_range=(0, 300))
    assert (images.format.low, images.format.high) == (0, 300)
    with pytest.raises(DataError, match=r"a.tif was expected inside the range \[0, 100\]"):
        open_images(tmp_path, value_range=(0, 100)).read([0])


def test_a_small_set_of_links_is_followed(tmp_path):
    tree(tmp_path / "set")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "dogs").symlink_to(tmp_path / "set" / "Dog")
    (tmp_path / "set" / "Dog" / "loop").symlink_to(tmp_path / "set" / "Dog")
    assert len(open_images(tmp_path / "links")) == 3


def test_a_subset_keeps_order_labels_and_names(tmp_path):
    tree(tmp_path)
    whole = open_images(tmp_path, labels=True)
    part = Subset(whole, [7, 2, 2])
    np.testing.assert_array_equal(part.read([0, 1, 2]), whole.read([7, 2, 2]))
    np.testing.assert_array_equal(part.labels, whole.labels[[7, 2, 2]])
    assert part.names(0) == whole.names(7)
    assert len({part.fingerprint, whole.fingerprint, Subset(whole, [7, 2]).fingerprint}) == 3
    with pytest.raises(DataError, match=r"0\.\.11, got 3\.\.12"):
        Subset(whole, [3, 12])
    assert isinstance(whole, FileImages)
