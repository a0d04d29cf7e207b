"""Guided sampling of trained runs: by class, by a weaker run, and what of it is refused."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from recipe_helpers import QUIET, array_file, in_memory, open_run, small
from sfumato.cli import main
from sfumato.errors import ConfigError
from sfumato.guidance import guide
from sfumato.noise import F64
from sfumato.recipes import build
from sfumato.recipes.autoguidance import autoguided
from sfumato.recipes.config import Recipe
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from sfumato.recipes.tuned import load_tuned
from sfumato.training.history import checkpoints

Capture = pytest.CaptureFixture[str]
SEEDS = range(3)


def trained(folder: Path, recipe: Recipe, names: tuple[str, ...] = ()) -> Path:
    """A run on 12 images, of these classes."""
    images = in_memory(classes=len(names))
    images.classes = names
    config = RunConfig(recipe, DataConfig(classes=bool(names)), QUIET)
    for _ in Run.open(config, folder, images=images).steps():
        pass
    return folder


def dropping(recipe: Recipe) -> Recipe:
    return replace(recipe, network=replace(recipe.network, label_dropout=0.2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guided")
    trained(folder / "good", dropping(small(steps=9)), ("Bag", "Shirt"))
    trained(folder / "weak", small(steps=3, seed=5), ("Bag", "Shirt"))
    trained(folder / "others", small(), ("Boot", "Shirt"))
    trained(folder / "plain", small())
    trained(folder / "ladder", small("ddpm-tiny"), ("Bag", "Shirt"))
    return folder


def call(*arguments: object) -> int:
    try:
        return main([str(item) for item in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def refused(capsys: Capture, status: int, *arguments: object) -> str:
    capsys.readouterr()
    assert call(*arguments) == status
    return re.sub(r"\s+", " ", capsys.readouterr().err)


def drawn(model: Model, **sampler: Any) -> torch.Tensor:
    config = replace(model.recipe.sampler, **sampler)
    return torch.cat(list(model.drawn(SEEDS, label="Shirt", sampler=config)))


def test_class_guidance_is_one_call_and_the_formula(runs: Path) -> None:
    model = load(runs / "good")
    calls: list[int] = []
    model.network.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    config = replace(model.recipe.sampler, guidance=3.0)
    bound = model.bound(SEEDS, "Shirt", sampler=config)
    x, sigma = torch.randn(3, 1, 8, 8), torch.tensor(0.8, dtype=F64)
    out = bound(x, sigma).mean
    assert calls == [6]
    labels = torch.tensor([[0.0, 1.0]] * 3)
    given = model.denoiser.given(class_labels=labels)(x, sigma).mean
    free = model.denoiser(x, sigma).mean
    torch.testing.assert_close(out, free + 3 * (given - free), rtol=0, atol=1e-6)


def test_the_limits_of_the_scale_and_the_interval(runs: Path) -> None:
    model = load(runs / "good")
    plain = drawn(model)
    assert not torch.equal(drawn(model, guidance=3.0), plain)
    assert torch.equal(drawn(model, guidance=3.0, guidance_low=1.0, guidance_high=1.0), plain)
    assert torch.equal(drawn(model, guidance=1.0, guidance_low=0.1), plain)
    free = list(
        sfumato.generate(
            model.denoiser,
            model.solver(model.recipe.sampler),
            model.grid(),
            model.format.shape,
            list(SEEDS),
            batch=model.recipe.sampler.batch,
        )
    )
    torch.testing.assert_close(drawn(model, guidance=0.0), torch.cat(free), rtol=0, atol=1e-5)


def test_autoguidance_is_the_formula_of_both_runs(runs: Path) -> None:
    good, weak = load(runs / "good"), load(runs / "weak")
    model = autoguided(good, weak)
    x, sigma = torch.randn(3, 1, 8, 8), torch.tensor(0.8, dtype=F64)
    config = replace(good.recipe.sampler, guidance=2.0, guidance_low=0.3, guidance_high=5.0)
    bound = model.bound(SEEDS, "Bag", sampler=config)
    labels = torch.tensor([[1.0, 0.0]] * 3)
    given, worse = (
        build.adapt(one.recipe, one.network).given(class_labels=labels) for one in (good, weak)
    )
    expected = guide(given, worse, 2.0)(x, sigma).mean
    assert torch.equal(bound(x, sigma).mean, expected)
    far = torch.tensor(6.0, dtype=F64)
    assert torch.equal(bound(x, far).mean, given(x, far).mean)
    # Each image keeps the class that its seed draws, in both models.
    assert not torch.equal(drawn(model, guidance=2.0), drawn(good, guidance=2.0))
    assert torch.equal(drawn(model), drawn(good))
    assert torch.equal(drawn(model, guidance=2.0, guidance_low=1.0, guidance_high=1.0), drawn(good))
    again = autoguided(good, load(runs / "good"))
    torch.testing.assert_close(drawn(again, guidance=2.0), drawn(good), rtol=0, atol=1e-5)


def test_a_model_without_classes_or_label_dropout_can_be_autoguided(runs: Path) -> None:
    plain = load(runs / "plain")
    config = replace(plain.recipe.sampler, guidance=2.0)
    with pytest.raises(ConfigError, match="label-dropout"):
        plain.bound(SEEDS, sampler=config)
    weaker = load(checkpoints(runs / "plain")[0], weights="network")
    images = list(autoguided(plain, weaker).samples(SEEDS, sampler=config))
    assert images[0].shape == (3, 1, 8, 8)
    weak = load(runs / "weak")
    with pytest.raises(ConfigError, match="label-dropout"):
        weak.bound(SEEDS, sampler=config)
    autoguided(weak, load(runs / "good")).bound(SEEDS, sampler=config)


def test_runs_of_other_images_are_refused_and_both_are_told(runs: Path, tmp_path: Path) -> None:
    good = load(runs / "good")
    with pytest.raises(ConfigError, match=r"good.* and .*others.*classes: Bag, Shirt and Boot, Sh"):
        autoguided(good, load(runs / "others"))
    with pytest.raises(ConfigError, match=r"classes: Bag, Shirt and none"):
        autoguided(good, load(runs / "plain"))
    with pytest.raises(ConfigError, match=r"noise levels: sigma .* and \d+ levels, sigma "):
        autoguided(good, load(runs / "ladder"))
    for _ in open_run(tmp_path / "run", array_file(tmp_path / "data", (3, 8, 8))).steps():
        pass
    with pytest.raises(ConfigError, match=r"images: 1 x 8 x 8 and 3 x 8 x 8; classes"):
        autoguided(good, load(tmp_path / "run"))


def test_sample_takes_a_weaker_checkpoint(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    weaker = checkpoints(runs / "good")[0]
    start = ["sample", runs / "good", "-n", 3, "--batch", 3, "--class", "Shirt"]
    guided = [*start, "--autoguidance", weaker, "--guidance", 2.0]
    assert call(*guided, "--guidance-interval", 0.3, 5, "--out", tmp_path / "a") == 0
    low_high = ["--guidance-low", 0.3, "--guidance-high", 5]
    assert call(*guided, *low_high, "--out", tmp_path / "b") == 0
    assert call(*start, "--out", tmp_path / "c") == 0
    record = tomllib.loads((tmp_path / "a" / "sample.toml").read_text())
    assert record["autoguidance"] == str(weaker)
    assert (record["sampler"]["guidance_low"], record["sampler"]["guidance_high"]) == (0.3, 5.0)
    assert "autoguidance" not in tomllib.loads((tmp_path / "c" / "sample.toml").read_text())
    a, b, c = (sfumato.open_images(tmp_path / name).read(SEEDS) for name in "abc")
    assert np.array_equal(a, b)
    model = load(runs / "good")
    config = replace(
        model.recipe.sampler, batch=3, guidance=2.0, guidance_low=0.3, guidance_high=5.0
    )
    expected = next(autoguided(model, load(weaker)).samples(SEEDS, label="Shirt", sampler=config))
    assert np.array_equal(a, expected)
    assert not np.array_equal(a, c)


def test_sample_refuses_what_cannot_guide(runs: Path, capsys: Capture) -> None:
    start = ["sample", runs / "good", "-n", 1, "--autoguidance"]
    assert "add for example --guidance 2" in refused(capsys, 2, *start, runs / "weak")
    own = refused(capsys, 2, *start, runs / "good", "--guidance", 2)
    assert "no guide for it" in own
    other = refused(capsys, 2, *start, runs / "others", "--guidance", 2)
    assert "classes: Bag, Shirt and Boot, Shirt" in other
    assert call(*start, runs / "none", "--guidance", 2) == 1
    both = ["--guidance", 2, "--guidance-interval", 0.3, 5, "--guidance-low", 0.3]
    assert "not both" in refused(capsys, 2, "sample", runs / "good", *both)
    turned = ["--guidance", 2, "--guidance-interval", 5, 0.3]
    assert "must not exceed" in refused(capsys, 2, "sample", runs / "good", *turned)
    unknown = refused(capsys, 2, "sample", runs / "good", "--class", "Shrit", "--guidance", 2)
    assert "did you mean 'Shirt'?" in unknown
    plain = refused(capsys, 2, "sample", runs / "plain", "--guidance", 2)
    assert "--network.label-dropout" in plain


def test_a_tuned_sampler_is_not_for_guided_models(runs: Path, tmp_path: Path) -> None:
    good = load(runs / "good")
    broken = good.path / "tuned-005.toml"
    broken.write_text("no TOML")
    try:
        assert load_tuned(good)[1]
        assert load_tuned(autoguided(good, load(runs / "weak"))) == ({}, [])
    finally:
        broken.unlink()


def test_evaluate_draws_what_sample_does(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    data = array_file(tmp_path / "data")
    start = [
        *("evaluate", runs / "good", "--data", data, "--metrics", "swd", "-n", 8),
        *("--layout", "NHWC", "--cache", tmp_path / "cache", "--guidance", 2),
    ]
    assert call(*start, "--out", tmp_path / "a") == 0
    assert call(*start, "--out", tmp_path / "b", "--autoguidance", runs / "weak") == 0
    kept = list((tmp_path / "cache").rglob("*"))
    assert kept
    numbers = [next((tmp_path / name).glob("*.json")).read_text() for name in "ab"]
    found = [re.search(r'"value": ([\d.e-]+)', text) for text in numbers]
    assert found[0]
    assert found[1]
    assert found[0][1] != found[1][1]
    told = refused(capsys, 2, "evaluate", data, data, "--autoguidance", runs / "weak")
    assert "without --autoguidance" in told
