"""Pairs of images: matched, moved alike, learned from, and asked again from a checkpoint."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from recipe_helpers import QUIET, assert_same_run, pixels, small
from sfumato.cli import main
from sfumato.data.arrays import InMemory
from sfumato.data.images import Images, Subset, UnreadableImageError
from sfumato.data.loader import Batches, one_pass
from sfumato.data.pairs import Pairs, open_pairs
from sfumato.data.pixels import PixelFormat, pixel_format, to_model
from sfumato.errors import CheckpointError, ConfigError, DataError
from sfumato.networks.build import build_network
from sfumato.networks.config import ADMConfig, NetworkConfig, UNetConfig
from sfumato.parameterization import edm_preconditioned
from sfumato.recipes.config import Recipe
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model
from sfumato.recipes.paired import answered, answers, picked
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from sfumato.training.named_tensors import load_weights

RNG = np.random.default_rng(5)
SHAPE = (8, 8)


def scenes(count: int, channels: int = 4, seed: int = 0) -> np.ndarray[Any, Any]:
    """uint16 [N, H, W, C]: plain images with one darker quarter, so that each is unlike others."""
    rng = np.random.default_rng(seed)
    images = np.broadcast_to(rng.random((count, 1, 1, channels)), (count, *SHAPE, channels)).copy()
    images[:, :4, :4] *= rng.random((count, 1, 1, 1))
    return (images * 65535).astype(np.uint16)


def answer_to(inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The first three channels inverted, at 8 bits, in [55, 255]."""
    return (255 - inputs[..., :3] / 65535 * 200).round().astype(np.uint8)


def arrays(folder: Path, count: int = 12, seed: int = 0) -> Path:
    """Pairs of 4 channels at 16 bits and 3 channels at 8 bits."""
    folder.mkdir(parents=True)
    np.save(folder / "input.npy", scenes(count, seed=seed))
    np.save(folder / "target.npy", answer_to(scenes(count, seed=seed)))
    return folder


def files(folder: Path, names: list[str], value: Any = lambda i: i) -> None:
    """Grey images of 4 x 4, each of one value."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), value(i), np.uint8)).save(path)


def open_run(folder: Path, data: Path, chosen: Recipe | None = None, **options: Any) -> Run:
    config = RunConfig(
        chosen or small(steps=8),
        DataConfig(data=str(data), condition="image"),
        replace(QUIET, **options.pop("run", {})),
    )
    return Run.open(config, folder, **options)


# The network


@pytest.mark.parametrize(
    "config",
    [UNetConfig.ddpm(), UNetConfig.ddpmpp(), UNetConfig.ncsnpp(), ADMConfig(),
     replace(UNetConfig.ddpmpp(), encoder="skip", decoder="skip")],
    ids=["ddpm", "ddpmpp", "ncsnpp", "adm", "skips"],
)  # fmt: skip
def test_the_image_is_joined_to_x_and_mapped_to_the_output_by_level(
    config: NetworkConfig,
) -> None:
    config = replace(config, width=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.0)
    size = {"out_channels": 3, "height": 6, "width": 10}
    network = build_network(config, in_channels=3, condition_channels=5, **size).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # the last layer starts near 0
            parameter.normal_(std=0.2)
    plain = build_network(config, in_channels=8, **size).eval()
    state = network.state_dict()
    weight, bias = state.pop("direct.weight"), state.pop("direct.bias")
    plain.load_state_dict(state)
    x, image, level = torch.randn(2, 3, 6, 10), torch.randn(2, 5, 6, 10), torch.tensor([0.1, -1.0])
    out = network(x, level, image=image)
    assert out.shape == x.shape
    embedding = network.embed(level, None, None)
    maps = (embedding @ weight.T + bias).reshape(2, 3, 5)
    added = torch.stack([torch.tensordot(a, b, 1) for a, b in zip(maps, image, strict=True)])
    expected = plain(torch.cat([x, image], 1), level) + added
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert (maps[0] - maps[1]).abs().max() > 1e-2
    assert (out - network(x, level, image=image.flip(0))).abs().max() > 1e-3

    double = network.double()(x.double(), level.double(), image=image)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), out, rtol=1e-3, atol=1e-4)
    network.float().set_compute(torch.bfloat16, channels_last=True)
    rough = network(x, level, image=image)
    assert rough.dtype == torch.float32
    assert (rough - out).norm() < 0.1 * out.norm()


def test_a_new_network_adds_nothing_of_the_image() -> None:
    network = build_network(
        small().network, in_channels=3, out_channels=3, height=8, width=8, condition_channels=4
    )
    assert not any(p.any() for name, p in network.named_parameters() if name.startswith("direct"))


def test_weights_from_before_the_direct_map_are_those_with_a_map_of_zeros() -> None:
    size: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "height": 8, "width": 8}
    old, new = (
        build_network(small().network, condition_channels=4, **size).eval() for _ in range(2)
    )
    with torch.no_grad():
        for name, parameter in old.named_parameters():
            if not name.startswith("direct"):
                parameter.normal_(std=0.2)
    saved = {n: t for n, t in old.state_dict().items() if not n.startswith("direct")}
    assert new.direct is not None
    with torch.no_grad():
        new.direct.weight.fill_(1.0)
    load_weights(new, saved, Path("run"))
    x, image, level = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8), torch.zeros(2)
    with torch.no_grad():
        expected = old(x, level, image=image)
        torch.testing.assert_close(new(x, level, image=image), expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().mean() > 0.01
    del saved["head.weight"]
    with pytest.raises(CheckpointError, match=r"1 tensors differ.*'head\.weight' is absent"):
        load_weights(new, saved, Path("run"))


def test_a_wrong_image_is_refused_in_words() -> None:
    config = small().network
    options: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "height": 8, "width": 8}
    network = build_network(config, condition_channels=4, **options)
    x, level = torch.zeros(2, 3, 8, 8), torch.zeros(2)
    with pytest.raises(ValueError, match=r"starts from images.*\[2, 4, 8, 8\].*given\(image="):
        network(x, level)
    for shape in ((2, 3, 8, 8), (1, 4, 8, 8), (2, 4, 8, 7)):
        with pytest.raises(ValueError, match=r"image must be \[2, 4, 8, 8\], got"):
            network(x, level, image=torch.zeros(shape))
    with pytest.raises(ValueError, match="takes no image"):
        build_network(config, **options)(x, level, image=x)
    with pytest.raises(ValueError, match="condition_channels must be at least 0, got -1"):
        build_network(config, condition_channels=-1, **options)


def test_the_preconditioning_scales_x_and_not_the_image() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, level: Tensor, image: Tensor) -> Tensor:
        seen.append((x, image))
        return torch.zeros_like(x)

    x, image = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    edm_preconditioned(network, 0.5).given(image=image)(x, torch.tensor(80.0))
    assert torch.equal(seen[0][1], image)
    assert seen[0][0].abs().max() < 0.1 < x.abs().max()


# The data


def test_files_are_paired_by_name_whatever_their_suffix_and_order(tmp_path: Path) -> None:
    stems = ["b/10", "b/9", "a.x", "1", "01"]
    # Of 1 and 01, the same number, the suffix decides which comes first.
    inputs, targets = (".png", ".png", ".bmp", ".png", ".bmp"), (".bmp",) * 4 + (".png",)
    files(tmp_path / "input", [a + b for a, b in zip(stems, inputs, strict=True)])
    files(
        tmp_path / "target", [a + b for a, b in zip(stems, targets, strict=True)], lambda i: 9 * i
    )
    pairs = open_pairs(tmp_path)
    assert sorted(pairs.names(i)[:-4] for i in range(5)) == sorted(stems)
    assert pairs.inputs is not None
    for i in range(5):
        number = stems.index(pairs.names(i)[:-4])
        assert pairs.inputs.read([i]).max() == number
        assert pairs.read([i]).max() == 9 * number


def test_depths_and_channels_may_differ_and_values_stay(tmp_path: Path) -> None:
    pairs = open_pairs(arrays(tmp_path / "pairs"))
    assert pairs.inputs is not None
    assert pairs.inputs.format == PixelFormat(4, 8, 8, "uint16", 0, 65535)
    assert pairs.format == PixelFormat(3, 8, 8, "uint8", 0, 255)
    assert "12 pairs, 4 x 8 x 8 uint16 to 3 x 8 x 8 uint8" in pairs.describe()
    (batch,) = one_pass(pairs, 50)
    raw = scenes(12).transpose(0, 3, 1, 2)
    assert batch.condition is not None
    assert np.allclose(batch.condition.numpy(), raw / 32767.5 - 1, atol=1e-6)
    assert torch.equal(batch.x, to_model(pairs.read(range(12)), pairs.format))
    # A part of pairs is pairs.
    (batch,) = one_pass(Subset(pairs, [7, 2]), 50)
    assert batch.condition is not None
    assert np.allclose(batch.condition.numpy(), raw[[7, 2]] / 32767.5 - 1, atol=1e-6)


def same_at_two_depths(count: int = 20) -> Pairs:
    """Pairs of the same image at 16 and at 8 bits: alike in [-1, 1], and only where in place."""
    target = RNG.integers(0, 256, (count, 3, 5, 6), np.uint8)
    layout: Any = {"layout": "NCHW"}
    return Pairs(InMemory(target.astype(np.uint16) * 257, **layout), InMemory(target, **layout))


def test_both_images_of_a_pair_are_mirrored_alike() -> None:
    pairs = same_at_two_depths()
    raw = to_model(pairs.read(range(20)), pairs.format)
    turned = 0
    with Batches(pairs, 8, 3, flip=True) as batches:
        for batch in (next(batches) for _ in range(10)):
            assert batch.condition is not None
            torch.testing.assert_close(batch.condition, batch.x, rtol=0, atol=1e-6)
            turned += int((batch.x != raw[batch.index]).flatten(1).any(1).sum())
    assert 20 <= turned <= 60  # of 80


def test_augmentation_moves_both_images_of_a_pair_alike(tmp_path: Path) -> None:
    config = RunConfig(small(steps=4, augment=0.9, batch=8), DataConfig(condition="image"), QUIET)
    run = Run.open(config, tmp_path, images=same_at_two_depths())
    seen: list[tuple[Tensor, Tensor]] = []
    loss = run.plan.objective.loss

    class Watched:
        def loss(self, denoise: Any, x0: Tensor, sigma: Tensor, noise: Tensor) -> Any:
            seen.append((x0, denoise.condition["image"]))
            return loss(denoise, x0, sigma, noise)

    run.plan = replace(run.plan, objective=Watched())  # type: ignore[arg-type]
    list(run.steps())
    raw = to_model(run.images_set.read(range(20)), run.images_set.format)
    for x0, image in seen:
        torch.testing.assert_close(image, x0, rtol=0, atol=1e-5)
        moved = (x0[:, None] - raw).flatten(2).abs().amax(2).amin(1) > 1e-3
        assert moved.sum() >= 4


class Breaking(Images):
    """Grey images of the value of their place; one breaks when it is read."""

    def __init__(self, count: int, broken: int, dtype: Any) -> None:
        self.format = pixel_format((1, 2, 2), dtype, None)
        self.source, self.fingerprint = "breaking", "0"
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Any) -> np.ndarray[Any, Any]:
        if self.broken in indices:
            raise UnreadableImageError(f"img{self.broken} (broken)", self.broken)
        return np.stack([np.full((1, 2, 2), i, self.format.dtype) for i in indices])


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_half_a_pair_that_cannot_be_read_takes_the_other_with_it(cache_bytes: int) -> None:
    pairs = Pairs(Breaking(200, 7, "uint16"), Breaking(200, 90, "uint8"))
    with Batches(pairs, 50, 0, cache_bytes=cache_bytes) as batches:
        for batch in (next(batches) for _ in range(8)):
            assert batch.condition is not None
            places = ((batch.x[:, 0, 0, 0] + 1) * 127.5).round()
            assert torch.equal(((batch.condition[:, 0, 0, 0] + 1) * 32767.5).round(), places)
            assert torch.equal(places.long(), batch.index)
            assert not {7, 90} & set(batch.index.tolist())
        assert len(batches.skipped) == 2


def test_a_broken_file_leaves_its_partner_out(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(120)]
    files(tmp_path / "input", names)
    files(tmp_path / "target", names)
    (tmp_path / "input/5.png").write_bytes(b"\x89PNG nothing")
    pairs = open_pairs(tmp_path)
    assert len(pairs) == 119
    assert "5.png" not in [pairs.names(i) for i in range(119)]
    assert pairs.inputs is not None
    assert np.array_equal(pairs.inputs.read(range(119)), pairs.read(range(119)))
    assert "1 unreadable skipped" in pairs.describe()


def test_what_is_no_pairs_is_refused_in_words(tmp_path: Path) -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(DataError, match=match):
            open_pairs(tmp_path, **options)

    with pytest.raises(DataError, match=r"none does not exist: pairs are a folder.*input/"):
        open_pairs(tmp_path / "none")
    files(tmp_path, ["photo.png"])
    refused(r"expected pairs, found photo\.png.*leave out --condition image")
    with pytest.raises(DataError, match=r"photo\.png is a file: pairs are"):
        open_pairs(tmp_path / "photo.png")
    files(tmp_path / "input", [f"{i}.png" for i in range(9)])
    refused(r"target/ is missing beside input/")
    files(tmp_path / "target", ["0.png", "other.png"])
    refused(
        r"8 in input/ without a partner in target/ \(1\.png, 2\.png, 3\.png, 4\.png, 5\.png, "
        r"\.\.\.\) and 1 in target/ without a partner in input/ \(other\.png\)"
    )
    (tmp_path / "target/other.png").unlink()
    files(tmp_path / "target", ["0.bmp"])
    refused(r"0\.bmp, 0\.png differ only in their suffix")
    for path in tmp_path.rglob("*.*"):
        path.unlink()
    files(tmp_path / "input", ["0.png"])
    (tmp_path / "target/0.png").parent.mkdir(exist_ok=True)
    Image.new("L", (6, 4)).save(tmp_path / "target/0.png")
    refused(r"inputs are 4 x 4 \(height x width\), targets 4 x 6.*--size 4 6")
    pairs = open_pairs(tmp_path, size=(4, 4))
    assert pairs.inputs is not None
    assert pairs.inputs.format.shape == pairs.format.shape == (1, 4, 4)
    shutil.rmtree(tmp_path / "input"), shutil.rmtree(tmp_path / "target")
    np.save(tmp_path / "input.npy", np.zeros((3, 4, 4), np.uint8))
    refused(r"target\.npy is missing beside input\.npy")
    np.save(tmp_path / "target.npy", np.zeros((2, 4, 4), np.uint8))
    refused(r"got 3 inputs and 2 targets")
    np.save(tmp_path / "input.npy", np.full((2, 4, 4), 7.0))
    refused(r"span \[7, 7\].*--input-range LOW HIGH")
    open_pairs(tmp_path, input_range=(0, 9))


def test_the_command_line_refuses_what_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "images.npy", np.zeros((3, 8, 8), np.uint8))

    def refused(*options: str) -> str:
        try:
            code = main(["train", "edm-tiny", "--data", *options, "--out", str(tmp_path / "r")])
        except SystemExit as end:
            code = end.code
        assert code
        return capsys.readouterr().err

    images = str(tmp_path / "images.npy")
    assert "images.npy is a file: pairs are a folder" in refused(images, "--condition", "image")
    assert "'image'" in refused(images, "--condition", "text").replace('"', "'")
    assert "add --condition image" in refused(images, "--input-range", "0", "9")


def test_pairs_opened_as_one_set_are_remarked_upon(tmp_path: Path) -> None:
    for side in ("input", "target"):
        files(tmp_path / "pairs" / side, ["0.png", "1.png"])
    said: list[str] = []
    config = RunConfig(small(), DataConfig(data=str(tmp_path / "pairs")), QUIET)
    Run.open(config, tmp_path / "run", say=said.append)
    assert "add --condition image" in said[0]
    assert "4 images" in said[1]


def test_info_tells_pairs_and_what_a_model_starts_from(
    whole: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(data)]) == 0
    told = capsys.readouterr().out
    assert "12 pairs, 4 x 8 x 8 uint16 to 3 x 8 x 8 uint8" in told
    assert "--condition image" in told
    assert main(["info", str(whole)]) == 0
    assert re.search(r"starts from +4 x 8 x 8 uint16", capsys.readouterr().out)


def test_test_images_must_be_pairs_of_the_same_kind(tmp_path: Path) -> None:
    data, other = arrays(tmp_path / "a"), arrays(tmp_path / "b")
    np.save(other / "input.npy", scenes(12, channels=5))
    with pytest.raises(
        ConfigError, match=r"pairs from 5 x 8 x 8 uint16, the training images pairs "
    ):
        open_run(tmp_path / "run", data, test=open_pairs(other))
    alone = InMemory(answer_to(scenes(12)), layout="NHWC")
    with pytest.raises(ConfigError, match=r"test images are no pairs, the training images pairs"):
        open_run(tmp_path / "run", data, test=alone)


# Runs and models


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arrays(tmp_path_factory.mktemp("pairs") / "pairs")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert len(list(open_run(folder, data, run={"sample_every": 4}).steps())) == 8
    return folder


def test_a_run_on_pairs_resumes_to_the_bit(tmp_path: Path, data: Path, whole: Path) -> None:
    steps = open_run(tmp_path / "run", data).steps()
    for _ in range(5):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    # As --resume does it: from config.toml alone.
    config = RunConfig.read(tmp_path / "run/config.toml")
    assert config.data.condition == "image"
    assert len(list(Run.open(config, tmp_path / "run", resume=True).steps())) == 3
    assert_same_run(tmp_path / "run", whole)


def test_a_model_of_pairs_needs_only_its_checkpoint(tmp_path: Path, whole: Path) -> None:
    folder = shutil.copytree(whole / "checkpoints/00000008", tmp_path / "elsewhere")
    model, same = load(folder), load(whole)
    assert model.condition == PixelFormat(4, 8, 8, "uint16", 0, 65535)
    assert model.format == PixelFormat(3, 8, 8, "uint8", 0, 255)
    images = torch.rand(2, 4, 8, 8) * 2 - 1
    ours, theirs = (m.sample(2, images=images) for m in (model, same))
    assert ours.shape == (2, 3, 8, 8)
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, theirs)


def test_the_same_condition_and_seed_are_the_same_picture(whole: Path) -> None:
    model, images = load(whole), torch.rand(6, 4, 8, 8) * 2 - 1
    seeds = [3, 1, 4, 1, 5, 9]
    every = torch.cat(list(answers(model, images, seeds)))
    assert [len(part) for part in answers(model, images, seeds)] == [4, 2]
    assert (every.dtype, every.shape) == (torch.float32, (6, 3, 8, 8))
    for i in (0, 5):
        (alone,) = answers(model, images[i : i + 1], seeds[i : i + 1])
        assert torch.equal(alone[0], every[i])
    (other,) = answers(model, images[2:3], seeds[:1])
    assert not torch.equal(other[0], every[0])


def test_pairs_with_classes_are_guided_with_their_images(tmp_path: Path) -> None:
    data = arrays(tmp_path / "pairs")
    np.save(data / "target_labels.npy", np.arange(12) % 3)
    base = small(steps=3)
    chosen = replace(base, network=replace(base.network, label_dropout=0.2), skip="scalar")
    config = RunConfig(chosen, DataConfig(str(data), condition="image", classes=True), QUIET)
    list(Run.open(config, tmp_path / "run").steps())
    model, images = load(tmp_path / "run"), torch.rand(2, 4, 8, 8) * 2 - 1
    x, sigma, sampler = torch.randn(2, 3, 8, 8), torch.tensor(1.0), chosen.sampler

    def mean(scale: float, label: str | None = "1") -> Tensor:
        bound = model.bound([0, 1], label, sampler=replace(sampler, guidance=scale), images=images)
        return bound(x, sigma).mean

    whole = edm_preconditioned(model.network, chosen_sigma_data(model)).given(image=images)
    free = whole.given(class_labels=torch.zeros(2, 3))(x, sigma).mean
    given = whole.given(class_labels=torch.eye(3)[[1, 1]])(x, sigma).mean
    torch.testing.assert_close(mean(1.0), given, rtol=0, atol=1e-6)
    torch.testing.assert_close(mean(3.0), free + 3 * (given - free), rtol=0, atol=1e-5)
    assert (given - free).abs().max() > 1e-4
    (one,), (other,) = (answers(model, images, [0, 1], label=label) for label in ("1", "2"))
    assert not torch.equal(one, other)


def chosen_sigma_data(model: Model) -> float:
    value = model.recipe.process.sigma_data
    assert value is not None
    return value


def test_a_model_of_pairs_is_not_asked_without_images(
    tmp_path: Path, whole: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = load(whole), torch.zeros(2, 4, 8, 8)
    sentence = r"needs images to start from \(4 x 8 x 8 uint16\): use sfumato restore RUN IMAGE"
    with pytest.raises(ConfigError, match=sentence):
        model.bound([0])
    with pytest.raises(ConfigError, match=sentence):
        _ = model.denoiser
    with pytest.raises(ConfigError, match=r"one for each seed: expected \[3, 4, 8, 8\], got \[2, "):
        answers(model, images, [0, 1, 2])
    with pytest.raises(ConfigError, match=r"expected \[2, 4, 8, 8\], got \[2, 4, 4, 8\]"):
        answers(model, images[:, :, :4], [0, 1])
    target = str(data / "target.npy")
    for verb, *rest in (
        ("sample", "-n", "2", "--out", str(tmp_path / "out")),
        ("evaluate", "--n", "4"),
        ("likelihood", "--data", target),
        ("invert", target),
        ("interpolate", "seed:1", "seed:2"),
        ("compress", target),
        ("tune",),
        ("compare",),
    ):
        assert main([verb, str(whole), *rest]) != 0, verb
        assert re.search(sentence, capsys.readouterr().err), verb


def test_other_models_take_no_images() -> None:
    chosen = replace(small(), process=replace(small().process, sigma_data=0.5))
    network = build_network(chosen.network, in_channels=1, out_channels=1, height=8, width=8)
    model = Model(chosen, network, PixelFormat(1, 8, 8, "uint8", 0, 255))
    with pytest.raises(ConfigError, match="trained on images alone"):
        answers(model, torch.zeros(1, 1, 8, 8), [0])
    with pytest.raises(ConfigError, match="trained on images alone"):
        model.bound([0], images=torch.zeros(1, 1, 8, 8))


def test_previews_show_input_target_and_sample(whole: Path) -> None:
    from sfumato.report.grid import display_pixels

    drawn = sorted((whole / "samples").iterdir())
    assert [path.name for path in drawn] == ["training-000000016.png", "training-000000032.png"]
    picture = np.asarray(Image.open(drawn[1]))
    assert picture.shape == (2 + 4 * 66, 2 + 9 * 66, 3)
    tiles = [picture[2:66, 2 + 66 * i : 66 + 66 * i][::8, ::8] for i in range(2)]
    expected = [display_pixels(part)[0] for part in picked(open_pairs_of(whole), 12)]
    assert np.array_equal(tiles, expected)


def open_pairs_of(run: Path) -> Pairs:
    return open_pairs(RunConfig.read(run / "config.toml").data.data)


def test_training_learns_what_the_input_says(tmp_path: Path) -> None:
    """Targets are the inverted inputs: answers must follow them, also to images never seen."""
    base = small("edm-tiny", augment=0.0, batch=16, images=240 * 16)
    chosen = replace(
        base,
        network=replace(base.network, dropout=0.0, multipliers=(2,)),
        optimizer=replace(base.optimizer, kind="adam", learning_rate=1e-2),
    )
    data, test = arrays(tmp_path / "pairs", 256), open_pairs(arrays(tmp_path / "test", 16, seed=1))
    said: list[str] = []
    run = open_run(tmp_path / "run", data, chosen, test=test, say=said.append)
    for _ in run.steps():
        pass
    assert any("256 pairs" in line for line in said)
    model = load(tmp_path / "run")
    sampler = replace(chosen.sampler, steps=8, batch=16)
    (batch,) = one_pass(test, 16)
    assert batch.condition is not None

    def error(conditions: Tensor) -> float:
        (drawn,) = answers(model, conditions, range(16), sampler)
        return float((drawn - batch.x).square().mean().sqrt())

    right, shuffled = error(batch.condition), error(batch.condition.roll(1, 0))
    spread = float(batch.x.std())
    assert right < 0.45 * spread
    assert shuffled > 2.5 * right
    # What draws for reports and measurements gives each image its own input.
    (raw,) = answered(model, test, range(16), sampler)
    (drawn,) = answers(model, batch.condition, range(16), sampler)
    assert np.abs(raw / 127.5 - 1 - drawn.clamp(-1, 1).numpy()).max() < 1 / 127


def test_a_run_on_pairs_is_measured_and_reported(tmp_path: Path, data: Path) -> None:
    from evaluation_helpers import pooled_features

    features = str(pooled_features(tmp_path))
    options = {"eval_every": 2, "eval_n": 20, "eval_features": features, "report_samples": 8}
    run = open_run(tmp_path / "run", data, small(steps=2), run=options)
    list(run.steps())
    assert '"frechet"' in (tmp_path / "run/log.jsonl").read_text()
    page = run.write_report().read_text()
    assert "sfumato restore" in page
    assert "--condition image" in page


def test_evaluate_says_how_a_model_of_pairs_is_measured_and_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for half in ("input", "target"):
        for i, image in enumerate(pixels((3, 12, 12), 3, seed=len(half))):
            path = tmp_path / "pairs" / half / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    config = DataConfig(data="pairs", test="pairs", condition="image")
    run = Run.open(RunConfig(small("edm-tiny"), config, QUIET), tmp_path / "run")
    for _ in run.steps():
        pass
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    commands = re.findall(r"sfumato ((?:restore|evaluate) [^;\n]+)", told)
    assert commands.pop(0) == "restore RUN IMAGE"
    assert [command.split()[0] for command in commands] == ["restore", "evaluate"]
    for command in commands:
        fast = [*command.split(), "--threads", "1"]
        assert main([*fast, "--steps", "2"] if fast[0] == "restore" else fast) == 0
    assert "PSNR" in capsys.readouterr().out
