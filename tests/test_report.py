"""Grids and animations decoded again, and the page read by a parser."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import DataError, MissingExtraError
from sfumato.report import plots
from sfumato.report.animation import gif_bytes
from sfumato.report.grid import display_pixels, image_grid, png_bytes, save_png
from sfumato.report.html import Report, data_uri
from sfumato.report.run_page import run_page, write_run_report
from sfumato.report.run_report import ClassRow, FrechetRow, LevelLoss, Neighbours, RunReport
from sfumato.report.words import duration

RNG = np.random.default_rng(0)


def noise(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def test_grid_puts_every_pixel_in_its_place():
    images = noise(5, 3, 4, 6)
    grid = image_grid(images, columns=3, pad=2, scale=2)
    assert grid.shape == (2 * (8 + 2) + 2, 3 * (12 + 2) + 2, 3)
    for i in range(5):
        top, left = 2 + i // 3 * 10, 2 + i % 3 * 14
        for dy, dx in ((0, 0), (1, 1)):  # each pixel became a 2 x 2 square
            cell = grid[top + dy : top + 8 : 2, left + dx : left + 12 : 2]
            np.testing.assert_array_equal(cell, images[i].transpose(1, 2, 0))
    assert (grid[12:20, 30:42] == 255).all()  # the empty sixth place
    assert (grid[:2] == 255).all()


def test_display_of_every_depth_and_channel_count():
    floats = np.array([-1.5, -1, 0, 1, 2, np.nan]).reshape(6, 1, 1, 1)
    assert display_pixels(floats).ravel().tolist() == [0, 0, 128, 255, 255, 0]
    sixteen = np.array([0, 128, 129, 257, 32768, 65535], np.uint16).reshape(6, 1, 1, 1)
    assert display_pixels(sixteen).ravel().tolist() == [0, 0, 1, 1, 128, 255]
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(
        torch.from_numpy(display_pixels(levels.float() / 127.5 - 1))[..., 0], levels[0]
    )
    for channels, kept in ((1, [0]), (2, [0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (7, [0, 1, 2])):
        images = noise(1, channels, 2, 2)
        np.testing.assert_array_equal(display_pixels(images), images[:, kept].transpose(0, 2, 3, 1))
    with pytest.raises(DataError, match="at least one"):
        image_grid(np.zeros((0, 1, 2, 2)))
    with pytest.raises(DataError, match="int64"):
        image_grid(np.zeros((1, 1, 2, 2), np.int64))


def test_png_comes_back_and_nothing_else_is_left(tmp_path):
    for channels in (1, 3):
        grid = image_grid(noise(4, channels, 5, 5))
        save_png(grid, tmp_path / "deep" / "grid.png")
        with Image.open(tmp_path / "deep" / "grid.png") as image:
            np.testing.assert_array_equal(np.asarray(image).reshape(grid.shape), grid)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["grid.png"]


def test_gif_frames_and_times_come_back():
    frames = [noise(9, 7, 1) // (i + 1) for i in range(4)]
    with Image.open(io.BytesIO(gif_bytes(frames, seconds=0.6, hold=1.5))) as gif:
        assert gif.n_frames == 4
        assert gif.info["loop"] == 0
        times = []
        for i, frame in enumerate(frames):
            gif.seek(i)
            times.append(gif.info["duration"])
            np.testing.assert_array_equal(np.asarray(gif.convert("L")), frame[..., 0])
    assert times == [200, 200, 200, 1500]
    colour = [np.full((4, 4, 3), c, np.uint8) for c in ((255, 0, 0), (0, 0, 255))]
    with Image.open(io.BytesIO(gif_bytes(colour))) as gif:
        gif.seek(1)
        assert gif.convert("RGB").getpixel((2, 2)) == (0, 0, 255)


class Page(HTMLParser):
    """Headings, text, tags and references of a page."""

    VOID = ("meta", "link", "img", "br", "hr")

    def __init__(self, source):
        super().__init__()
        self.headings, self.tags, self.references, self.open, self.words = [], [], [], [], []
        self.feed(source)
        assert self.open == []

    @property
    def text(self):
        return " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def full_report():
    images = noise(6, 1, 8, 8)
    sigma = np.geomspace(0.01, 10, 8)
    return RunReport(
        name="a run",
        subtitle="of nothing",
        recipe={"recipe": "edm-tiny", "batch": 64, "bf16": True, "dropout": 0.1, "note": None},
        commands=["sfumato train edm-tiny --data x"],
        log=[
            {"images": 64.0 * i, "loss": 1 / i, "images_per_second": 50.0, "waited_share": 0.02}
            for i in range(1, 40)
        ],
        levels=LevelLoss(sigma.tolist(), (1 / sigma).tolist(), sigma.tolist(), "Try P_mean = -1."),
        samples=images,
        real=images[::-1].copy(),
        trajectory=[RNG.normal(size=(6, 1, 8, 8)), images / 127.5 - 1],
        neighbours=Neighbours(images, images, [0.25] * 6, ratio=0.9, closer_share=0.5),
        frechet=[FrechetRow("samples, held-out", 123.25, 2000, 1000, "EfficientNet-Lite0", 40.0)],
        classes=[ClassRow("shirt", 0.75, 0.9, 0.5), ClassRow("bag", 0.25, 0.5, 0.5)],
        class_note="a small CNN",
        timings={"training": 300.0, "sampling": 30.0},
        environment={"torch": "2.13"},
        warnings=["two images were skipped"],
    )


SECTIONS = {
    "Samples": ("samples", "real"),
    "From noise to images": ("trajectory",),
    "Fréchet distance": ("frechet",),
    "Classes": ("classes",),
    "Nearest training images": ("neighbours",),
    "Training": ("log", "levels"),
    "Time": ("timings",),
    "Recipe": ("recipe",),
    "How to reproduce it": ("commands", "environment"),
}


def test_page_has_every_section_and_refers_to_nothing_outside(tmp_path):
    write_run_report(tmp_path / "report.html", full_report())
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert page.headings == list(SECTIONS)
    assert "script" not in page.tags
    assert all(ref.startswith(("data:", "#")) for ref in page.references)
    assert "123.2" in page.text
    assert "two images were skipped" in page.text
    assert "80 %" in page.text  # certainty: 0.75 * 0.9 + 0.25 * 0.5
    assert "5 min 30 s" in page.text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_images_in_the_page_are_the_grids():
    run = full_report()
    sources = [ref for ref in Page(run_page(run).html()).references if "image/png" in ref]
    decoded = base64.b64decode(sources[0].split(",")[1])
    grid = image_grid(run.samples)
    assert (np.asarray(Image.open(io.BytesIO(decoded))) == grid[..., 0]).all()
    # Rows of neighbours: the samples, and the same images below them.
    near = np.asarray(Image.open(io.BytesIO(base64.b64decode(sources[2].split(",")[1]))))
    np.testing.assert_array_equal(*np.split(near, 2))


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_without_data_is_left_out(section):
    empty = RunReport("")
    gone = {name: getattr(empty, name) for name in SECTIONS[section]}
    page = Page(run_page(replace(full_report(), **gone)).html())
    assert page.headings == [name for name in SECTIONS if name != section]


def test_an_empty_run_is_still_a_page():
    assert Page(run_page(RunReport("nothing yet")).html()).headings == []


def test_everything_is_escaped():
    evil = '</p><script>alert("x")</script><img src="http://x/" onerror=a>\'&'
    report = Report(evil, evil, evil).section(evil, evil).table([(evil, 1)], (evil, evil))
    report.figure(png_bytes(noise(2, 2, 1)), evil, evil).code(evil).note(evil, warning=True)
    report.facts({evil: evil}).missing(evil, evil, evil)
    page = Page(report.html())
    assert "script" not in page.tags
    assert all(ref.startswith(("data:", "#")) for ref in page.references)
    assert page.text.count(evil) == 17


def test_page_without_matplotlib_says_so(monkeypatch):
    def absent(width, height):
        raise MissingExtraError("matplotlib", "train", "drawing plots")

    monkeypatch.setattr(plots, "_new_figure", absent)
    page = Page(run_page(full_report()).html())
    assert page.headings == list(SECTIONS)
    assert "sfumato[train]" in page.text


def test_unknown_image_bytes_are_refused():
    assert data_uri(b"<svg></svg>").startswith("data:image/svg+xml;base64,")
    with pytest.raises(ValueError, match="PNG"):
        data_uri(b"<html>")


def test_curve_leaves_out_skipped_steps_and_smoothing_keeps_a_line():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    x, y = plots._finite([1, 2, 3, 4], [1.0, np.nan, np.inf, 2.0])
    assert (x.tolist(), y.tolist()) == ([1, 4], [1, 2])
    line = 3.0 + 0.5 * np.arange(200)
    np.testing.assert_allclose(plots._smooth(line)[10:-10], line[10:-10])
    drawn = plots.training_curve(np.arange(100), np.r_[np.nan, np.linspace(2, 1, 99)])
    assert b"<svg" in drawn
    assert dict(mpl.rcParams) == before
    with pytest.raises(ValueError, match="as many"):
        plots.level_loss([1.0, 2.0], [1.0])


def test_the_share_of_time_waited_for_data_is_a_mean_over_time():
    # 1,000 images at 100 a second with 50 % waiting, then as many at 900 without any.
    log = [
        {"images": 1000.0, "loss": 1.0, "images_per_second": 100.0, "waited_share": 0.5},
        {"images": 2000.0, "loss": 1.0, "images_per_second": 900.0, "waited_share": 0.0},
    ]
    text = Page(run_page(RunReport("run", log=log)).html()).text
    assert "Waited for data 45.0 % of the training time; images kept as one .npy" in " ".join(
        text.split()
    )
    quick = [{**line, "waited_share": 0.0} for line in log]
    assert "0.0 % of the training time" in Page(run_page(RunReport("run", log=quick)).html()).text
    silent = [{"images": 1000.0, "loss": 1.0}]
    assert "Waited" not in Page(run_page(RunReport("run", log=silent)).html()).text


def test_a_number_for_fewer_real_images_says_how_many():
    row = FrechetRow("samples against held-out images", 123.25, 2000, 1000, "features", 40.0, 300)
    page = Page(run_page(RunReport("run", frechet=[row])).html()).text
    assert "real images: 40 (of 300)" in page
    same = replace(row, real_n=2000)
    assert "(of" not in Page(run_page(RunReport("run", frechet=[same])).html()).text


def test_how_many_training_images_were_searched_is_said():
    images = noise(4, 1, 8, 8)
    near = Neighbours(images, images, [0.1] * 4, searched=10_000, total=60_000)
    text = Page(run_page(RunReport("run", neighbours=near)).html()).text
    assert "among 10,000 training images of 60,000, picked at random" in text
    whole = Page(run_page(RunReport("run", neighbours=replace(near, total=10_000))).html()).text
    assert "among all 10,000 training images." in whole


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.42, "0.42 s"),
        (9.4, "9.4 s"),
        (9.96, "10 s"),
        (9.996, "10 s"),
        (59.6, "1 min 00 s"),
        (425, "7 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_duration_in_words(seconds, words):
    assert duration(seconds) == words
