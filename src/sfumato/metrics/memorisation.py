"""Has the model memorised? Nearest training images, against nearest images it never saw."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import DataError


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
    training_distances: Tensor
    """[n] to the nearest of as many training images as there are held-out ones."""
    held_out_distances: Tensor
    """[n] to the nearest held-out image."""

    @property
    def closer_share(self) -> float:
        """Share of samples nearer to training than to held-out images: 0.5 without memorising."""
        closer = (self.training_distances < self.held_out_distances).double()
        tied = (self.training_distances == self.held_out_distances).double()
        return float((closer + tied / 2).mean())

    @property
    def closer_share_error(self) -> float:
        """One standard error of `closer_share` if the truth is 0.5 (samples independent)."""
        return 0.5 / math.sqrt(len(self.distances))

    @property
    def ratio(self) -> float:
        """Median distance to training over that to held-out images: 1 without memorising."""
        held_out = float(self.held_out_distances.median())
        training = float(self.training_distances.median())
        if held_out == 0:
            return 1.0 if training == 0 else math.inf
        return training / held_out


def memorisation_test(samples: Tensor, training: Tensor, held_out: Tensor) -> MemorisationTest:
    """Compare the nearest training image of each sample with its nearest held-out image.

    All [n, *data]. More images come nearer by chance alone, so the comparison takes an evenly
    spaced subset of the larger set, of the size of the smaller one.
    """
    if not len(samples) or not len(training) or not len(held_out):
        raise DataError("the memorisation test needs samples, training images and held-out images")
    distances, indices = nearest(samples, training)
    size = min(len(training), len(held_out))
    near_training, _ = nearest(samples, training[_spread(len(training), size)])
    near_held_out, _ = nearest(samples, held_out[_spread(len(held_out), size)])
    return MemorisationTest(
        distances[:, 0], indices[:, 0], near_training[:, 0], near_held_out[:, 0]
    )


def _spread(total: int, size: int) -> Tensor:
    return torch.arange(size) * total // size
