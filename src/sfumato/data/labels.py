"""Class labels: from sub-folders, from a `dataset.json`, or given as an array."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sfumato.data.containers import Container, natural_key
from sfumato.errors import DataError

_JSON = "dataset.json"


def checked_labels(
    labels: NDArray[Any], count: int, classes: Sequence[str], where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as int64 [N] with a name per class (its number where none is given).

    DataError when they are not `count` whole numbers from 0, or exceed the class names.
    """
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise DataError(
            f"{where}: expected one label for each of {count:,} images, got labels of shape "
            f"{labels.shape}; are labels and images of the same set?"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: expected whole-number class labels, got {labels.dtype}")
    if labels.min() < 0:
        raise DataError(f"{where}: expected class labels from 0, got {labels.min()}")
    highest = int(labels.max())
    names = tuple(classes) or tuple(str(i) for i in range(highest + 1))
    if highest >= len(names):
        raise DataError(
            f"{where}: label {highest} has no name, only {len(names)} classes are given "
            f"({', '.join(names[:5])}...); classes count from 0"
        )
    return labels.astype(np.int64), names


def file_labels(
    container: Container, names: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels and class names of image files: `dataset.json` if it has labels, else sub-folders."""
    if _JSON in container.names:
        listed = _json_labels(container, names)
        if listed is not None:
            return listed
    return _folder_labels(container.where, names)


def _folder_labels(where: str, names: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The first-level sub-folder is the class; classes are in natural order."""
    loose = [name for name in names if "/" not in name]
    if loose:
        raise DataError(
            f"{where}: class labels were expected from sub-folders (one a class) or a "
            f"{_JSON}, but {len(loose):,} of {len(names):,} images lie at the top, for example "
            f"{loose[0]}; sort them into sub-folders or train without classes"
        )
    folders = [name.split("/")[0] for name in names]
    classes = tuple(sorted(set(folders), key=natural_key))
    number = {folder: i for i, folder in enumerate(classes)}
    return np.array([number[folder] for folder in folders], dtype=np.int64), classes


def _json_labels(
    container: Container, names: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...]] | None:
    """Labels of a `dataset.json` ({"labels": [[name, int], ...], "classes": [...]}), None if empty.

    Entries for files that are not there are ignored: part of a set may use the whole set's list.
    """
    where = f"{container.where}: {_JSON}"
    shape = '{"labels": [["name.png", 0], ...], "classes": ["cat", ...]}'
    try:
        with container.open(_JSON) as stream:
            content = json.load(stream)
    except (OSError, ValueError) as error:
        raise DataError(f"{where} is not readable JSON ({error}); expected {shape}") from error
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected {shape}, got a {type(content).__name__}")
    table = cast("dict[str, Any]", content)
    pairs, classes = table.get("labels"), table.get("classes") or []
    if pairs is None:
        return None
    try:
        label_of = {str(name).replace("\\", "/"): label for name, label in pairs}
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected {shape}, got other pairs ({error})") from error
    missing = [name for name in names if name not in label_of]
    if missing:
        raise DataError(
            f"{where}: expected a label for each of {len(names):,} images, but it lists "
            f"{len(label_of):,} names and {len(missing):,} images have none, for example "
            f"{missing[0]}; names are relative to {_JSON}"
        )
    labels = [label_of[name] for name in names]
    odd = next((label for label in labels if type(label) is not int), None)
    if odd is not None:
        raise DataError(f"{where}: expected one whole number as label of an image, got {odd!r}")
    return checked_labels(np.array(labels), len(names), [str(c) for c in classes], where)
