"""Inception Score, PSNR, SSIM and MS-SSIM against hand formulas and direct windows."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from sfumato.errors import DataError, MissingExtraError
from sfumato.metrics.inception_score import inception_score
from sfumato.metrics.paired import SCALE_WEIGHTS, ms_ssim, paired_scores, psnr, ssim


def uniform(*shape, seed=0):
    draw = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw * 2 - 1


# --- Inception Score ---------------------------------------------------------------------------


def test_sure_and_even_is_the_number_of_classes():
    p = torch.eye(5).repeat(4, 1)
    score = inception_score(p, splits=1)
    assert score.mean == pytest.approx(5, rel=1e-12)
    assert (score.std, score.n, score.classes) == (None, 20, 5)


def test_every_image_alike_is_one():
    score = inception_score(torch.tensor([[0.7, 0.2, 0.1]]).repeat(40, 1))
    assert score.mean == pytest.approx(1, abs=1e-7)
    assert score.std == pytest.approx(0, abs=1e-7)


def test_two_kinds_of_images_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).repeat(10, 1)
    divergence = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert inception_score(p, splits=1).mean == pytest.approx(math.exp(divergence), rel=1e-12)


@pytest.mark.parametrize("order", ["sorted", "cycling"])
def test_the_order_of_classes_does_not_cut_splits_into_classes(order):
    p = torch.eye(10, dtype=torch.float64).repeat(100, 1)
    if order == "sorted":
        p = p[p.argmax(1).argsort()]
    score = inception_score(p)
    # 100 images per split, K = 10: the entropy of a split is (K - 1) / 2n below log K on average.
    assert score.mean == pytest.approx(10 * math.exp(-9 / 200), abs=0.15)
    assert score.std is not None
    assert 0 < score.std < 0.4


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_score_is_torchmetrics():
    """Its formula on one split: theirs shuffles by torch's global generator."""
    module = pytest.importorskip("torchmetrics.image.inception")
    logits = uniform(60, 7) * 3

    class Identity(torch.nn.Module):
        def forward(self, x):
            return x

    theirs = module.InceptionScore(feature=Identity(), splits=1)
    theirs.features.append(logits)
    truth = float(theirs.compute()[0])
    assert inception_score(logits.softmax(1), splits=1).mean == pytest.approx(truth, rel=1e-6)


def test_inception_score_refuses():
    with pytest.raises(DataError, match="at least 20 images"):
        inception_score(torch.eye(3).repeat(5, 1))
    with pytest.raises(DataError, match=r"logits\.softmax"):
        inception_score(uniform(50, 3))
    with pytest.raises(DataError, match="NaN"):
        inception_score(torch.full((50, 3), torch.nan))


# --- paired scores -----------------------------------------------------------------------------


def test_psnr_of_a_known_error():
    a = uniform(3, 2, 8, 8) * 0.5
    offset = torch.tensor([0.25, 0.01, 0.0], dtype=torch.float64)
    found = psnr(a + offset[:, None, None, None], a)
    assert found[0] == pytest.approx(-20 * math.log10(0.25 / 2), rel=1e-9)
    assert found[1] == pytest.approx(-20 * math.log10(0.01 / 2), rel=1e-9)
    assert found[2] == math.inf


def test_identical_pairs_are_counted_apart():
    a = uniform(4, 1, 16, 16)
    b = a.clone()
    b[0] = (b[0] * 0.5).clamp(-1, 1)
    scores = paired_scores(a, b, scales=1)
    assert scores.identical == 3
    assert scores.mean_psnr == pytest.approx(float(scores.psnr[0]))
    assert paired_scores(a, a, scales=1).mean_psnr == math.inf
    torch.testing.assert_close(ssim(a, a), torch.ones(4, dtype=torch.float64))


def windows(x):
    """Gaussian-weighted moments need every 11 x 11 window: [H - 10, W - 10, 11, 11]."""
    return np.lib.stride_tricks.sliding_window_view(x, (11, 11))


def direct(x, y):
    """Wang et al.'s maps for one channel in [0, 1]: luminance, and contrast times structure."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weight = np.outer(taps, taps) / taps.sum() ** 2

    def mean(z):
        return (windows(z) * weight).sum((2, 3))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    return luminance, (2 * cov + c2) / (vx + vy + c2)


def test_ssim_is_the_direct_sum_over_windows_for_any_channels():
    a = uniform(2, 4, 17, 13)
    b = (a + 0.3 * uniform(2, 4, 17, 13, seed=1)).clamp(-1, 1)
    for found, x, y in zip(ssim(a, b), (a + 1) / 2, (b + 1) / 2, strict=True):
        maps = [direct(p.numpy(), q.numpy()) for p, q in zip(x, y, strict=True)]
        truth = np.mean([(luminance * rest).mean() for luminance, rest in maps])
        assert float(found) == pytest.approx(truth, rel=1e-9)


def test_constant_images_leave_the_luminance():
    x, y = 0.8, 0.3  # in [0, 1]
    a, b = torch.full((1, 3, 22, 22), 2 * x - 1), torch.full((1, 3, 22, 22), 2 * y - 1)
    luminance = (2 * x * y + 1e-4) / (x**2 + y**2 + 1e-4)
    assert float(ssim(a, b)) == pytest.approx(luminance, rel=1e-6)
    second = SCALE_WEIGHTS[1] / sum(SCALE_WEIGHTS[:2])
    assert float(ms_ssim(a, b, scales=2)) == pytest.approx(luminance**second, rel=1e-6)


def test_ms_ssim_is_the_product_over_direct_scales():
    a = uniform(1, 2, 45, 50)
    b = (a + 0.5 * uniform(1, 2, 45, 50, seed=1)).clamp(-1, 1)
    weights = np.array(SCALE_WEIGHTS[:3]) / sum(SCALE_WEIGHTS[:3])
    x, y = ((z[0].numpy() + 1) / 2 for z in (a, b))
    truth = 1.0
    for scale, weight in enumerate(weights):
        maps = [direct(p, q) for p, q in zip(x, y, strict=True)]
        last = scale == 2
        truth *= np.mean([(bright * cs if last else cs).mean() for bright, cs in maps]) ** weight
        height, width = (n // 2 * 2 for n in x.shape[1:])
        x, y = (
            z[:, :height, :width].reshape(2, height // 2, 2, width // 2, 2).mean((2, 4))
            for z in (x, y)
        )
    assert float(ms_ssim(a, b, scales=3)) == pytest.approx(truth, rel=1e-6)


def test_five_scales_fit_from_176_pixels():
    a = uniform(1, 1, 176, 180)
    b = (a + 0.2 * uniform(1, 1, 176, 180, seed=1)).clamp(-1, 1)
    assert 0.5 < float(ms_ssim(a, b)) < 1
    with pytest.raises(DataError, match="at least 176 px, got 175 x 180"):
        ms_ssim(a[:, :, :175], b[:, :, :175])


def test_small_images_get_what_they_can_have_and_a_reason():
    small = paired_scores(uniform(2, 3, 32, 32), uniform(2, 3, 32, 32, seed=1))
    assert small.ssim is not None
    assert small.ms_ssim is None
    assert small.mean_ms_ssim is None
    assert len(small.missing) == 1
    assert "176 px" in small.missing[0]
    tiny = paired_scores(uniform(2, 3, 8, 8), uniform(2, 3, 8, 8, seed=1))
    assert tiny.ssim is None
    assert tiny.missing[0].startswith("SSIM: ")
    assert "at least 11 px, got 8 x 8" in tiny.missing[0]
    assert tiny.psnr.isfinite().all()


def test_batches_do_not_matter():
    a, b = uniform(5, 1, 24, 24), uniform(5, 1, 24, 24, seed=1)
    for score in (psnr, ssim, lambda x, y: ms_ssim(x, y, 2)):
        one = torch.cat([score(a[i : i + 1], b[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(score(a, b), one, rtol=1e-10, atol=1e-12)


def test_paired_scores_refuse():
    a = uniform(2, 1, 16, 16)
    with pytest.raises(DataError, match="one by one"):
        psnr(a, a[:1])
    with pytest.raises(DataError, match=r"in \[-1, 1\]"):
        psnr(a, (a + 1) * 127)
    with pytest.raises(DataError, match="finite"):
        ssim(a, a * torch.nan)
    with pytest.raises(DataError, match="float images"):
        ssim(a, a.to(torch.uint8))


def test_without_torchmetrics_psnr_works_and_ssim_names_the_extra(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("torchmetrics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    a = uniform(2, 1, 16, 16)
    assert psnr(a, a).isinf().all()
    with pytest.raises(MissingExtraError, match=r"sfumato\[metrics\]"):
        ssim(a, a)
