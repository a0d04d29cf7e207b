"""Short runs: a log and a page that tell the truth though no window was ever full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from recipe_helpers import BATCH, array_file, log_of, open_run, small
from sfumato.cli.train import TrainOptions
from sfumato.recipes import page as page_module
from sfumato.recipes.commands import train_command
from sfumato.recipes.presets import recipe
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from sfumato.report.run_page import run_page
from sfumato.report.run_report import FrechetRow, RunReport


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = open_run(tmp_path / "run", array_file(tmp_path), small(steps=5), log_every=50)
    list(run.steps())
    return run


def test_the_first_and_the_last_step_are_logged(run: Run) -> None:
    lines = log_of(run.folder)
    assert [(line["step"], line["images"]) for line in lines] == [(1, BATCH), (5, 5 * BATCH)]


def test_a_window_cut_short_by_the_end_starts_anew_when_trained_on(
    tmp_path: Path, run: Run
) -> None:
    data = tmp_path / "images.npy"
    data = data if data.exists() else next(tmp_path.glob("*.npy"))
    longer = open_run(run.folder, data, small(steps=8), resume=True, log_every=8)
    losses = [record.loss for record in longer.steps()]
    lines = log_of(run.folder)
    assert [line["step"] for line in lines] == [1, 5, 8]
    assert lines[-1]["loss"] == pytest.approx(sum(losses) / 3)


def test_the_page_says_the_images_of_the_run_and_where_it_was_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[RunReport] = []
    monkeypatch.setattr(page_module, "write_run_report", lambda _, page: shown.append(page))
    run.config = replace(run.config, run=replace(run.config.run, report_samples=4))
    run.write_report()
    assert shown[0].images_seen == 5 * BATCH
    assert shown[0].commands[0].endswith(f" --out {run.folder}")
    # So few images tell nothing about which noise levels suit them.
    assert shown[0].levels is not None
    assert "--noise.mean" not in shown[0].levels.advice
    assert "suit" not in shown[0].levels.advice


def test_images_seen_are_the_runs_and_not_the_logs() -> None:
    page = run_page(RunReport("a", log=[{"images": 50, "loss": 1.0}], images_seen=777))
    text = page.html()
    assert "Images seen" in text
    assert "777" in text


@pytest.mark.parametrize("real", [None, 3.0])
def test_a_distance_is_compared_with_real_images_only_where_these_were_measured(
    real: float | None,
) -> None:
    row = FrechetRow("samples against training images", 5.0, 4, 9, "some features", real)
    text = run_page(RunReport("a", frechet=[row])).html()
    assert ("with the value for real images" in text) == (real is not None)


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("runs/edm-tiny", False),
        ("runs/edm-tiny-12", False),
        ("runs/edm-tiny-photos", True),
        ("elsewhere/edm-tiny", True),
    ],
)
def test_out_is_named_where_it_is_not_the_default(folder: str, told: bool) -> None:
    config = RunConfig(recipe("edm-tiny"), DataConfig(data="fashion-mnist:train"))
    command = train_command(config, Path(folder))
    assert command.endswith(f" --out {folder}") == told
    assert TrainOptions().out is None
