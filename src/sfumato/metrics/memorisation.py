"""Has the model memorised? Nearest training images, against nearest images it never saw."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import DataError
from sfumato.metrics.thinning import dealt, spread

_BLOCKS = 10


def nearest(
    samples: Tensor, reference: Tensor, k: int = 1, chunk: int = 4096
) -> tuple[Tensor, Tensor]:
    """The k nearest reference rows of every sample: distances [n, k] ascending, and indices [n, k].

    Both are [n, *data], pixels or features. Distance: root mean square over the values of a row, so
    it does not grow with the size of the image (for pixels in [-1, 1]: 2 is black against white).
    At most `chunk` reference rows are compared with 1024 samples at once.
    """
    a, b = samples.flatten(1), reference.flatten(1)
    if a.shape[1] != b.shape[1] or not len(b):
        raise DataError(
            f"samples and reference images must share a shape and not be empty, "
            f"got {list(samples.shape)} and {list(reference.shape)}"
        )
    if not 1 <= k <= len(b):
        raise ValueError(f"k must be 1 to the number of reference images {len(b)}, not {k}")
    found = [_nearest_rows(rows, b, k, chunk) for rows in a.split(1024)]
    if not found:
        return torch.empty(0, k), torch.empty(0, k, dtype=torch.long)
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])


def _nearest_rows(rows: Tensor, reference: Tensor, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    rows = rows.float()
    # |a - b|^2 = |a|^2 + |b|^2 - 2ab loses digits for near copies, which is what we look for: the
    # product only proposes candidates, a few more than asked; their distances are then exact.
    wanted = min(k + 4, len(reference))
    centre = rows.mean(0)
    centred = rows - centre
    scores = torch.empty(len(rows), 0)
    indices = torch.empty(len(rows), 0, dtype=torch.long)
    for start in range(0, len(reference), chunk):
        block = reference[start : start + chunk].float() - centre
        score = torch.addmm(block.square().sum(1), centred, block.T, alpha=-2)
        scores = torch.cat([scores, score], 1)
        places = torch.arange(start, start + len(block)).expand(len(rows), -1)
        indices = torch.cat([indices, places], 1)
        scores, best = scores.topk(min(wanted, scores.shape[1]), largest=False)
        indices = indices.gather(1, best)
    indices = indices.sort(1).values
    columns = [(reference[column].float() - rows).square().mean(1) for column in indices.T]
    exact, order = torch.stack(columns, 1).sqrt().sort(dim=1, stable=True)
    return exact[:, :k], indices.gather(1, order[:, :k])


@dataclass(frozen=True)
class MemorisationTest:
    """Nearest training image of each sample, and whether it is nearer than images never seen."""

    distances: Tensor
    """[n] to the nearest of all training images (root mean square per value)."""
    indices: Tensor
    """[n] of those training images."""
    held_out_distances: Tensor
    """[n] to the nearest of all held-out images."""
    closer_share: float
    """Share of samples nearer to training than to held-out images, were there as many of both: 0.5
    without memorising, 1 where every sample has its copy."""
    closer_share_error: float
    """One standard error of it if the truth is 0.5; a little too large. All samples share the
    reference images: more samples do not take away what these add."""
    ratio: float
    """Median distance to training over that to as many held-out images: 1 without memorising."""


def memorisation_test(samples: Tensor, training: Tensor, held_out: Tensor) -> MemorisationTest:
    """Compare the nearest training image of each sample with its nearest held-out image.

    All [n, *data]. Of m training and k held-out images the nearest of all is a training image with
    the odds m : k by chance alone, so a sample nearer to a held-out image counts m / k times.
    """
    if not len(samples) or not len(training) or not len(held_out):
        raise DataError("the memorisation test needs samples, training images and held-out images")
    blocks = min(_BLOCKS, len(training), len(held_out))  # one of each is left out at a time
    near_training, indices = _nearest_by_block(samples, training, blocks)
    near_held_out, _ = _nearest_by_block(samples, held_out, blocks)
    closer = _closer(near_training, near_held_out)
    share = float(closer.mean())
    odds = len(training) / len(held_out)
    # Of the share nearer to training, at odds : 1; times the slope of what it is turned into.
    own = odds / (1 + odds) ** 2 / len(samples)
    slope = (1 + odds) ** 2 / (4 * odds)
    distances, block = near_training.min(1)
    held_out_distances = near_held_out.amin(1)
    size = min(len(training), len(held_out))
    medians = (
        float((whole if len(images) == size else _of_some(samples, images, size)).median())
        for images, whole in ((training, distances), (held_out, held_out_distances))
    )
    return MemorisationTest(
        distances,
        indices.gather(1, block[:, None])[:, 0],
        held_out_distances,
        share / (share + odds * (1 - share)),
        slope * math.sqrt(own + _reference_variance(near_training, near_held_out)),
        _ratio(*medians),
    )


def _nearest_by_block(samples: Tensor, reference: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Distances [n, blocks] to the nearest image of each share of the reference, and which."""
    share = torch.from_numpy(dealt(len(reference), blocks))
    found: list[tuple[Tensor, Tensor]] = []
    for number in range(blocks):
        rows = (share == number).nonzero()[:, 0]
        distances, places = nearest(samples, reference[rows])
        found.append((distances, rows[places]))
    return torch.cat([d for d, _ in found], 1), torch.cat([i for _, i in found], 1)


def _of_some(samples: Tensor, reference: Tensor, count: int) -> Tensor:
    """Distances [n] to the nearest of `count` of the reference images."""
    return nearest(samples, reference[torch.from_numpy(spread(len(reference), count))])[0][:, 0]


def _closer(training: Tensor, held_out: Tensor) -> Tensor:
    """Whether samples are nearer to training images [n, blocks]: 1, 0, or 1/2 where they tie."""
    a, b = training.amin(1), held_out.amin(1)
    return (a < b).double() + (a == b).double() / 2


def _reference_variance(training: Tensor, held_out: Tensor) -> float:
    """Variance of the mean of `_closer` over reference sets, from leaving out a block of both.

    The jackknife also sees the draw of the samples, whose images change sides one by one; its
    expectation is taken off again.
    """
    count = training.shape[1]
    if count < 2 or len(training) < 2:
        return 0.0
    rest = [torch.arange(count) != left_out for left_out in range(count)]
    closer = torch.stack([_closer(training[:, r], held_out[:, r]) for r in rest], 1)
    own = closer - closer.mean(1, keepdim=True)
    variance = closer.mean(0).var(correction=0) - own.var(0).mean() / len(own)
    return max(0.0, (count - 1) * float(variance))


def _ratio(training: float, held_out: float) -> float:
    if held_out == 0:
        return 1.0 if training == 0 else math.inf
    return training / held_out
