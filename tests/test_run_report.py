"""The report of a run: what it shows of any value range, what it measures, how it is repeated."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bar_helpers import ends, keep_bars
from recipe_helpers import QUIET, array_file, open_run, pixels, small
from sfumato.cli.parse import parse
from sfumato.cli.train import TrainOptions
from sfumato.data.arrays import InMemory
from sfumato.data.images import Images, UnreadableImageError
from sfumato.data.pixels import to_model
from sfumato.errors import DataError
from sfumato.recipes import measuring, page, real_images
from sfumato.recipes.commands import sample_command, train_command
from sfumato.recipes.config import Recipe
from sfumato.recipes.presets import recipe
from sfumato.recipes.real_images import RealImages, spread
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import Bookkeeping, DataConfig, RunConfig
from sfumato.recipes.run_data import IN_MEMORY
from sfumato.report.grid import display_pixels
from sfumato.report.run_report import RunReport


class Decoded(InMemory):
    """Images that must be decoded, some of them broken; counts how many are read at once."""

    def __init__(self, array: NDArray[Any], broken: tuple[int, ...] = (), **options: Any) -> None:
        super().__init__(array, **options)
        self.resident, self.broken = False, broken
        self.most_at_once = 0

    def names(self, i: int) -> str:
        return f"img{i}"

    def read(self, indices: Any) -> NDArray[Any]:
        self.most_at_once = max(self.most_at_once, len(indices))
        for i in indices:
            if i in self.broken:
                raise UnreadableImageError(f"img{i} (broken)", int(i))
        return super().read(indices)


class MeanPixel:
    """A cheap FeatureExtractor that counts what it sees."""

    name, fingerprint, dimensions = "mean pixel", "0", 2

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1)


def numbered(count: int) -> NDArray[np.uint8]:
    """Images [n, 2, 2] of which image i is all i."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 2, 2)).copy()


# --- real images ---------------------------------------------------------------------------------


def test_real_images_are_spread_and_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Decoded(numbered(200))
    four_bytes_a_value = 4 * 4
    real = RealImages(images, most_bytes=50 * four_bytes_a_value)
    assert len(real) == 200
    expected = to_model(images.read(spread(200, 50)), images.format)
    assert torch.equal(real.x, expected)
    # More are streamed, each once and in order, never all at once.
    monkeypatch.setattr(real_images, "_BATCH", 16)
    images.most_at_once = 0
    streamed = torch.cat(list(real.stream()))
    assert torch.equal(streamed, to_model(images.read(range(200)), images.format))
    assert torch.equal(torch.cat(list(real.stream(20))), streamed[spread(200, 20)])
    assert len(torch.cat(list(real.stream(1000)))) == 200


def test_batches_of_real_images_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_images, "_BATCH", 16)
    images = Decoded(numbered(100))
    real = RealImages(images)
    assert [len(x) for x in real.stream(90)] == [16] * 5 + [10]
    assert images.most_at_once == 16


def test_the_default_bound_holds_for_large_images() -> None:
    assert real_images.held((3, 32, 32)) == 10_000
    assert real_images.held((3, 256, 256)) == 512 * 2**20 // (4 * 3 * 256 * 256)
    assert real_images.held((3, 4096, 4096)) == 16


def test_a_broken_file_is_replaced_with_its_neighbours_label_and_named() -> None:
    labels = np.arange(120) % 3
    images = Decoded(numbered(120), broken=(7,), labels=labels)
    real = RealImages(images)
    assert real.broken == ("img7 (broken)",)
    assert torch.equal(real.x[7], real.x[8])
    assert real.labels is not None
    assert real.labels[6:10].tolist() == [0, 2, 2, 0]
    with pytest.raises(DataError, match="2 of 120 images"):
        RealImages(Decoded(numbered(120), broken=(7, 8, 50)))


# --- what is measured ----------------------------------------------------------------------------


def test_real_images_are_compared_at_the_number_of_the_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "efficientnet_features", MeanPixel)
    rng = np.random.default_rng(0)

    def some(n: int) -> Images:
        return InMemory(rng.integers(0, 256, (n, 4, 4), np.uint8))

    samples = torch.rand(90, 1, 4, 4) * 2 - 1
    # Held in memory are only 16: the number of images compared must not follow.
    training, held_out = RealImages(some(300), most_bytes=1), RealImages(some(40), most_bytes=1)
    assert len(training.x) == 16
    (row,), _ = measuring.frechet(samples, training, held_out)
    assert (row.n, row.real_n, row.reference_n) == (90, 90, 40)
    (row,), _ = measuring.frechet(samples, RealImages(some(60)), held_out)
    assert (row.n, row.real_n) == (90, 60)
    (row,), _ = measuring.frechet(samples, training, None)
    assert (row.real_vs_real, row.real_n, row.reference_n) == (None, None, 300)
    rows, (reason,) = measuring.frechet(samples[:1], training, held_out)
    assert rows == []
    assert "at least 2 samples" in reason


def test_neighbours_say_among_how_many_they_were_found() -> None:
    real = RealImages(InMemory(numbered(200)), most_bytes=1)
    near = measuring.neighbours(real.x[:3], real, None)
    assert (near.searched, near.total) == (16, 200)
    assert list(near.distances) == [0, 0, 0]


# --- the page ------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[RunReport]:
    """What is put on the page, in place of the page."""
    reports: list[RunReport] = []
    monkeypatch.setattr(page, "write_run_report", lambda path, report: reports.append(report))
    monkeypatch.setattr(measuring, "efficientnet_features", MeanPixel)
    return reports


def report_of(folder: Path, images: Images, chosen: Recipe | None = None) -> Run:
    config = RunConfig(chosen or small(), DataConfig(), replace(QUIET, report_samples=5))
    run = Run.open(config, folder, images=images)
    for _ in run.steps():
        pass
    run.write_report()
    return run


def test_all_that_takes_long_shows_a_bar_that_ends_at_its_total(
    tmp_path: Path, shown: list[RunReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = keep_bars(monkeypatch, "sfumato.recipes.measuring.tqdm")
    images = InMemory(pixels(count=12), np.arange(12) % 2, layout="NHWC", source="test")
    test = InMemory(pixels(count=9, seed=1), np.arange(9) % 2, layout="NHWC", source="test")
    config = RunConfig(small(), DataConfig(), replace(QUIET, report_samples=5))
    run = Run.open(config, tmp_path, images=images, test=test)
    for _ in run.steps():
        pass
    run.write_report()
    assert len(shown) == 1
    assert ends(bars) == {
        "reading training images": (12, 12),
        "reading held-out images": (9, 9),
        "features of held-out images": (9, 9),
        "features of samples": (5, 5),
        "features of training images": (5, 5),
        "classifier": (48, 48),  # 12 epochs of 4 batches of 3
    }


@pytest.mark.parametrize(
    ("raw", "value_range"),
    [
        (pixels(dtype="float32"), (0.0, 1.0)),
        (pixels(dtype="float32") * 60 + 250, (250.0, 310.0)),
        ((pixels(dtype="float32") * 4095).astype(np.uint16), (0.0, 4095.0)),
        ((pixels(dtype="float32") > 0.5).astype(np.uint8), (0.0, 1.0)),
    ],
    ids=["unit", "kelvin", "12-bit", "mask"],
)
def test_black_is_black_and_white_is_white_in_any_value_range(
    raw: NDArray[Any],
    value_range: tuple[float, float],
    tmp_path: Path,
    shown: list[RunReport],
) -> None:
    low, high = value_range
    raw[0, 0, 0], raw[0, 0, 1] = low, high
    images = InMemory(raw, None, (), value_range, layout="NHWC")
    report_of(tmp_path, images)
    (report,) = shown
    assert report.real is not None
    real = display_pixels(report.real)
    assert (real[0, 0, 0, 0], real[0, 0, 1, 0]) == (0, 255)
    scaled = (raw.astype(np.float64) - low) / (high - low) * 255
    assert np.abs(real - scaled).max() <= 0.5 + 1e-3
    assert report.samples is not None
    # Samples are in the same units: clipped there, so never all grey.
    assert isinstance(report.samples, torch.Tensor)
    assert -1 <= float(report.samples.min()) < float(report.samples.max()) <= 1


def test_a_broken_file_becomes_a_warning(tmp_path: Path, shown: list[RunReport]) -> None:
    raw = pixels(count=120)
    report_of(tmp_path, Decoded(raw, broken=(3,), layout="NHWC", source="photos"))
    (report,) = shown
    (warning,) = [text for text in report.warnings if "unreadable" in text]
    assert warning == "photos: 1 unreadable files were left out or replaced: img3 (broken)"
    assert report.real is not None
    assert len(report.real) == 64


def test_too_few_images_for_a_classifier_do_not_cost_the_report(
    tmp_path: Path, shown: list[RunReport]
) -> None:
    images = InMemory(pixels(count=4), np.array([0, 1, 0, 1]), layout="NHWC")
    run = Run.open(
        RunConfig(small(), DataConfig(classes=True), replace(QUIET, report_samples=3)),
        tmp_path,
        images=images,
    )
    for _ in run.steps():
        pass
    run.write_report()
    assert any("No class shares" in text for text in shown[0].warnings)


# --- how to do it again --------------------------------------------------------------------------


def understood(command: str) -> TrainOptions:
    program, verb, name, *options = shlex.split(command)
    assert (program, verb) == ("sfumato", "train")
    return parse(TrainOptions, options, "train", "", default=TrainOptions(recipe=recipe(name)))


def test_the_command_on_the_page_says_every_option_that_differs(tmp_path: Path) -> None:
    data = tmp_path / "my photos; 'best of'"
    data.mkdir()
    base = recipe("edm-tiny")
    chosen = replace(
        base,
        network=replace(base.network, width=8, multipliers=(1, 2), attention=(), label_dropout=0.1),
        process=replace(base.process, sigma_data=0.4321),
        noise=replace(base.noise, mean=-1e-05, std=1.5, antithetic=False),
        optimizer=replace(base.optimizer, learning_rate=1e-05, decay="constant"),
        sampler=replace(base.sampler, sigma_min=0.01, guidance=2.0, clip=True),
        flip=True,
        seed=7,
        images=1234,
    )
    config = RunConfig(
        chosen,
        DataConfig(
            data=str(data),
            test=str(tmp_path),
            size=(32, 48),
            fit="stretch",
            alpha="keep",
            value_range=(0.0, 4095.0),
            layout="NCHW",
            channels=3,
            classes=True,
        ),
        Bookkeeping(minutes=2.5, threads=1, tensorboard=False, report_samples=17, save_every=9),
    )
    options = understood(train_command(config))
    assert options.recipe == config.recipe
    assert options.data == config.data
    assert options.run == config.run


@pytest.mark.parametrize("name", ["ddpm-tiny", "ve", "edm-tiny"])
def test_the_command_of_an_unchanged_recipe_is_short(name: str) -> None:
    config = RunConfig(recipe(name), DataConfig(data="fashion-mnist:train"))
    assert train_command(config) == f"sfumato train {name} --data fashion-mnist:train"
    assert understood(train_command(config)).recipe == config.recipe


def test_a_run_that_no_command_makes_says_so(tmp_path: Path) -> None:
    own = RunConfig(replace(recipe("edm-tiny"), name="mine"), DataConfig(data="fashion-mnist:test"))
    assert train_command(own).startswith("# 'mine' is no built-in recipe")
    for data in (DataConfig(data=IN_MEMORY), DataConfig(data="x", test=IN_MEMORY), DataConfig()):
        command = train_command(RunConfig(recipe("edm-tiny"), data))
        assert command.startswith("# trained on images in memory")
    assert sample_command(tmp_path / "a b") == f"sfumato sample '{tmp_path}/a b' -n 64"


def test_the_command_of_a_run_is_on_its_page(tmp_path: Path, shown: list[RunReport]) -> None:
    run = open_run(tmp_path / "run", array_file(tmp_path / "the data"), report_samples=4)
    for _ in run.steps():
        pass
    run.write_report()
    again, draw = shown[0].commands
    options = understood(again)
    timings = shown[0].timings
    assert timings["waiting for data"] == run.progress.waited > 0
    assert timings["training"] + timings["waiting for data"] == pytest.approx(run.seconds)
    assert options.recipe == run.recipe
    assert options.data == run.config.data
    assert draw == sample_command(tmp_path / "run")
