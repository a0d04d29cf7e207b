"""Loading runs and sampling from them: formats, seeds, classes, damaged files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from recipe_helpers import QUIET, array_file, in_memory, open_run, small
from sfumato.data.arrays import InMemory
from sfumato.errors import CheckpointError, ConfigError
from sfumato.recipes.config import NoiseConfig, Recipe
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from sfumato.training.history import checkpoints

NAMES = ("Ankle boot", "Bag", "Shirt")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for _ in open_run(folder / "run", array_file(folder)).steps():
        pass
    return folder / "run"


def trained(
    folder: Path, images: InMemory, chosen: Recipe | None = None, *, classes: bool = False
) -> Model:
    config = RunConfig(chosen or small(), DataConfig(classes=classes), QUIET)
    run = Run.open(config, folder, images=images)
    for _ in run.steps():
        pass
    return load(folder)


def test_the_newest_checkpoint_is_loaded_as_it_was_saved(run: Path) -> None:
    model = load(run)
    assert model.path == run / "checkpoints/00000008"
    assert model.images_seen == 32
    assert not model.network.training
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    raw = load(run, weights="network")
    ours, theirs = model.network.state_dict(), raw.network.state_dict()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    assert (raw.weights, model.weights) == ("network", "ema")


def test_a_checkpoint_folder_can_be_named(run: Path) -> None:
    assert load(run / "checkpoints/00000003").images_seen == 12


def test_a_truncated_checkpoint_is_passed_over_and_told(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    newest = checkpoints(copy)[-1] / "ema.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    model = load(copy)
    assert model.path == copy / "checkpoints/00000006"
    assert len(model.notes) == 1
    assert str(newest) in model.notes[0]
    assert load(run).notes == ()
    # Asked for by name, it is an error.
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is truncated"):
        load(newest.parent)


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is no training run"):
        load(tmp_path)


def test_an_image_depends_on_its_seed_alone(run: Path) -> None:
    model = load(run)
    nine = model.sample(9)
    assert (model.sample(1) == nine[:1]).all()
    assert (model.sample(3) == nine[:3]).all()
    assert (model.sample(2, seed=6) == nine[6:8]).all()
    assert len({image.tobytes() for image in nine}) == 9
    chunks = list(model.samples([8, 0, 3]))
    assert (np.concatenate(chunks) == nine[[8, 0, 3]]).all()
    # Another batch size sums in another order at most: not another picture.
    other = model.sample(9, sampler=replace(model.recipe.sampler, batch=3))
    assert np.abs(other.astype(int) - nine).max() <= 1


def test_stochastic_samplers_draw_by_seed_too(run: Path) -> None:
    model = load(run)
    for changes in ({"solver": "ancestral"}, {"churn": 3.0}, {"solver": "ddim", "eta": 1.0}):
        sampler = replace(model.recipe.sampler, **changes)  # type: ignore[arg-type]
        six = model.sample(6, sampler=sampler)
        assert (model.sample(1, seed=4, sampler=sampler) == six[4:5]).all()
        assert (six != model.sample(6)).any()


def test_nothing_to_sample_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="at least one image"):
        load(run).sample(0)


@pytest.mark.parametrize("shape", [(1, 9, 13), (3, 8, 8), (5, 9, 13)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_images_come_back_in_the_format_of_the_data(
    shape: tuple[int, int, int], dtype: str, tmp_path: Path
) -> None:
    model = trained(tmp_path, in_memory(shape, dtype))
    raw = model.sample(2)
    assert raw.shape == (2, *shape)
    assert raw.dtype == np.dtype(dtype)
    assert raw.std() > 0
    top = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    assert raw.min() >= 0
    assert top * 0.5 < raw.max() <= top
    if dtype == "uint16":
        # All 16 bits are used, not 8 of them scaled.
        inside = raw[(raw > 0) & (raw < top)]
        assert (inside % 257 != 0).mean() > 0.9


HALVES = (np.s_[:, :4], np.s_[:, 4:], np.s_[:4])


@pytest.fixture(scope="module")
def by_class(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Images of one class are all alike: white on the left, on the right, on top."""
    pixels = np.zeros((12, 8, 8, 1), np.uint8)
    for index in range(12):
        pixels[index][HALVES[index // 4]] = 255
    images = InMemory(pixels, np.repeat([0, 1, 2], 4), layout="NHWC", source="test")
    images.classes = NAMES
    # At so much noise the class is all there is to learn from.
    chosen = small(steps=120, noise=NoiseConfig(mean=3.0, std=0.5))
    optimizer = replace(chosen.optimizer, learning_rate=5e-3)
    folder = tmp_path_factory.mktemp("classes")
    return trained(folder, images, replace(chosen, optimizer=optimizer), classes=True)


def test_classes_are_learned(by_class: Model) -> None:
    x = 20 * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = functional.one_hot(torch.arange(3), 3).float()
    denoise = by_class.denoiser.given(class_labels=labels)
    means = denoise(x, torch.tensor(20.0, dtype=torch.float64)).mean
    truth = -torch.ones(3, 8, 8)
    for image, half in zip(truth, HALVES, strict=True):
        image[half] = 1
    distances = torch.cdist(means.flatten(1), truth.flatten(1))
    assert distances.argmin(1).tolist() == [0, 1, 2]


def test_samples_of_a_seed_differ_by_class(by_class: Model) -> None:
    drawn = [by_class.sample(2, label=name).tobytes() for name in NAMES]
    assert len(set(drawn)) == 3


def test_a_class_is_named_in_any_case_or_numbered(by_class: Model) -> None:
    shirts = by_class.sample(2, label="Shirt")
    for name in ("shirt", "SHIRT", "2"):
        assert (by_class.sample(2, label=name) == shirts).all()


@pytest.mark.parametrize("name", ["shirrt", "3", "-1", "²"])
def test_an_unknown_class_is_refused(by_class: Model, name: str) -> None:
    with pytest.raises(ConfigError, match="unknown class") as error:
        by_class.sample(1, label=name)
    assert "Ankle boot, Bag, Shirt" in str(error.value)
    if name == "shirrt":
        assert "did you mean 'Shirt'?" in str(error.value)


def test_without_a_label_each_seed_draws_its_class(by_class: Model) -> None:
    labels = by_class.labels_for(range(300), None)
    assert labels is not None
    counts = labels.sum(0)
    # Binomial(300, 1/3) has a standard deviation of 8.2.
    assert (counts - 100).abs().max() < 5 * 8.2
    later = by_class.labels_for(range(100, 110), None)
    assert later is not None
    assert torch.equal(later, labels[100:110])
    nine = by_class.sample(9)
    assert (by_class.sample(2, seed=5) == nine[5:7]).all()


def test_a_model_without_classes_refuses_one(run: Path) -> None:
    with pytest.raises(ConfigError, match="trained without classes"):
        load(run).sample(1, label="shirt")


def test_guidance_needs_label_dropout_and_one_is_off(by_class: Model) -> None:
    strong = replace(by_class.recipe.sampler, guidance=3.0)
    with pytest.raises(ConfigError, match="label-dropout"):
        by_class.sample(1, sampler=strong)
    network = replace(by_class.recipe.network, label_dropout=0.1)
    guided = replace(by_class, recipe=replace(by_class.recipe, network=network))
    plain = by_class.sample(2, label=NAMES[0])
    assert (guided.sample(2, label=NAMES[0]) == plain).all()
    assert (guided.sample(2, label=NAMES[0], sampler=strong) != plain).any()
    never = replace(strong, guidance_low=1.0, guidance_high=1.0)
    assert (guided.sample(2, label=NAMES[0], sampler=never) == plain).all()


def test_guided_predictions_are_mirrored_as_they_are(by_class: Model) -> None:
    recipe = by_class.recipe
    network = replace(recipe.network, label_dropout=0.1)
    model = replace(by_class, recipe=replace(recipe, network=network, flip=True))
    guided = replace(recipe.sampler, guidance=3.0)
    x = 5 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor(5.0, dtype=torch.float64)

    def asked(x: torch.Tensor, mirror: bool) -> torch.Tensor:
        sampler = replace(guided, mirror=mirror)
        with torch.no_grad():
            return model.bound(range(2), NAMES[0], sampler=sampler)(x, sigma).mean

    here, there = asked(x, False), asked(x.flip(-1), False).flip(-1)
    assert (here - there).abs().max() > 0.1
    torch.testing.assert_close(asked(x, True), (here + there) / 2)
    # A weaker model that knows left from right is not asked about mirror images either.
    sided = replace(model, recipe=replace(model.recipe, flip=False))
    with pytest.raises(ConfigError, match="trained without --flip"):
        replace(model, weaker=sided).bound(range(2), NAMES[0], sampler=replace(guided, mirror=True))
