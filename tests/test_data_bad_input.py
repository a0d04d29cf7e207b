"""Bad input: each message says what was expected, what came, and the likely fix."""

from __future__ import annotations

import gzip
import json
import re
import zipfile

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from sfumato.data.arrays import InMemory
from sfumato.data.reader import as_arrays
from sfumato.data.sources import open_images
from sfumato.errors import DataError

RNG = np.random.default_rng(3)


def picture(shape=(16, 16, 3), dtype=np.uint8):
    return RNG.integers(0, 256, shape).astype(dtype)


def fill(folder, count, suffix="png", **options):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(picture()).save(folder / f"{i}.{suffix}", **options)


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def refused(path, *expected, **options):
    """Opening (and reading all of it) is a DataError whose text holds all of `expected`."""
    with pytest.raises(DataError) as caught:
        as_arrays(open_images(path, **options))
    for text in expected:
        assert re.search(text, str(caught.value)), str(caught.value)


def test_no_such_path(tmp_path):
    (tmp_path / "flowers").mkdir()
    refused(tmp_path / "flowres", "no such data", "did you mean flowers", "folder, .zip, .npy")
    refused("fashion-mnist:tets", "did you mean fashion-mnist:test")


def test_nothing_to_read(tmp_path):
    refused(tmp_path, "expected images", r"\.png \.jpg", "found nothing", "give the folder")
    for i in range(3):
        (tmp_path / f"{i}.gif").write_bytes(b"GIF")
    refused(tmp_path, "found 3 .gif")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "hello")
    refused(tmp_path / "a.zip", "expected images", "found 1 .txt")
    (tmp_path / "a.csv").write_text("1,2")
    refused(tmp_path / "a.csv", "expected a folder, a .zip", "another kind")
    refused(tmp_path / "0.gif", "give the folder")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_damaged_files_are_named(tmp_path, suffix, damage):
    fill(tmp_path, 3, suffix)
    broken = tmp_path / f"1.{suffix}"
    if damage == "cut":
        cut(broken)
    else:
        broken.write_bytes(b"" if damage == "empty" else b"this is no image, believe me")
    refused(
        tmp_path, r"1 of 3 images cannot be read", rf"1\.{suffix} \(", "1 %", "Repair or remove"
    )


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.98])
def test_cut_sixteen_bit_files_are_named(tmp_path, share):
    for folder, write in (
        ("png", lambda path, a: path.write_bytes(imagecodecs.png_encode(a))),
        ("tif", lambda path, a: tifffile.imwrite(path, a, compression="zlib")),
    ):
        (tmp_path / folder).mkdir()
        for i in range(2):
            write(tmp_path / folder / f"{i}.{folder}", picture((16, 16, 3), np.uint16) * 257)
        cut(tmp_path / folder / f"1.{folder}", share)
        refused(tmp_path / folder, "1 of 2 images cannot be read", rf"1\.{folder} \(")


def test_up_to_one_per_cent_is_skipped_and_counted(tmp_path):
    fill(tmp_path, 100)
    cut(tmp_path / "7.png")
    images = open_images(tmp_path)
    assert len(images) == 99
    assert len(images.skipped) == 1
    assert images.skipped[0].startswith("7.png (")
    assert "1 unreadable skipped: 7.png (" in images.describe()
    assert "7.png" not in [images.names(i) for i in range(99)]
    (tmp_path / "8.png").write_bytes(b"")
    refused(tmp_path, "2 of 100 images", r"7\.png", r"8\.png")


def test_at_most_five_broken_files_are_listed(tmp_path):
    fill(tmp_path, 8)
    for i in range(7):
        (tmp_path / f"{i}.png").write_bytes(b"")
    refused(tmp_path, "7 of 8", r"4\.png \([^;]*\); \.\.\.")
    with pytest.raises(DataError) as caught:
        open_images(tmp_path)
    assert "5.png" not in str(caught.value)


def test_damage_in_a_zip(tmp_path):
    fill(tmp_path / "set", 3)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3):
            archive.write(tmp_path / "set" / f"{i}.png", f"{i}.png")
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("1.png").header_offset
    path.write_bytes(whole[: start + 200] + bytes(100) + whole[start + 300 :])
    refused(path, "1 of 3 images cannot be read", r"1\.png")
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "expected a zip", "incomplete")


def test_mixed_channel_counts(tmp_path):
    fill(tmp_path, 3)
    Image.fromarray(picture((16, 16))).save(tmp_path / "grey.png")
    refused(tmp_path, "3 channels in 3 .0.png", "1 channels in 1 .grey.png", "--channels 3")
    assert open_images(tmp_path, channels=3).format.channels == 3


def test_mixed_bit_depths(tmp_path):
    Image.fromarray(picture((16, 16))).save(tmp_path / "a.png")
    Image.fromarray(picture((16, 16), np.uint16)).save(tmp_path / "b.png")
    refused(tmp_path, "one bit depth", r"uint8 in 1 \(a.png\)", r"uint16 in 1 \(b.png\)")


def test_mixed_sizes(tmp_path):
    for i, size in enumerate([(16, 16)] * 3 + [(10, 20), (9, 9)]):
        Image.fromarray(picture(size)).save(tmp_path / f"{i}.png")
    refused(tmp_path, "3 sizes", r"16 x 16 \(3\)", r"10 x 20 \(1\)", "--size 16 16 ")
    refused(
        tmp_path,
        r"3\.png: expected 16 x 16",
        "got 10 x 20",
        "--fit crop",
        size=(16, 16),
        fit="strict",
    )


def test_pixels_that_are_not_finite(tmp_path):
    array = np.zeros((9, 4, 4), np.float32)
    array[6, 2, 1] = np.nan
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", "finite", "image 6 ")
    with pytest.raises(DataError, match="image 6 "):
        InMemory(array, value_range=(0, 1))
    (tmp_path / "tiff").mkdir()
    tifffile.imwrite(tmp_path / "tiff" / "x.tif", array[6])
    refused(tmp_path / "tiff", r"x\.tif", "NaN")


def test_values_outside_their_range(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[[0.0, 255.0]]]))
    refused(tmp_path / "a.npy", r"\[0, 1\] or \[-1, 1\]", r"\[0, 255\]", "--value-range LOW HIGH")
    refused(
        tmp_path / "a.npy",
        r"range \[0, 100\]",
        r"span \[0, 255\]; correct --value-range LOW HIGH",
        value_range=(0, 100),
    )
    np.save(tmp_path / "b.npy", np.array([[[0, 5000]]], np.uint16))
    refused(tmp_path / "b.npy", r"range \[0, 4095\]", r"\[0, 5000\]", value_range=(0, 4095))
    (tmp_path / "deep").mkdir()
    Image.fromarray(picture((8, 8), np.uint16) * 200).save(tmp_path / "deep" / "x.png")
    refused(tmp_path / "deep", r"x\.png", r"\[0, 4095\]", "--value-range", value_range=(0, 4095))


def test_arrays_of_the_wrong_kind(tmp_path):
    np.save(tmp_path / "int.npy", np.arange(32).reshape(2, 4, 4))
    refused(tmp_path / "int.npy", "int64", r"span \[0, 31\]", "example --value-range 0 31$")
    np.save(tmp_path / "complex.npy", np.zeros((2, 4, 4), np.complex64))
    refused(tmp_path / "complex.npy", "complex64", "whole-number or floating-point")
    np.save(tmp_path / "one.npy", np.zeros((24, 20, 3), np.uint8))
    refused(tmp_path / "one.npy", "one image of 24 x 20 with 3 channels, save array.None.")
    np.save(tmp_path / "flat.npy", np.zeros((2, 16), np.uint8))
    refused(tmp_path / "flat.npy", r"N,H,W", r"\(2, 16\)")
    np.save(tmp_path / "empty.npy", np.zeros((0, 4, 4), np.uint8))
    refused(tmp_path / "empty.npy", "at least one image")
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    refused(tmp_path / "object.npy", "Python objects, which are refused")
    np.save(tmp_path / "cut.npy", picture((4, 16, 16)))
    cut(tmp_path / "cut.npy")
    refused(tmp_path / "cut.npy", "cut short")
    np.savez(tmp_path / "cut.npz", picture((4, 16, 16)))
    cut(tmp_path / "cut.npz")
    refused(tmp_path / "cut.npz", "cut short")
    np.savez(tmp_path / "two.npz", a=picture((4, 16, 16)), b=picture((2, 8, 8)))
    refused(
        tmp_path / "two.npz", "exactly one array of images", r"a \(4, 16, 16\)", r"b \(2, 8, 8\)"
    )
    with pytest.raises(DataError, match="cannot become images of 3"):
        InMemory(picture((2, 16, 16, 5)), channels=3)


def test_damaged_idx(tmp_path):
    whole = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4]) + bytes(32)
    path = tmp_path / "x-images-idx3-ubyte"
    path.write_bytes(whole[:-1])
    refused(path, "expected 48 bytes", r"\(2, 4, 4\)", "got 47", "incomplete")
    path.write_bytes(whole[:10])
    refused(path, "header is cut short")
    packed = tmp_path / "x-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(whole)[:-12])
    refused(packed, "incomplete")
    packed.write_bytes(gzip.compress(b"hello, world"))
    refused(packed, "another kind")
    path.write_bytes(whole)
    refused(path, "labels were expected beside it in x-labels-idx1-ubyte", labels=True)
    labels = tmp_path / "x-labels-idx1-ubyte"
    labels.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 0, 1, 2]))
    refused(path, "one label for each of 2 images", r"\(3,\)", labels=True)


def test_labels_that_do_not_match(tmp_path):
    stack = picture((4, 16, 16))
    with pytest.raises(DataError, match=r"each of 4 images, got labels of shape \(3,\)"):
        InMemory(stack, np.array([0, 1, 2]))
    with pytest.raises(DataError, match="whole-number class labels, got float64"):
        InMemory(stack, np.zeros(4))
    with pytest.raises(DataError, match="labels from 0, got -1"):
        InMemory(stack, np.array([0, -1, 0, 0]))
    with pytest.raises(DataError, match="label 3 has no name, only 2 classes"):
        InMemory(stack, np.array([0, 1, 2, 3]), ("a", "b"))
    np.save(tmp_path / "a.npy", stack)
    refused(tmp_path / "a.npy", "a_labels.npy or labels.npy", labels=True)
    np.savez(tmp_path / "a.npz", stack)
    refused(tmp_path / "a.npz", "exactly one whole-number array of labels", labels=True)


def test_folders_without_classes(tmp_path):
    fill(tmp_path / "cat", 2)
    Image.fromarray(picture()).save(tmp_path / "stray.png")
    refused(tmp_path, "sub-folders", "1 of 3 images", r"stray\.png", "dataset.json", labels=True)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"labels": [["0.png", 0], ["1.png", 1]]},
            "3 images.*2 names and 1 images have none.*2.png",
        ),
        ({"labels": [["0.png", 0], ["1.png", 1], ["2.png", [0, 1]]]}, r"whole number.*\[0, 1\]"),
        ({"labels": [["0.png", 0], ["1.png", 1], ["2.png", True]]}, r"whole number.*True"),
        ({"labels": [0, 1, 2]}, "expected .*other pairs"),
        ([1], "got a list"),
        (
            {"labels": [["0.png", 0], ["1.png", 1], ["2.png", 2]], "classes": ["a", "b"]},
            "label 2 has no name",
        ),
        ("{", "not readable JSON"),
    ],
)
def test_dataset_json_that_does_not_match(tmp_path, content, expected):
    fill(tmp_path, 3)
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "dataset.json").write_text(text)
    refused(tmp_path, expected, "dataset.json", labels=True)
    assert len(open_images(tmp_path)) == 3


def test_tiffs_that_are_not_one_image(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture((4, 16, 16, 3)), photometric="rgb")
    refused(tmp_path, r"a\.tif", "a stack with axes", "separate files")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4), np.complex64))
    refused(tmp_path, r"a\.tif", "whole-number or floating-point", "complex64")
    tifffile.imwrite(
        tmp_path / "a.tif", picture((4, 16, 16), np.uint16), imagej=True, metadata={"axes": "ZYX"}
    )
    refused(tmp_path, "axes ZYX")
