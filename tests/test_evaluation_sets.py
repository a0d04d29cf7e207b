"""What is kept is found again by what it was made of, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation_helpers import NHWC, image_folder, pair, pooled_features, rows_of, trained
from recipe_helpers import pixels
from sfumato.data import open_images
from sfumato.data.arrays import InMemory
from sfumato.errors import ConfigError, DataError
from sfumato.processes import Processes, own_device
from sfumato.recipes.evaluation import drawn as drawn_module
from sfumato.recipes.evaluation import sets
from sfumato.recipes.evaluation.cache import Cache
from sfumato.recipes.evaluation.drawn import Drawn
from sfumato.recipes.evaluation.extractors import extractor_of
from sfumato.recipes.evaluation.job import carry_out
from sfumato.recipes.evaluation.settings import Settings
from sfumato.recipes.evaluation.table import FeatureTable
from sfumato.recipes.evaluation.task import Places, of_run, of_sets
from sfumato.recipes.loading import load


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pooled_features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


def grey(mean: int, count: int = 30) -> np.ndarray[Any, Any]:
    return np.random.default_rng(mean).integers(mean - 20, mean + 20, (count, 8, 8))


def test_files_of_one_name_and_length_are_told_apart_by_their_pixels(
    tmp_path: Path, features: Path
) -> None:
    dark, light = (image_folder(tmp_path / str(mean), grey(mean)) for mean in (60, 200))
    settings = Settings(("fd",), features=str(features))
    done = carry_out(of_sets(dark, light, NHWC, settings, Places(tmp_path / "out")), str)
    assert done is not None
    # Four features, each 140 of 127.5 apart: the squared distance of the means alone is 4.8.
    assert rows_of(done[0])["fd"] == pytest.approx(4 * (140 / 127.5) ** 2, rel=0.1)


def test_a_changed_pixel_anywhere_in_an_array_is_another_set() -> None:
    raw = pixels(count=4000)
    changed = raw.copy()
    changed[1234, 3, 3, 0] ^= 1

    def of(values: np.ndarray[Any, Any]) -> Any:
        return sets.Stored(InMemory(values, None, layout="NHWC", source="s"), "s").description

    assert of(raw) == of(raw.copy())
    assert of(raw) != of(changed)


def test_labels_are_those_of_the_images_really_read(tmp_path: Path) -> None:
    names = [f"{kind}/{i:03d}" for kind in ("a", "b") for i in range(150)]
    values = np.concatenate([grey(60, 150), grey(200, 150)])
    folder = Path(image_folder(tmp_path / "images", values, names, kind="png"))
    images = open_images(str(folder), labels=True)
    last = folder / "a" / "149.png"
    last.write_bytes(last.read_bytes()[:60])  # cut short after it was opened
    stored = sets.Stored(images, "images")
    labels = stored.labels()
    assert labels is not None
    assert labels.tolist() == [0] * 149 + [1] * 151
    assert stored.chunk(0)[149].mean() > 150
    assert len(stored.broken) == 1
    assert "149" in stored.broken[0]


def test_a_cache_file_cut_short_is_made_again(tmp_path: Path) -> None:
    shelf = Cache(tmp_path).shelf("features", {"of": "x"})
    shelf.put(0, np.arange(100.0))
    (file,) = shelf.folder.glob("*.npy")
    for length in (0, 5, 300):
        file.write_bytes(file.read_bytes()[:length])
        assert not shelf.has(0)
    shelf.put(0, np.arange(100.0))
    assert shelf.has(0)
    assert shelf.get(0).sum() == 4950


def test_interrupted_in_the_middle_only_the_rest_is_drawn(
    tmp_path: Path, run: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn_module, "PIECE", 4)
    draw, drawn = Drawn._draw, list[int]()

    def some(self: Drawn, seeds: range) -> Any:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(seeds[0])
        return draw(self, seeds)

    def evaluated() -> Any:
        settings = Settings(("fd",), n=18, features=str(features))
        done = carry_out(of_run(str(run), settings, Places(tmp_path / "out")), str)
        assert done is not None
        return rows_of(done[0])["fd"]

    monkeypatch.setattr(Drawn, "_draw", some)
    with pytest.raises(KeyboardInterrupt):
        evaluated()
    rest = list[int]()
    monkeypatch.setattr(
        Drawn, "_draw", lambda self, seeds: rest.append(seeds[0]) or draw(self, seeds)
    )
    value = evaluated()
    assert (drawn, rest) == ([0, 4], [8, 12, 16])
    whole = of_run(
        str(run), Settings(("fd",), n=18, features=str(features)), Places(tmp_path / "w")
    )
    again = carry_out(whole, str)
    assert again is not None
    assert rows_of(again[0])["fd"] == value


def test_pieces_of_any_size_join_to_the_same_images(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sets, drawn_module):
        monkeypatch.setattr(module, "CHUNK", 7)
    monkeypatch.setattr(drawn_module, "PIECE", 8)
    model = load(run)
    drawn = Drawn(model, 20, Cache(tmp_path), seed=5)
    assert drawn.pieces == 3
    joined = np.concatenate([drawn.chunk(i) for i in range(sets.chunk_count(drawn))])
    assert (joined == model.sample(20, seed=5)).all()


def test_models_in_memory_are_told_apart_by_their_weights_and_recipe(
    tmp_path: Path, run: Path
) -> None:
    model = replace(load(run), fingerprint="")
    cache = Cache(tmp_path)
    first = Drawn(model, 4, cache).description
    assert Drawn(model, 4, cache).description == first
    process = replace(model.recipe.process, high=70.0)
    other = replace(model, recipe=replace(model.recipe, process=process))
    assert Drawn(other, 4, cache).description != first
    with torch.no_grad():
        next(model.network.parameters()).add_(1e-3)
    assert Drawn(model, 4, cache).description != first


def test_features_that_are_not_numbers_are_refused_and_not_kept(
    tmp_path: Path, features: Path
) -> None:
    good = extractor_of(str(features))

    class Broken:
        name, fingerprint = "broken", "0"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return good(images) * float("nan")

    images = sets.Stored(InMemory(pixels(), None, layout="NHWC", source="s"), "s")
    table = FeatureTable(images, Broken(), Cache(tmp_path))
    for _ in range(2):
        with pytest.raises(DataError, match="broken gave NaN"):
            table.prepare(Processes(), lambda n: None)


def test_adding_an_explanation_draws_nothing(
    tmp_path: Path, run: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(("fd",), n=8, features=str(features))
    places = Places(tmp_path / "out")
    assert carry_out(of_run(str(run), settings, places), str) is not None
    monkeypatch.setattr(Drawn, "_draw", None)
    done = carry_out(of_run(str(run), replace(settings, explain=True), places), str)
    assert done is not None
    assert any("truncated" in one.name for one in done[0].explained)
    assert len(list((tmp_path / "out").glob("evaluation-*.json"))) == 2


def test_every_process_of_a_launch_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert own_device("cuda") == "cuda:1"
    assert own_device("cpu") == "cpu"
    assert own_device("cuda:3") == "cuda:3"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"all of them cannot use cuda:3: --device cuda gives"):
        own_device("cuda:3")


def test_other_feeding_is_another_number(tmp_path: Path, features: Path) -> None:
    a, b = pair(tmp_path)
    values = set[float]()
    files = set[Path]()
    for change in (
        {},
        {"feed_low": 0.0},
        {"feed_size": 5},
        {"feed_size": 5, "resize": "pytorch-fid"},
    ):
        settings = Settings(("fd",), features=str(features), **change)  # pyright: ignore
        done = carry_out(of_sets(a, b, NHWC, settings, Places(tmp_path / "out")), str)
        assert done is not None
        values.add(rows_of(done[0])["fd"])
        files.add(done[1]["JSON"])
    assert len(values) == len(files) == 4
