"""A small classifier trained on the user's own labelled images, in under a minute on two cores.

It says which class a generated image is, how surely, and serves as a feature extractor for images
unlike ImageNet's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import DataError
from sfumato.metrics.thinning import dealt

Watch = Callable[[Sequence[Tensor]], Iterable[Tensor]]
"""Hands on the batches it is given, in order: what a progress bar does."""


class _Network(nn.Module):
    """Four convolutions over two halvings, a 4 x 4 map kept (place matters), one linear layer."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, halve: bool) -> list[nn.Module]:
            pool = [nn.MaxPool2d(2, ceil_mode=True)] if halve else []
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            return [convolution, *pool, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

        self.body = nn.Sequential(
            *layer(channels, width, halve=True),
            *layer(width, 2 * width, halve=False),
            *layer(2 * width, 2 * width, halve=True),
            *layer(2 * width, 4 * width, halve=False),
        )
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(4 * width * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.body(x))

    def classify(self, maps: Tensor) -> Tensor:
        """Logits [B, classes] of what the body gives."""
        return self.out(self.drop(self.pool(maps).flatten(1)))


@dataclass(frozen=True)
class Classifier:
    """A trained classifier: Classifying; images are uint8, uint16 or float in [-1, 1]."""

    network: _Network
    classes: tuple[str, ...]
    mean: Tensor
    """[C, 1, 1] of the training images in [-1, 1]."""
    std: Tensor
    """[C, 1, 1] likewise."""
    size: tuple[int, int]
    """Height and width images are resized to; at most 32 px on the shorter side."""
    accuracy: float
    """Share of the held-out images it classifies correctly."""
    held_out: int
    """How many images that was measured on."""

    @property
    def name(self) -> str:
        """What it is, for the reader of a number."""
        return (
            f"small CNN trained on these {len(self.classes)} classes, "
            f"{self.size[0]}x{self.size[1]} px, 128-d pooled, right on "
            f"{100 * self.accuracy:.1f} % of {self.held_out:,} held-out images"
        )

    @property
    def caution(self) -> str | None:
        """Why not to trust it: hardly better than guessing; else None."""
        chance = 1 / len(self.classes)
        if self.accuracy >= min(2 * chance, (1 + chance) / 2):
            return None
        return (
            f"the classifier is right on only {100 * self.accuracy:.1f} % of held-out images, and "
            f"guessing is on {100 * chance:.1f} %: it says little about these images"
        )

    @property
    def class_source(self) -> str:
        """What the logits are of."""
        return f"{len(self.classes)} classes of a small CNN trained on these images"

    @property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the weights."""
        digest = hashlib.sha256()
        for key, value in sorted(self.network.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Pooled features [B, 128] of images [B, C, H, W]."""
        return self.network.body(self._prepare(images)).mean((2, 3))

    @torch.inference_mode()
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features [B, 128] and logits [B, classes] of images [B, C, H, W]."""
        maps = self.network.body(self._prepare(images))
        return maps.mean((2, 3)), self.network.classify(maps)

    def to(self, device: torch.device) -> Classifier:
        """The same classifier with everything on a device; the network itself is moved."""
        network = self.network.to(device)
        return replace(self, network=network, mean=self.mean.to(device), std=self.std.to(device))

    @torch.inference_mode()
    def probabilities(self, images: Tensor, batch: int = 500) -> Tensor:
        """Class probabilities [B, classes] of images [B, C, H, W]; each row sums to 1."""
        rows = [self.network(self._prepare(part)).softmax(1) for part in images.split(batch)]
        return torch.cat(rows) if rows else torch.empty(0, len(self.classes))

    def _prepare(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise DataError(
                f"this classifier takes images [B, {len(self.mean)}, H, W], "
                f"got {list(images.shape)}"
            )
        images = images.to(self.mean.device)
        x = (_resize(_to_float(images), self.size) - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    seed: int = 0,
    epochs: int = 8,
    held_out: tuple[Tensor, Tensor] | None = None,
    watch: Watch = lambda batches: batches,
) -> Classifier:
    """Train on images [n, C, H, W] (uint8, uint16, or float in [-1, 1]) with labels [n].

    `held_out` (images, labels) measures the accuracy; without it a fifth of them is kept back.
    `watch` is handed the batches of all epochs and sees one a step.
    The result is a function of the arguments (on one machine, at one number of threads): the
    global random state is neither read nor changed. Raises DataError for labels that do not fit.
    """
    _check_labels(images, labels, classes)
    if held_out is None:
        back = torch.from_numpy(dealt(len(images), 5)) == 4
        held_out = images[back], labels[back]
        images, labels = images[~back], labels[~back]
    _check_labels(*held_out, classes)
    size = _working_size(images.shape[2], images.shape[3])
    x = _resize(_to_float(images), size)
    mean = x.mean((0, 2, 3)).view(-1, 1, 1)
    std = x.std((0, 2, 3)).clamp(min=1e-3).view(-1, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Network(x.shape[1], len(classes))
        # Inside as well: dropout can only draw from the global generator.
        draw = torch.Generator().manual_seed(seed)
        _fit(network, (x - mean) / std, labels.long(), epochs, draw, watch)
    made = Classifier(network, tuple(classes), mean, std, size, math.nan, len(held_out[0]))
    correct = made.probabilities(held_out[0]).argmax(1) == held_out[1]
    accuracy = float(correct.double().mean())
    return Classifier(network, tuple(classes), mean, std, size, accuracy, len(held_out[0]))


def _fit(
    network: _Network, x: Tensor, labels: Tensor, epochs: int, draw: torch.Generator, watch: Watch
) -> None:
    batch = max(2, min(100, len(x) // 4))
    batches: list[Tensor] = []
    for _ in range(epochs):
        # An incomplete last batch is left out: other images in every epoch.
        batches += torch.randperm(len(x), generator=draw).split(batch)[: len(x) // batch]
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, total_steps=len(batches), pct_start=0.2
    )
    network.train()
    for rows in watch(batches):
        inputs = x[rows].contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(network(inputs), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)


def _to_float(images: Tensor) -> Tensor:
    if images.is_floating_point():
        return images.float()
    if images.dtype in (torch.uint8, torch.uint16):
        return images.float() / (torch.iinfo(images.dtype).max / 2) - 1
    raise DataError(f"expected uint8, uint16 or float images, got {images.dtype}")


def _working_size(height: int, width: int) -> tuple[int, int]:
    shrink = min(1.0, 32 / min(height, width))
    return round(height * shrink), round(width * shrink)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", antialias=True)


def _check_labels(images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise DataError(f"a classifier needs at least 2 classes, got {len(classes)}")
    if images.ndim != 4 or labels.shape != images.shape[:1] or len(images) < 5:
        raise DataError(
            f"expected at least 5 images [n, C, H, W] and as many labels [n], "
            f"got {list(images.shape)} and {list(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise DataError(
            f"labels must be 0 to {len(classes) - 1} for {len(classes)} classes, "
            f"found {int(labels.min())} to {int(labels.max())}"
        )
