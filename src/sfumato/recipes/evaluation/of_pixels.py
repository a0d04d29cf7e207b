"""Metrics of pixels: each turns sets of images into rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import DataError
from sfumato.metrics.memorisation import memorisation_test
from sfumato.metrics.paired import paired_scores
from sfumato.metrics.sliced import PATCH, sliced_pyramid, sliced_wasserstein
from sfumato.metrics.tint import PixelStatistics, Tint, pixel_statistics, tint
from sfumato.recipes.evaluation.row import Row
from sfumato.recipes.evaluation.sets import ImageSet, all_pixels, chunk_count, pixels
from sfumato.recipes.real_images import held

_SLICED = 2048


def sliced(
    samples: ImageSet, reference: ImageSet, real: ImageSet | None, *, against: str, seed: int
) -> list[Row]:
    """Sliced Wasserstein distance between pixels, and between patches of a pyramid."""
    size = min(len(samples), len(reference), held(samples.format.shape, _SLICED))
    ours, target = all_pixels(samples, size), all_pixels(reference, size)
    floor = all_pixels(real, size) if real is not None and len(real) >= size else None

    def of_pixels(x: Tensor) -> float:
        rows = (x.flatten(1), target.flatten(1))
        return sliced_wasserstein(*rows, np.random.default_rng(seed)).value

    def of_patches(x: Tensor) -> float:
        return sliced_pyramid(x, target, np.random.default_rng(seed)).value

    kinds: list[tuple[str, str, Callable[[Tensor], float], str]] = [
        ("swd", "Sliced Wasserstein, pixels x 1000", of_pixels, "512 directions; 2000 is black to "
         "white"),
    ]  # fmt: skip
    if min(samples.format.shape[1:]) >= PATCH:
        kinds.append(
            (
                "swd-patches",
                "Sliced Wasserstein, patches x 1000",
                of_patches,
                f"{PATCH} x {PATCH} patches of a Laplacian pyramid, normalised by the reference",
            )
        )
    return [
        Row(
            metric,
            name,
            1000 * score(ours),
            against,
            None,
            None if floor is None else 1000 * score(floor),
            n=len(ours),
            n_reference=len(target),
            note=note,
        )
        for metric, name, score, note in kinds
    ]


def paired(samples: ImageSet, reference: ImageSet, *, against: str) -> list[Row]:
    """PSNR, SSIM and MS-SSIM of image i of one set against image i of the other."""
    if len(samples) != len(reference):
        raise DataError(
            f"psnr compares pairs, but there are {len(samples):,} {samples.name} and "
            f"{len(reference):,} {reference.name}: give two folders with the same file names"
        )
    psnr: list[Tensor] = []
    ssim: list[Tensor] = []
    many: list[Tensor] = []
    missing: tuple[str, ...] = ()
    for number in range(chunk_count(samples)):
        found = paired_scores(pixels(samples, number), pixels(reference, number))
        missing = found.missing
        psnr.append(found.psnr)
        if found.ssim is not None:
            ssim.append(found.ssim)
        if found.ms_ssim is not None:
            many.append(found.ms_ssim)
    rows: list[Row] = []
    for metric, name, parts in (
        ("psnr", "PSNR, dB", psnr),
        ("ssim", "SSIM", ssim),
        ("ms-ssim", "MS-SSIM", many),
    ):
        if not parts:
            continue
        values = torch.cat(parts).double()
        finite = values[values.isfinite()]
        same = len(values) - len(finite)
        mean = float(finite.mean()) if len(finite) else math.inf
        error = float(finite.std()) / math.sqrt(len(finite)) if len(finite) > 1 else None
        note = "mean over pairs" + (f"; {same} identical pairs left out" if same else "")
        rows.append(
            Row(metric, name, mean, against, error, None, "higher", len(values), len(values), "",
                note)
        )  # fmt: skip
    if missing and rows:
        last = rows[-1]
        rows[-1] = replace(last, note="; ".join((last.note, *missing)))
    return rows


def colours(samples: ImageSet, reference: ImageSet, *, against: str) -> tuple[list[Row], Tint]:
    """Shift of each channel's mean, and the distance between histograms."""
    found = tint(_pixel_statistics(reference), _pixel_statistics(samples))
    form = samples.format
    eight_bits = form.dtype == "uint8" and form.levels == 256
    scale, unit = (1.0, "of 255") if eight_bits else (100 / 255, "% of the range")
    part = "channel" if form.channels in (1, 3) else "band"
    rows = [
        Row(
            "tint" if len(found.shift) == 1 else f"tint-{channel + 1}",
            f"Shift of {part} {channel + 1}, {unit}",
            scale * shift,
            against,
            scale * error,
            None,
            "nearer to real",
            found.n_fake,
            found.n_real,
            "",
            f"histograms {scale * distance:.2f} {unit} apart (real images: {scale * floor:.2f}); "
            f"contrast x {ratio:.3f}",
        )
        for channel, (shift, error, distance, floor, ratio) in enumerate(
            zip(
                found.shift,
                found.shift_error,
                found.distance,
                found.distance_floor,
                found.std_ratio,
                strict=True,
            )
        )
    ]
    return rows, found


def _pixel_statistics(images: ImageSet) -> PixelStatistics:
    return pixel_statistics(pixels(images, i) for i in range(chunk_count(images)))


def memorised(samples: ImageSet, training: ImageSet, held_out: ImageSet) -> list[Row]:
    """Whether samples lie nearer to training images than to images held out."""
    most = held(samples.format.shape)
    sets = [all_pixels(images, most) for images in (samples, training, held_out)]
    found = memorisation_test(*sets)
    copies = int((found.distances == 0).sum())
    row = Row(
        "memorisation",
        "Samples nearer to training than to held-out images, %",
        100 * found.closer_share,
        "training and test images",
        100 * found.closer_share_error,
        50.0,
        "nearer to real",
        len(sets[0]),
        len(sets[1]) + len(sets[2]),
        "",
        f"nearest of {len(sets[1]):,} training and {len(sets[2]):,} held-out images, set right for "
        f"their numbers; {copies:,} exact copies",
    )
    return [row]
