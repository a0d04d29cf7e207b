"""Whole evaluations, metric by metric, against numpy; and images picked without a stride."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from bar_helpers import ends, keep_bars
from recipe_helpers import pixels
from sfumato.data.arrays import InMemory
from sfumato.data.pixels import to_model
from sfumato.metrics.classifier import train_classifier
from sfumato.metrics.thinning import dealt, spread
from sfumato.processes import Processes
from sfumato.recipes.evaluation import of_features, of_pixels
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.extractors import extractor_of
from sfumato.recipes.evaluation.job import carry_out
from sfumato.recipes.evaluation.plan import Reference
from sfumato.recipes.evaluation.sets import Stored
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.table import FeatureTable
from sfumato.recipes.evaluation.task import Places, Task, of_sets
from sfumato.recipes.run_config import DataConfig

Array = np.ndarray[Any, Any]


class Pooled(nn.Module):
    """2 x 2 means of every channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("features") / "pooled.pt"
    torch.jit.script(Pooled()).save(str(path))
    return str(path)


def stored(raw: Array, name: str, labels: Array | None = None) -> Stored:
    """A set of raw images [n, H, W, C]."""
    classes = () if labels is None else tuple(f"c{k}" for k in range(int(labels.max()) + 1))
    return Stored(InMemory(raw, labels, layout="NHWC", source=name, classes=classes), name)


def some(count: int, seed: int, shape: tuple[int, int, int] = (3, 8, 8)) -> Array:
    return pixels(shape, count=count, seed=seed)


def values(x: Array) -> Array:
    """Raw [n, H, W, C] as [n, C, H, W] in [-1, 1], float64."""
    return x.astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1


def pooled(x: Array) -> Array:
    """Pooled of [n, C, H, W] by numpy."""
    n, c, h, w = x.shape
    return x.reshape(n, c, 2, h // 2, 2, w // 2).mean((3, 5)).reshape(n, -1)


def frechet_by_definition(a: Array, b: Array) -> float:
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root))


def evaluated(
    folder: Path,
    settings: Settings,
    samples: Stored,
    reference: Stored,
    training: Stored | None = None,
) -> Any:
    task = Task(
        "test",
        [samples],
        [Reference("reference", reference)],
        training,
        reference,
        settings,
        Places(),
        Cache(folder),
        folder,
        "cpu",
        asked=True,
    )
    done = carry_out(task, str)
    assert done is not None
    return done[0].evaluation


def rows_of(made: Any) -> dict[str, Any]:
    return {row.metric: row for row in made.rows}


# --- which images are picked ---------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5, 10, 100])
def test_thinning_keeps_every_class_of_a_set_that_cycles_through_them(classes: int) -> None:
    labels = np.arange(50_000) % classes
    once = spread(50_000, 10_000)
    twice = once[spread(10_000, 2_000)]
    for picked in (once, twice):
        share = np.bincount(labels[picked], minlength=classes) / len(picked)
        error = (1 / classes / len(picked)) ** 0.5
        assert np.abs(share - 1 / classes).max() < 4.5 * error
    assert (np.diff(once) > 0).all()
    assert set(spread(50_000, 300)) < set(once)
    assert spread(7, 9).tolist() == list(range(7))


def test_parts_are_equal_and_hold_every_class() -> None:
    part = dealt(1000, 10)
    assert np.bincount(part).tolist() == [100] * 10
    table = np.zeros((10, 10))
    np.add.at(table, (part, np.arange(1000) % 10), 1)
    assert table.min() > 0


def test_the_jackknife_does_not_follow_the_order_of_classes(tmp_path: Path, features: str) -> None:
    brightness = np.random.default_rng(5).permutation(np.repeat(np.arange(10) * 25, 40))
    errors = []
    for name, order in (("mixed", brightness), ("cycling", np.tile(np.arange(10) * 25, 40))):
        noise = np.random.default_rng(1).integers(0, 6, (400, 8, 8, 1))
        samples = stored((order[:, None, None, None] + noise).astype(np.uint8), name)
        reference = stored(some(400, 9, (1, 8, 8)), "reference")
        made = evaluated(tmp_path, Settings(("fd",), features=features), samples, reference)
        errors.append(rows_of(made)["fd"].error)
    assert errors[1] == pytest.approx(errors[0], rel=0.6)


# --- numbers -------------------------------------------------------------------------------------


def test_pca_is_that_of_the_references_pixels(tmp_path: Path, features: str) -> None:
    a, b = some(80, 0, (5, 8, 8)), some(90, 1, (5, 8, 8))
    a = a // 2
    settings = Settings(("fd",), features=features, bands="pca")
    row = rows_of(evaluated(tmp_path, settings, stored(a, "a"), stored(b, "b")))["fd"]
    flat = values(b).transpose(0, 2, 3, 1).reshape(-1, 5)
    _, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    axes = vectors[:, ::-1][:, :3].T
    axes = axes * np.sign(axes[np.arange(3), np.abs(axes).argmax(1)])[:, None]
    scale = np.quantile(np.abs((flat - flat.mean(0)) @ axes.T), 0.999, axis=0).max()

    def seen(x: Array) -> Array:
        centred = values(x) - flat.mean(0)[:, None, None]
        return pooled((np.einsum("kc,nchw->nkhw", axes, centred) / scale).clip(-1, 1))

    assert row.value == pytest.approx(frechet_by_definition(seen(a), seen(b)), rel=1e-4)
    assert "three principal components" in row.features


def test_another_reference_is_another_projection(tmp_path: Path, features: str) -> None:
    settings = Settings(("fd",), features=features, bands="pca")
    base = some(90, 1, (5, 8, 8))
    nearly = base.copy()
    nearly[0] = 255 - nearly[0]
    names = [
        rows_of(evaluated(tmp_path, settings, stored(some(80, 0, (5, 8, 8)), "a"), stored(b, "b")))[
            "fd"
        ].features
        for b in (base, nearly)
    ]
    assert names[0] != names[1]


def test_the_inception_score_is_of_a_classifier_of_the_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = keep_bars(monkeypatch, "sfumato.recipes.evaluation.workbench.tqdm")
    labels = np.arange(120) % 3
    real = some(120, 0, (1, 8, 8)) // 4 + (labels * 60).astype(np.uint8)[:, None, None, None]
    training = stored(real, "training images", labels)
    drawn = real[:60] + 5
    settings = Settings(("is",), features="classifier")
    made = evaluated(tmp_path, settings, stored(drawn, "samples"), stored(real, "b"), training)
    assert ends(bars)["classifier"] == (32, 32)  # 96 images, 24 a batch, 8 epochs
    row = rows_of(made)["is"]
    classifier = train_classifier(
        to_model(real.transpose(0, 3, 1, 2), training.format),
        torch.from_numpy(labels),
        training.classes,
    )
    p = classifier.probabilities(to_model(drawn.transpose(0, 3, 1, 2), training.format)).double()
    divergence = (p * (p / p.mean(0)).log()).sum(1).mean()
    assert row.value == pytest.approx(float(divergence.exp()), rel=1e-4)
    assert "3 classes of a small CNN" in row.name
    assert f"right on {100 * classifier.accuracy:.1f} % of 24" in row.features


def test_a_classifier_that_guesses_is_not_to_be_trusted(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 200)
    training = stored(some(200, 0, (1, 8, 8)), "training images", labels)
    settings = Settings(("is",), features="classifier")
    samples, reference = stored(some(30, 1, (1, 8, 8)), "a"), stored(some(30, 2, (1, 8, 8)), "b")
    row = rows_of(evaluated(tmp_path, settings, samples, reference, training))["is"]
    assert "says little about these images" in row.note


def test_tint_is_the_shift_of_the_mean_in_levels(tmp_path: Path) -> None:
    a, b = some(60, 0), some(70, 1)
    a[..., 1] = np.minimum(a[..., 1].astype(int) + 20, 255)
    made = evaluated(tmp_path, Settings(("tint",)), stored(a, "a"), stored(b, "b"))
    for channel in range(3):
        row = rows_of(made)[f"tint-{channel + 1}"]
        ours, theirs = (x[..., channel].mean((1, 2)).astype(float) for x in (a, b))
        assert row.value == pytest.approx(ours.mean() - theirs.mean(), abs=1e-3)
        error = (ours.var(ddof=1) / 60 + theirs.var(ddof=1) / 70) ** 0.5
        assert row.error == pytest.approx(error, rel=1e-4)


def test_memorisation_is_by_the_nearest_image_of_all(tmp_path: Path) -> None:
    training, held_out, fresh = some(80, 0), some(20, 1), some(30, 2)
    samples = np.concatenate([training[:10], fresh])
    made = evaluated(
        tmp_path,
        Settings(("memorisation",)),
        stored(samples, "samples"),
        stored(held_out, "test images"),
        stored(training, "training images"),
    )
    row = rows_of(made)["memorisation"]
    x = values(samples).reshape(40, 1, -1)
    gaps = [((x - values(y).reshape(1, len(y), -1)) ** 2).mean(2) for y in (training, held_out)]
    closer = (gaps[0].min(1) < gaps[1].min(1)).mean()
    assert row.value == pytest.approx(100 * closer / (closer + 4 * (1 - closer)))
    assert (row.n, row.n_reference) == (40, 100)
    assert "10 exact copies" in row.note


def test_classes_are_measured_one_by_one(tmp_path: Path, features: str) -> None:
    a, b = some(180, 0), some(210, 1)
    labels = [np.arange(len(x)) % 3 for x in (a, b)]
    made = evaluated(
        tmp_path,
        Settings(("classes",), features=features),
        stored(a, "a", labels[0]),
        stored(b, "b", labels[1]),
    )
    (table,) = made.classes.values()
    assert [row.name for row in table.rows] == ["c0", "c1", "c2"]
    for k, row in enumerate(table.rows):
        ours, theirs = (
            pooled(values(x[which == k])) for x, which in zip((a, b), labels, strict=True)
        )
        assert row.distance == pytest.approx(frechet_by_definition(ours, theirs), rel=1e-4)
        assert (row.n_fake, row.n_real) == (60, 70)


def test_infinity_is_the_intercept_of_a_line_through_subsets(tmp_path: Path, features: str) -> None:
    a, b = some(300, 0), some(300, 1)
    settings = Settings(("fd",), features=features, infinity=True, seed=4)
    rows = rows_of(evaluated(tmp_path, settings, stored(a, "a"), stored(b, "b")))
    ours, theirs = pooled(values(a)), pooled(values(b))
    shuffled = ours[np.random.default_rng(4).permutation(300)]
    means = [
        np.mean([frechet_by_definition(part, theirs) for part in np.array_split(shuffled, k)])
        for k in range(1, 6)
    ]
    number = np.arange(1, 6)
    _, intercept = np.polyfit(number / 300, means, 1, w=number**-0.5)
    assert rows["fd-infinity"].value == pytest.approx(intercept, rel=1e-3)
    assert rows["fd-infinity"].value < rows["fd"].value


# --- memory --------------------------------------------------------------------------------------


def test_only_so_many_images_are_held_as_memory_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def little(shape: tuple[int, ...], most: int = 10_000) -> int:
        return min(most, 16)

    monkeypatch.setattr(of_pixels, "held", little)
    sets = [stored(some(n, n), str(n)) for n in (40, 50, 60)]
    rows = rows_of(evaluated(tmp_path, Settings(("memorisation", "swd")), *sets))
    assert (rows["memorisation"].n, rows["memorisation"].n_reference) == (16, 32)
    assert (rows["swd"].n, rows["swd"].n_reference) == (16, 16)


def test_only_so_many_rows_are_held_as_memory_takes(
    tmp_path: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_features, "MOST_BYTES", 0)
    monkeypatch.setattr(of_features, "_MOST", 150)
    a, b = (stored(some(200, seed), str(seed), np.arange(200) % 2) for seed in (0, 1))
    settings = Settings(("fd", "classes"), features=features, infinity=True)
    made = evaluated(tmp_path, settings, a, b)
    assert rows_of(made)["fd"].n == 200
    assert rows_of(made)["fd-infinity"].n == 150
    (table,) = made.classes.values()
    assert sum(row.n_fake for row in table.rows) == 150
    # Each row still goes by its own label.
    x = FeatureTable(a, extractor_of(features), Cache(tmp_path))
    x.prepare(Processes(), lambda n: None)
    y = FeatureTable(b, extractor_of(features), Cache(tmp_path))
    y.prepare(Processes(), lambda n: None)
    picked = spread(200, 150)
    ours, theirs = (t.rows().double().numpy()[picked[picked % 2 == 0]] for t in (x, y))
    assert table.rows[0].distance == pytest.approx(frechet_by_definition(ours, theirs), rel=1e-4)


def test_shifts_are_told_in_units_of_the_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bands = rng.random((60, 8, 8, 5)).astype(np.float32) * 0.8
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    shifted = bands.copy()
    shifted[..., 2] += 0.1
    for path, values in zip(paths, (shifted, bands), strict=True):
        np.save(path, values)
    settings = Settings(("tint",))
    opening = DataConfig(layout="NHWC", value_range=(0.0, 1.0))
    task = of_sets(*map(str, paths), opening, settings, Places(tmp_path / "out"))
    done = carry_out(task, str)
    assert done is not None
    rows = {row.metric: row for row in done[0].evaluation.rows}
    assert rows["tint-3"].name == "Shift of band 3, % of the range"
    assert rows["tint-3"].value == pytest.approx(10.0, abs=1e-3)
    assert rows["tint-1"].value == pytest.approx(0.0, abs=1e-6)
