"""Feature extractors by the words a user says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from sfumato.errors import ConfigError, DataError
from sfumato.metrics.channels import FirstThree, ToThree, fit_pca
from sfumato.metrics.classifier import Watch, train_classifier
from sfumato.metrics.efficientnet import efficientnet_features
from sfumato.metrics.features import FeatureExtractor
from sfumato.metrics.foreign import Feeding, onnx_features, torchscript_features
from sfumato.metrics.inception import (
    PYTORCH_FID_PIXELS,
    TENSORFLOW_PIXELS,
    download_inception,
    inception_features,
)
from sfumato.metrics.resize import (
    ANTIALIASED_BICUBIC,
    PILLOW_BICUBIC,
    TENSORFLOW_BILINEAR,
    TORCH_BILINEAR,
    Resize,
)
from sfumato.metrics.thinning import spread
from sfumato.metrics.vision_transformer import dinov2_features
from sfumato.recipes.evaluation.sets import ImageSet, all_pixels, chunk_count, pixels
from sfumato.recipes.real_images import held

WORDS = (
    "efficientnet, inception, inception:FILE, inception:download, dinov2:FILE, classifier, "
    "FILE.pt or FILE.onnx"
)
RESIZES: dict[str, Resize] = {
    "antialiased": ANTIALIASED_BICUBIC,
    "tensorflow": TENSORFLOW_BILINEAR,
    "pytorch-fid": TORCH_BILINEAR,
    "clean-fid": PILLOW_BICUBIC,
}
"""Names of the resizes: ours, and those of other programs."""


def extractor_of(
    words: str,
    resize: str = "",
    feeding: Feeding | None = None,
    real: ImageSet | None = None,
    watch: Watch = lambda batches: batches,
) -> FeatureExtractor:
    """Return the extractor that `words` name; `real` images with labels train a classifier.

    `resize` is one of RESIZES; "" is the extractor's own. "inception:download" fetches the weights
    unless they are there. A classifier is a function of the images and the number of threads, so
    processes that share work each train the same one; `watch` is handed the batches of that. Raises
    ConfigError for unknown words, CheckpointError for missing or wrong weights, MissingExtraError
    for a missing package.
    """
    name, _, file = words.partition(":")
    suffix = Path(words).suffix.lower()
    chosen = RESIZES[resize] if resize else None
    if name == "efficientnet" and not file:
        return efficientnet_features(chosen or ANTIALIASED_BICUBIC)
    if name == "inception":
        path = download_inception() if file == "download" else Path(file) if file else None
        # Only pytorch-fid scales pixels as PyTorch does; clean-fid keeps TensorFlow's scaling.
        scaling = PYTORCH_FID_PIXELS if resize == "pytorch-fid" else TENSORFLOW_PIXELS
        return inception_features(path, chosen or TENSORFLOW_BILINEAR, scaling)
    if name == "dinov2" and file:
        return dinov2_features(Path(file), chosen or ANTIALIASED_BICUBIC)
    if words == "classifier":
        if resize:
            raise ConfigError("the classifier sees images at their own size: leave out --resize")
        return _classifier(real, watch)
    if suffix == ".onnx":
        return onnx_features(Path(words), feeding)
    if suffix in (".pt", ".ts", ".torchscript"):
        return torchscript_features(Path(words), feeding)
    raise ConfigError(f"unknown features {words!r}; known: {WORDS}")


def channel_rule(name: str, reference: ImageSet) -> ToThree:
    """Return how bands become three channels: "first-three", or "pca" fitted on the reference."""
    if name == "pca" and reference.format.channels > 3:
        return fit_pca(pixels(reference, i) for i in range(chunk_count(reference)))
    return FirstThree()


def _classifier(real: ImageSet | None, watch: Watch) -> FeatureExtractor:
    labels = None if real is None else real.labels()
    if real is None or labels is None or len(real.classes) < 2:
        raise DataError(
            "features of a classifier need labelled real images: give --classes, and data with "
            "sub-folders, a dataset.json or a label file"
        )
    most = held(real.format.shape)
    known = torch.from_numpy(labels[spread(len(real), most)])
    return train_classifier(all_pixels(real, most), known, real.classes, watch=watch)


def on_device(extractor: FeatureExtractor, device: torch.device) -> FeatureExtractor:
    """Return an extractor of `extractor_of` with its network on a device, where it can be moved."""
    move: Callable[[torch.device], FeatureExtractor] = extractor.to  # pyright: ignore
    return move(device)
