"""Whole evaluations: numbers against their definition, caching, processes, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from bar_helpers import last_bar
from evaluation_helpers import pair, pooled_features, rows_of, trained
from recipe_helpers import pixels
from sfumato.cli import main
from sfumato.data.arrays import InMemory
from sfumato.data.pixels import to_model
from sfumato.errors import ConfigError, DataError
from sfumato.metrics.thinning import spread
from sfumato.processes import Processes
from sfumato.recipes.evaluation import sets
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.evaluation.explain import Truncated
from sfumato.recipes.evaluation.extractors import extractor_of
from sfumato.recipes.evaluation.job import carry_out
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.table import FeatureTable
from sfumato.recipes.evaluation.task import Places, of_run, of_sets
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model
from sfumato.recipes.run_config import DataConfig

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pooled_features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture
def model(run: Path) -> Model:
    return load(run)


def stored(count: int = 40, seed: int = 0, shape: tuple[int, int, int] = (3, 8, 8)) -> sets.Stored:
    raw = pixels(shape, count=count, seed=seed)
    return sets.Stored(InMemory(raw, None, layout="NHWC", source=f"s{seed}"), f"s{seed}")


def frechet_by_definition(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root))


def pooled(path: str, channels: slice = slice(0, 3)) -> np.ndarray[Any, Any]:
    """The same features by numpy."""
    raw = np.load(path).astype(np.float64)[..., channels].transpose(0, 3, 1, 2)
    n, c, h, w = raw.shape
    means = raw.reshape(n, c, 2, h // 2, 2, w // 2).mean((3, 5))
    return (means / 127.5 - 1).reshape(n, -1)


def test_the_frechet_distance_is_that_of_its_definition(tmp_path: Path, features: Path) -> None:
    a, b = pair(tmp_path)
    settings = Settings(("fd",), features=str(features))
    done = carry_out(
        of_sets(a, b, DataConfig(layout="NHWC"), settings, Places(tmp_path / "out")), str
    )
    assert done is not None
    expected = frechet_by_definition(pooled(a), pooled(b))
    assert rows_of(done[0])["fd"] == pytest.approx(expected, rel=1e-5)
    kept = json.loads(done[1]["JSON"].read_text())
    assert kept["rows"][0]["value"] == pytest.approx(expected, rel=1e-5)
    assert kept["provenance"]["references"]["reference"]["n"] == 60
    page = done[1]["page"].read_text()
    assert "Provenance" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_each_band_is_measured_as_grey_and_their_mean_is_given(
    tmp_path: Path, features: Path
) -> None:
    a, b = pair(tmp_path, shape=(4, 8, 8))
    settings = Settings(("fd",), features=str(features), bands="per-band")
    opening = DataConfig(layout="NHWC")
    done = carry_out(of_sets(a, b, opening, settings, Places(tmp_path / "out")), str)
    assert done is not None
    rows = rows_of(done[0])
    each = [
        frechet_by_definition(pooled(a, slice(band, band + 1)), pooled(b, slice(band, band + 1)))
        for band in range(4)
    ]
    for band, value in enumerate(each):
        assert rows[f"fd-band-{band + 1}"] == pytest.approx(value, rel=1e-4)
    assert rows["fd"] == pytest.approx(np.mean(each), rel=1e-4)
    mean, first = done[0].evaluation.rows[:2]
    assert "each of 4 bands by itself" in mean.features
    assert "band 1 of 4 by itself" in first.features


def test_chunks_join_to_the_whole_and_thinning_is_even(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "CHUNK", 7)
    images = stored(40)
    whole = to_model(pixels((3, 8, 8), count=40).transpose(0, 3, 1, 2), images.format)
    joined = torch.cat([sets.pixels(images, i) for i in range(sets.chunk_count(images))])
    assert torch.equal(joined, whole)
    thinned = sets.all_pixels(images, 10)
    assert torch.equal(thinned, whole[torch.as_tensor(spread(40, 10))])
    assert torch.equal(sets.all_pixels(images, 99), whole)


def test_a_share_of_the_work_each_gives_the_same_rows(
    tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "CHUNK", 16)
    monkeypatch.setattr("sfumato.recipes.evaluation.table.CHUNK", 16)
    extractor = extractor_of(str(features))
    made = []
    for count in (1, 3):
        table = FeatureTable(stored(40), extractor, Cache(tmp_path / str(count)))
        for rank in range(count):
            table.prepare(Processes(rank, count), lambda n: None)
        made.append(table.rows())
    assert torch.equal(*made)
    assert len(made[0]) == 40


def test_drawn_images_are_the_models_own_and_are_kept(tmp_path: Path, model: Model) -> None:
    drawn = Drawn(model, 6, Cache(tmp_path), seed=3)
    assert (drawn.chunk(0) == model.sample(6, seed=3)).all()
    with torch.no_grad():
        for p in model.network.parameters():
            p.zero_()
    fewer = Drawn(model, 4, Cache(tmp_path), seed=3)
    assert (fewer.chunk(0) == drawn.chunk(0)[:4]).all()
    more = Drawn(model, 8, Cache(tmp_path), seed=3)
    assert len(more.chunk(0)) == 8


def test_another_sampler_seed_or_checkpoint_is_another_set(tmp_path: Path, model: Model) -> None:
    config = model.recipe.sampler
    described = [
        Drawn(model, 4, Cache(tmp_path)),
        Drawn(model, 4, Cache(tmp_path), seed=1),
        Drawn(model, 4, Cache(tmp_path), sampler=replace(config, steps=2)),
        Drawn(replace(model, fingerprint="other"), 4, Cache(tmp_path)),
    ]
    assert len({str(one.description) for one in described}) == 4
    assert len(model.fingerprint) == 16


def test_truncation_takes_the_level_below(tmp_path: Path, model: Model) -> None:
    drawn = Drawn(model, 6, Cache(tmp_path))
    exact = (drawn.before_rounding(0).double().clamp(-1, 1) + 1) * 127.5
    cut = Truncated(drawn).chunk(0)
    assert (cut <= exact.numpy()).all()
    assert (exact.numpy() < cut + 1.0).all()
    assert (np.abs(drawn.chunk(0) - exact.numpy()) <= 0.5 + 1e-4).all()
    assert (cut != drawn.chunk(0)).any()


def test_a_run_is_evaluated_and_the_second_time_nothing_is_drawn(
    tmp_path: Path, run: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(("fd", "kid", "pr", "swd"), n=12, features=str(features), explain=True)
    places = Places(tmp_path / "out")
    first = carry_out(of_run(str(run), settings, places), str)
    assert first is not None

    def never(*arguments: Any) -> Any:
        raise AssertionError("drawn again")

    monkeypatch.setattr(Drawn, "_draw", never)
    monkeypatch.setattr(FeatureTable, "_compute", never)
    again = carry_out(of_run(str(run), settings, places), str)
    assert again is not None
    assert rows_of(first[0]) == rows_of(again[0])
    facts = again[0].provenance
    assert facts["samples"][0]["seed"] == 0
    assert facts["samples"][0]["weights"] == load(run).fingerprint
    assert facts["quantisation"].startswith("256 levels")
    names = [one.name for one in again[0].explained]
    assert any("JPEG" in name for name in names)
    assert any("truncated" in name for name in names)


def test_repeats_use_other_seeds_and_give_the_mean(
    tmp_path: Path, run: Path, features: Path
) -> None:
    def value(repeats: int, seed: int) -> Any:
        settings = Settings(("fd",), n=8, features=str(features), repeats=repeats, seed=seed)
        done = carry_out(of_run(str(run), settings, Places(tmp_path / "out")), str)
        assert done is not None
        return done[0].evaluation.rows[0]

    singles = [value(1, seed).value for seed in (0, 8, 16)]
    mean = value(3, 0)
    assert len(set(singles)) == 3
    assert mean.value == pytest.approx(np.mean(singles))
    assert mean.error == pytest.approx(np.std(singles, ddof=1) / 3**0.5)


def test_reference_statistics_take_the_place_of_images(
    tmp_path: Path, run: Path, features: Path
) -> None:
    settings = Settings(("fd",), n=12, features=str(features))
    file = tmp_path / "reference.npz"
    done = carry_out(
        of_run(str(run), settings, Places(tmp_path / "out", save_statistics=file)), str
    )
    assert done is not None
    with np.load(file) as read:
        assert set(read) >= {"mu", "sigma"}
    again = carry_out(of_run(str(run), settings, Places(tmp_path / "out", statistics=file)), str)
    assert again is not None
    values = [row.value for row in again[0].evaluation.rows]
    assert len(values) == 2
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    with pytest.raises(DataError, match="choose the same --features"):
        carry_out(
            of_run(
                str(run),
                replace(settings, features="efficientnet"),
                Places(tmp_path / "out", statistics=file),
            ),
            str,
        )


def test_launched_by_torchrun_the_numbers_are_the_same(
    tmp_path: Path, run: Path, features: Path
) -> None:
    # Five pieces to draw and two chunks of features: each process gets a share of both.
    command = ["evaluate", str(run), "-n", "300", "--batch", "64", "--features", str(features)]
    command += ["--metrics", "fd", "kid", "--threads", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    results = []
    for name, launcher in (
        ("one", [sys.executable, "-m", "sfumato"]),
        (
            "two",
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
                *("--master-port", "29517", "-m", "sfumato"),
            ],
        ),
    ):
        out = tmp_path / name
        finished = subprocess.run(
            [*launcher, *command, "--out", str(out), "--save-stats", str(out / "real.npz")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        # Of pieces of 64 images, the last of 44, the first of two processes draws three.
        title, share = {
            "one": ("drawing samples", 300),
            "two": ("drawing samples, process 0 of 2", 172),
        }[name]
        assert last_bar(finished.stderr, title) == (share, share)
        (file,) = out.glob("*.json")
        results.append({r["metric"]: r["value"] for r in json.loads(file.read_text())["rows"]})
        assert finished.stdout.count("JSON:") == 1
        assert (out / "real.npz").is_file()
    assert results[0] == pytest.approx(results[1], rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--metrics", "fdd"], "did you mean 'fd'"),
        (["--features", "resnet"], "unknown features 'resnet'"),
        (["--metrics", "fid", "--inception", "none.pth"], "none.pth"),
        (["-n", "1"], "--n must be 2 or more"),
        (["--metrics", "classes"], "needs labels"),
        (["--metrics", "psnr"], "pairs"),
        (["--data", "nowhere"], "no such data"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    capsys: Capture, tmp_path: Path, run: Path, arguments: list[str], reason: str
) -> None:
    status = main(["evaluate", str(run), "-n", "4", "--out", str(tmp_path), *arguments])
    assert status in (1, 2)
    assert reason in capsys.readouterr().err


def test_sets_that_differ_in_shape_or_are_too_small_are_refused(
    capsys: Capture, tmp_path: Path
) -> None:
    a, _ = pair(tmp_path / "x")
    b, _ = pair(tmp_path / "y", shape=(1, 8, 8))
    lone, _ = pair(tmp_path / "z", count=1)
    out = ["--out", str(tmp_path / "out")]
    for paths, reason in (((a, b), "3 x 8 x 8"), ((lone, a), "at least 2 images")):
        assert main(["evaluate", *paths, *out]) == 1
        assert reason in capsys.readouterr().err


def test_settings_refuse_what_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="unknown metric 'fdi'"):
        Settings(("fdi",))
