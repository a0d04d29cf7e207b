"""What the report of a run measures: distance, classes and nearest training images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from tqdm import tqdm

from sfumato.errors import DataError, MissingExtraError
from sfumato.metrics.channels import FIRST_THREE
from sfumato.metrics.classifier import Classifier, train_classifier
from sfumato.metrics.efficientnet import efficientnet_features
from sfumato.metrics.features import FeatureExtractor, extract
from sfumato.metrics.frechet import frechet_distance
from sfumato.metrics.memorisation import MemorisationTest, memorisation_test, nearest
from sfumato.recipes.real_images import MOST, RealImages
from sfumato.report.run_report import ClassRow, FrechetRow, Neighbours


def bar(total: int, title: str) -> Any:
    """Return a progress bar over images; what is done within a second shows none."""
    return tqdm(total=total, unit="img", desc=title, delay=1)


def frechet(
    samples: Tensor, training: RealImages, held_out: RealImages | None
) -> tuple[list[FrechetRow], list[str]]:
    """Return distances to held-out (else training) images beside that of real ones, and warnings.

    samples [n, C, H, W] in [-1, 1]. The real ones are n training images, or all where fewer.
    """
    if len(samples) < 2:
        return [], ["No Fréchet distance: it needs at least 2 samples (--report-samples)."]
    try:
        extractor: FeatureExtractor = efficientnet_features()
    except MissingExtraError as error:
        return [], [f"No Fréchet distance: {error}"]
    reference = training if held_out is None else held_out
    if len(reference) < 2:
        return [], ["No Fréchet distance: it needs at least 2 real images to compare with."]
    name = "training images" if held_out is None else "held-out images"
    count = min(MOST, len(reference))
    target = extract(_watched(reference.stream(), count, f"features of {name}"), extractor)
    drawn = extract(_watched(samples.split(256), len(samples), "features of samples"), extractor)
    real = real_n = None
    if held_out is not None and len(training) >= 2:
        count = min(len(samples), len(training))
        stream = training.stream(len(samples))
        floor = extract(_watched(stream, count, "features of training images"), extractor)
        real, real_n = frechet_distance(floor, target), floor.count
    rule = FIRST_THREE.describe(samples.shape[1])
    row = FrechetRow(
        f"samples against {name}",
        frechet_distance(drawn, target),
        drawn.count,
        target.count,
        f"{extractor.name}; {rule} ({extractor.fingerprint})",
        real,
        real_n,
    )
    few = [] if len(samples) >= 1000 else [
        f"The Fréchet distance of only {len(samples)} samples is far above its value for many: "
        + ("compare it with the number beside it, or " if real is not None else "")
        + "draw more (--report-samples 2000)."
    ]  # fmt: skip
    return [row], few


def classes(
    samples: Tensor,
    training: RealImages,
    held_out: RealImages | None,
    asked: Tensor | None = None,
) -> tuple[list[ClassRow], str]:
    """Return each class's share of the samples, by a classifier of the real images, and a note.

    samples [n, C, H, W] in [-1, 1]; asked [n]: the class each was drawn as. Nothing for images
    without at least two classes, or too few to learn from.
    """
    names, known = training.images.classes, training.labels
    if known is None or len(names) < 2:
        return [], ""
    unseen = None
    if held_out is not None and held_out.labels is not None:
        unseen = held_out.x, held_out.labels
    try:
        classifier = train_classifier(
            training.x, known, names, epochs=12, held_out=unseen,
            watch=lambda batches: tqdm(batches, unit="batch", desc="classifier", delay=1),
        )  # fmt: skip
    except DataError as error:
        return [], f"No class shares: {error}."
    rows, sure = class_rows(classifier, samples, known)
    note = f"By a {classifier.name}; it is at least 90 % sure of {100 * sure:.0f} % of the samples"
    if unseen is not None:
        _, sure_of_real = class_rows(classifier, unseen[0], known)
        note += f" ({100 * sure_of_real:.0f} % of the held-out images)"
    note += "."
    if asked is not None:
        agree = float((classifier.probabilities(samples).argmax(1) == asked).double().mean())
        note += f" {100 * agree:.0f} % are of the class that was asked for."
    return rows, f"{note} Caution: {classifier.caution}." if classifier.caution else note


def class_rows(
    classifier: Classifier, samples: Tensor, real_labels: Tensor
) -> tuple[list[ClassRow], float]:
    """Return shares and certainty by class, and the share of samples it is 90 % sure of."""
    certainty, chosen = classifier.probabilities(samples).max(1)
    rows = [
        ClassRow(
            name,
            float((chosen == k).double().mean()),
            float(certainty[chosen == k].mean()) if (chosen == k).any() else None,
            float((real_labels == k).double().mean()),
        )
        for k, name in enumerate(classifier.classes)
    ]
    return rows, float((certainty >= 0.9).double().mean())


def neighbours(samples: Tensor, training: RealImages, held_out: RealImages | None) -> Neighbours:
    """Return the samples' nearest among the training images that are held in memory."""
    shown = min(16, len(samples))
    searched, total = len(training.x), len(training)
    if held_out is None:
        distances, index = nearest(samples, training.x)
        near = training.x[index[:shown, 0]]
        return Neighbours(
            samples[:shown], near, distances[:, 0].tolist(), searched=searched, total=total
        )
    test: MemorisationTest = memorisation_test(samples, training.x, held_out.x)
    return Neighbours(
        samples[:shown],
        training.x[test.indices[:shown]],
        test.distances.tolist(),
        ratio=test.ratio,
        closer_share=test.closer_share,
        closer_share_error=test.closer_share_error,
        searched=searched,
        total=total,
    )


def _watched(batches: Iterable[Tensor], total: int, title: str) -> Iterator[Tensor]:
    """Yield batches of images under a progress bar."""
    with bar(total, title) as shown:
        for batch in batches:
            yield batch
            shown.update(len(batch))
