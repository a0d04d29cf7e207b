"""What cannot be measured is found before anything is drawn, and costs nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation_helpers import NHWC, image_folder, pair, pooled_features, rows_of, trained
from recipe_helpers import pixels
from sfumato.cli import main
from sfumato.errors import ConfigError, DataError
from sfumato.recipes.evaluation import of_features
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.evaluation.job import carry_out
from sfumato.recipes.evaluation.outcome import number
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.task import Places, of_run, of_sets
from sfumato.recipes.run_config import DataConfig
from sfumato.report.html import Report

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pooled_features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


def never(*arguments: Any) -> Any:
    raise AssertionError("this should not have been reached")


def kept_json(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("evaluation-*.json")
    return json.loads(file.read_text())


def noisy(count: int = 120, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8))


def test_a_metric_that_cannot_be_had_does_not_take_the_others_along(
    capsys: Capture, tmp_path: Path, run: Path, features: Path
) -> None:
    command = ["evaluate", str(run), "-n", "4", "--features", str(features)]
    status = main([*command, "--out", str(tmp_path), "--metrics=fd", "psnr"])
    said = capsys.readouterr()
    assert status == 1
    assert "psnr compares pairs" in said.err
    assert "Fréchet distance" in said.out
    kept = kept_json(tmp_path)
    assert [row["metric"] for row in kept["rows"]] == ["fd"]
    assert kept["failed"]


def test_a_failure_while_measuring_leaves_the_table(
    tmp_path: Path, run: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **more: Any) -> Any:
        raise DataError("too few of something")

    monkeypatch.setattr(of_features, "kernel", fail)
    settings = Settings(("kid", "fd"), n=4, features=str(features))
    done = carry_out(of_run(str(run), settings, Places(tmp_path)), str)
    assert done is not None
    assert list(rows_of(done[0])) == ["fd"]
    assert done[0].evaluation.failed
    assert done[0].evaluation.left_out == ["kid: too few of something"]
    with pytest.raises(DataError, match="too few of something"):
        carry_out(of_run(str(run), replace(settings, metrics=("kid",)), Places(tmp_path)), str)


@pytest.mark.parametrize(
    ("metrics", "changes", "reason"),
    [
        (("psnr",), {}, "has no partner"),
        (("memorisation",), {}, "give --data"),
        (("is",), {}, "needs an extractor with classes"),
        (("fid",), {"inception": Path("none.pth")}, "none.pth"),
        (("fd",), {"features": "classifier"}, "labelled"),
    ],
)
def test_it_is_found_before_anything_is_drawn(
    tmp_path: Path,
    run: Path,
    features: Path,
    monkeypatch: pytest.MonkeyPatch,
    metrics: tuple[str, ...],
    changes: dict[str, Any],
    reason: str,
) -> None:
    monkeypatch.setattr(Drawn, "_draw", never)
    settings = Settings(metrics, **({"n": 4, "features": str(features)} | changes))
    with pytest.raises(Exception, match=reason):
        carry_out(of_run(str(run), settings, Places(tmp_path)), str)


def test_a_place_for_statistics_is_checked_before_anything_is_drawn(
    tmp_path: Path, run: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drawn, "_draw", never)
    settings = Settings(("fd",), n=4, features=str(features))
    places = Places(tmp_path / "out", save_statistics=tmp_path / "real.npy")
    with pytest.raises(ConfigError, match=r"NAME\.npz"):
        carry_out(of_run(str(run), settings, places), str)


def test_foreign_statistics_serve_the_distances_and_the_rest_goes_on(
    tmp_path: Path, run: Path, features: Path
) -> None:
    rows = np.random.default_rng(0).normal(size=(100, 4))
    file = tmp_path / "theirs.npz"
    np.savez(file, mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    settings = Settings(("fd", "kid", "pr", "swd"), n=8, features=str(features))
    done = carry_out(of_run(str(run), settings, Places(tmp_path / "out", statistics=file)), str)
    assert done is not None
    against = {(row.metric, row.against) for row in done[0].evaluation.rows}
    assert {("fd", "theirs.npz"), ("fd", "training images"), ("kid", "training images")} <= against
    assert ("kid", "theirs.npz") not in against
    assert any("does not say how many" in verdict for verdict in done[0].evaluation.verdicts)
    told = done[0].provenance["references"]["theirs.npz"]
    assert len(told["hash"]) == 32
    assert any("kid" in reason for reason in done[0].evaluation.left_out)

    np.savez(file, mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(DataError, match="7 features an image"):
        carry_out(of_run(str(run), settings, Places(tmp_path / "out", statistics=file)), str)
    other = replace(settings, metrics=("kid",))
    with pytest.raises(DataError, match="serves only"):
        carry_out(of_run(str(run), other, Places(tmp_path / "out", statistics=file)), str)


def test_statistics_seen_another_way_are_refused(
    tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair(tmp_path)
    settings = Settings(("fd",), features=str(features), feed_size=6)
    file = tmp_path / "new folder" / "real.npz"
    carry_out(of_sets(a, b, NHWC, settings, Places(tmp_path / "o", save_statistics=file)), str)
    again = Places(tmp_path / "o", statistics=file)
    done = carry_out(of_sets(a, b, NHWC, settings, again), str)
    assert done is not None
    first, second = (row.value for row in done[0].evaluation.rows)
    assert first == pytest.approx(second, rel=1e-9)
    for change in ({"feed_size": 5}, {"resize": "clean-fid"}, {"feed_high": 2.0}):
        with pytest.raises(DataError, match="choose the same --resize"):
            carry_out(of_sets(a, b, NHWC, replace(settings, **change), again), str)


def test_pairs_are_those_of_equal_names(tmp_path: Path) -> None:
    values = noisy(6)
    a = image_folder(tmp_path / "a", values, [f"{i}" for i in range(6)], "png")
    b = image_folder(tmp_path / "b", values ^ 1, [f"{i}" for i in range(6)])
    c = image_folder(tmp_path / "c", values, [f"{i}" for i in range(1, 7)], "png")
    settings = Settings(("psnr",), reference_n=3)
    done = carry_out(of_sets(a, b, DataConfig(), settings, Places(tmp_path / "out")), str)
    assert done is not None
    row = done[0].evaluation.rows[0]
    assert row.n == 6
    assert row.value == pytest.approx(20 * np.log10(255), rel=1e-6)
    with pytest.raises(DataError, match="'0' of the samples would meet '1' of the reference"):
        carry_out(of_sets(a, c, DataConfig(), settings, Places(tmp_path / "out")), str)


def test_classes_are_compared_by_name(tmp_path: Path, features: Path) -> None:
    def folder(name: str, kinds: str, shift: int) -> str:
        names = [f"{kind}/{i:03d}" for kind in kinds for i in range(60)]
        values = np.concatenate([noisy(60, ord(kind)) // 2 + shift for kind in kinds])
        return image_folder(tmp_path / name, values, names)

    a, b, c = folder("a", "xy", 0), folder("b", "xy", 60), folder("c", "xz", 0)
    settings = Settings(("classes",), features=str(features))
    labelled = DataConfig(classes=True)
    done = carry_out(of_sets(a, b, labelled, settings, Places(tmp_path / "out")), str)
    assert done is not None
    (table,) = done[0].evaluation.classes.values()
    expected = 4 * (60 / 127.5) ** 2  # the same images, brighter
    for row in table.rows:
        assert row.distance == pytest.approx(expected, rel=1e-4)
    with pytest.raises(DataError, match=r"have x, y, the reference x, z"):
        carry_out(of_sets(a, c, labelled, settings, Places(tmp_path / "out")), str)


def test_a_brighter_set_is_told_by_how_much(tmp_path: Path) -> None:
    values = noisy(60) // 2
    a, b = (image_folder(tmp_path / name, values + up) for name, up in (("a", 10), ("b", 0)))
    settings = Settings(("tint",))
    done = carry_out(of_sets(a, b, DataConfig(), settings, Places(tmp_path / "out")), str)
    assert done is not None
    assert rows_of(done[0])["tint"] == pytest.approx(10, abs=1e-6)
    assert "Against reference" in done[0].text()


def test_the_inception_score_of_the_users_own_classes(tmp_path: Path) -> None:
    names = [f"{kind}/{i:03d}" for kind in "xy" for i in range(100)]
    values = np.concatenate([noisy(100) // 4, noisy(100, 1) // 4 + 190])
    folder = image_folder(tmp_path / "a", values, names)
    settings = Settings(("is",), features="classifier")
    done = carry_out(of_sets(folder, folder, DataConfig(classes=True), settings,
                             Places(tmp_path / "out")), str)  # fmt: skip
    assert done is not None
    (row,) = done[0].evaluation.rows
    assert "2 classes" in row.name
    assert 1.7 < row.value <= 2  # two classes, plain to see: all but exp(ln 2)


@pytest.mark.parametrize("options", ["-n 8", "--data x", "--class 1", "--weights ema", "--steps 3"])
def test_options_for_drawing_are_refused_for_stored_sets(
    capsys: Capture, tmp_path: Path, options: str
) -> None:
    a, b = pair(tmp_path)
    assert main(["evaluate", a, b, "--layout", "NHWC", *options.split()]) == 2
    assert "these are for a run" in capsys.readouterr().err


def test_a_run_judged_by_images_of_another_size_brings_them_to_its_own(
    capsys: Capture, tmp_path: Path, run: Path, features: Path
) -> None:
    large = image_folder(tmp_path / "large", np.kron(noisy(20), np.ones((2, 2))))
    command = ["evaluate", str(run), "-n", "4", "--features", str(features), "--metrics", "fd"]
    command += ["--data", large, "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert main([*command, "--size", "8", "8"]) == 0
    assert "test images" in capsys.readouterr().out


def test_images_that_are_gone_or_changed_are_told(tmp_path: Path, features: Path) -> None:
    run = trained(tmp_path)
    settings = Settings(("fd",), n=4, features=str(features))
    data = tmp_path / "images.npy"
    other = tmp_path / "other.npy"
    np.save(other, pixels((1, 8, 8), seed=5))

    def told(**names: str) -> list[str]:
        done = carry_out(of_run(str(run), settings, Places(tmp_path / "out"), **names), str)
        assert done is not None
        return done[0].evaluation.verdicts

    assert told() == []
    assert "no longer, those the model was trained on" in " ".join(told(training=str(other)))
    np.save(data, pixels((1, 8, 8), seed=7))
    assert "no longer, those the model was trained on" in " ".join(told())
    data.unlink()
    assert "is no longer there" in " ".join(told(test=str(other)))
    with pytest.raises(ConfigError, match="is no longer there"):
        told()


def test_the_terminal_says_what_a_number_rests_on(
    tmp_path: Path, run: Path, features: Path
) -> None:
    settings = Settings(("fd", "tint"), n=30, features=str(features), repeats=2)
    test, _ = pair(tmp_path, count=40, shape=(1, 8, 8))
    done = carry_out(of_run(str(run), settings, Places(tmp_path / "out"), test=test), str)
    assert done is not None
    text = done[0].text()
    assert "[1] mean of 2 repeats" in text
    assert "seeds 0 to 29, 30 to 59" in text
    assert "256 levels" in text
    reference = done[0].provenance["references"]["test images"]["images"]
    assert reference[:16] in text
    assert torch.__version__ in text
    verdicts = done[0].evaluation.verdicts
    assert [verdict[:9] for verdict in verdicts] == ["Repeat 1.", "Repeat 2."]
    assert len(done[0].evaluation.left_out) == 2  # the 12 training images are too few for tint


def test_a_run_has_one_section_of_quality_the_newest(tmp_path: Path, features: Path) -> None:
    run = trained(tmp_path)
    report = run / "report.html"
    page = Report("a run", "")
    page.section("Losses", "as they fell")
    page.write(report)
    for n in (6, 8):
        settings = Settings(("fd",), n=n, features=str(features))
        done = carry_out(of_run(str(run), settings, Places(tmp_path / "out")), str)
        assert done is not None
        assert report in done[1].values()
    text = report.read_text()
    assert text.count(">Quality<") == 1
    assert "Losses" in text
    assert number(rows_of(done[0])["fd"]) in text


def test_principal_components_and_memorisation_of_two_sets(tmp_path: Path, features: Path) -> None:
    a, b = pair(tmp_path, shape=(5, 8, 8))
    settings = Settings(("fd", "memorisation"), features=str(features), bands="pca", infinity=True)
    task = of_sets(a, b, NHWC, settings, Places(tmp_path / "out"), training=a)
    done = carry_out(task, str)
    assert done is not None
    rows = done[0].evaluation.rows
    assert {row.metric for row in rows} == {"fd", "fd-infinity", "memorisation"}
    assert "three principal components" in rows[0].features
    assert rows_of(done[0])["memorisation"] == 100  # the samples are the training images
    assert "training images" in done[0].provenance["memorisation"]
    other = replace(settings, metrics=("memorisation",))
    with pytest.raises(DataError, match="give --training"):
        carry_out(of_sets(a, b, NHWC, other, Places(tmp_path / "out")), str)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"feed_size": 8}, "are for --features"),
        ({"features": "x.pt", "resize": "clean-fid"}, "needs the size"),
        ({"features": "x.pt", "feed_low": 1.0}, "must be below"),
        ({"explain": True, "bands": "per-band"}, "leave out --bands"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Settings(**changes)


def test_the_weights_of_fid_are_named_once() -> None:
    assert Settings(features="inception:here.pth").extractor_for("fid") == "inception:here.pth"
    assert Settings(inception=Path("a.pth")).extractor_for("fid") == "inception:a.pth"


def test_a_run_given_with_a_second_path_is_told_how_to_name_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("")
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((4, 8, 8, 3), np.uint8))
    assert main(["evaluate", str(run), str(images)]) == 2
    assert f"--data {images}" in capsys.readouterr().err
    assert main(["evaluate", str(images)]) == 2
    assert "is no run" in capsys.readouterr().err


def test_a_folder_is_judged_by_statistics_alone(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    file = pooled_features(tmp_path)
    settings = Settings(("fd",), features=str(file))
    kept = tmp_path / "b.npz"
    both = of_sets(a, b, NHWC, settings, Places(tmp_path / "one", save_statistics=kept))
    first = carry_out(both, str)
    alone = of_sets(a, "", NHWC, settings, Places(tmp_path / "two", statistics=kept))
    second = carry_out(alone, str)
    assert first is not None
    assert second is not None
    assert rows_of(second[0])["fd"] == pytest.approx(rows_of(first[0])["fd"], rel=1e-9)


def test_labels_are_wanted_only_where_there_are_any(tmp_path: Path) -> None:
    values = np.arange(40 * 64).reshape(40, 8, 8) % 255
    flat = image_folder(tmp_path / "flat", values)
    sorted_in = image_folder(tmp_path / "sorted", values, [f"{'ab'[i % 2]}/{i}" for i in range(40)])
    settings = Settings(("fd",), features=str(pooled_features(tmp_path)))
    opening = DataConfig(classes=True)
    for a, b in ((flat, sorted_in), (sorted_in, flat)):
        done = carry_out(of_sets(a, b, opening, settings, Places(tmp_path / "out")), str)
        assert done is not None
        assert rows_of(done[0])["fd"] < 1e-6
