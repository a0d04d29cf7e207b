"""Feature statistics as .npz files with `mu` [F] and `sigma` [F, F]: what EDM, ADM and pytorch-fid
publish and read, plus, in ours, where the numbers come from."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import DataError
from sfumato.metrics.frechet import FeatureStatistics

KEY = "sfumato"
"""Name in the file of the provenance, a JSON string; other readers pass over it."""
ASSUMED_COUNT = 50_000
"""Images taken to be behind a file that does not say: the size of most published sets."""


@dataclass(frozen=True)
class Provenance:
    """What led to statistics: two files agree in it, or their distance means nothing."""

    extractor: str
    """`FeatureExtractor.name`."""
    fingerprint: str
    """`FeatureExtractor.fingerprint`, of the weights."""
    resize: str
    """How images were brought to the extractor's size, and quantised."""
    count: int
    """Images."""
    data: str
    """Fingerprint of the images themselves."""


@dataclass(frozen=True)
class StoredStatistics:
    """What a file held."""

    statistics: FeatureStatistics
    provenance: Provenance | None
    """None in files of other projects."""
    warning: str | None
    """What had to be assumed, to print beside the number."""


def write_statistics(path: Path, statistics: FeatureStatistics, provenance: Provenance) -> None:
    """Write to `path` (ending in .npz), through a temporary file beside it."""
    if path.suffix != ".npz":
        raise ValueError(f"feature statistics are written as .npz, not {path.name}")
    if provenance.count != statistics.count:
        raise ValueError(f"provenance says {provenance.count} images, not {statistics.count}")
    told = np.array(json.dumps(asdict(provenance), ensure_ascii=False))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, mu=statistics.mean, sigma=statistics.covariance, sfumato=told)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_statistics(path: Path, count: int | None = None) -> StoredStatistics:
    """Read a file of ours, EDM's, ADM's or pytorch-fid's; nothing in it is ever unpickled.

    `count` says how many images are behind a file that does not; it does not enter the Fréchet
    distance, only errors and merging. DataError for anything but finite `mu` [F] and `sigma`
    [F, F], symmetric and with no negative variance.
    """
    arrays = _arrays(path)
    for key in ("mu", "sigma"):
        if key not in arrays:
            raise DataError(
                f"{path}: no '{key}' in it, only {sorted(arrays)}: "
                "feature statistics are a .npz with 'mu' [F] and 'sigma' [F, F]"
            )
    mean, covariance = (_real(path, key, arrays[key]) for key in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        raise DataError(
            f"{path}: expected 'mu' [F] and 'sigma' [F, F], "
            f"got {list(mean.shape)} and {list(covariance.shape)}"
        )
    _check_covariance(path, covariance)
    provenance = _provenance(path, arrays[KEY]) if KEY in arrays else None
    warning = None
    if provenance is not None:
        if count not in (None, provenance.count):
            raise DataError(f"{path} is of {provenance.count} images, not {count}")
        count = provenance.count
    elif count is None:
        count = ASSUMED_COUNT
        warning = (
            f"{path.name} does not say how many images it is of ({count} assumed), "
            "nor by what extractor and resize"
        )
    else:
        warning = f"{path.name} does not say by what extractor and resize it was made"
    statistics = FeatureStatistics.from_moments(mean, covariance, count)
    return StoredStatistics(statistics, provenance, warning)


def _arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise DataError(f"no file {path}: expected feature statistics (.npz)")
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is no .npz, or only the beginning of one: expected an archive with 'mu' and "
            "'sigma' (a .pkl of statistics must be converted by whoever trusts it)"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            found: dict[str, NDArray[np.generic]] = {}
            for key in file.files:  # others by name only: some files carry thousands of images
                found[key] = file[key] if key in ("mu", "sigma", KEY) else np.empty(0)
            return found
    except Exception as error:  # NumPy and zipfile raise a dozen kinds on damaged bytes
        raise DataError(
            f"{path} cannot be read as feature statistics ({error}): "
            "damaged, or holding Python objects, which are never loaded"
        ) from None


def _real(path: Path, key: str, values: NDArray[np.generic]) -> NDArray[np.float64]:
    if values.dtype.kind not in "fiu":
        raise DataError(f"{path}: '{key}' holds {values.dtype}, expected real numbers")
    made = values.astype(np.float64)
    if not np.isfinite(made).all():
        raise DataError(f"{path}: '{key}' holds NaN or infinity")
    return made


def _check_covariance(path: Path, covariance: NDArray[np.float64]) -> None:
    scale = float(np.abs(covariance).max())
    if float(np.abs(covariance - covariance.T).max()) > 1e-4 * scale:
        raise DataError(f"{path}: 'sigma' is not symmetric, so it is no covariance")
    if float(covariance.diagonal().min()) < -1e-6 * scale:
        raise DataError(f"{path}: 'sigma' has a negative variance, so it is no covariance")


def _provenance(path: Path, text: NDArray[np.generic]) -> Provenance:
    try:
        read = cast("dict[str, object]", json.loads(str(text)))
        found = {field.name: read[field.name] for field in fields(Provenance)}
        texts = [str(found[key]) for key in ("extractor", "fingerprint", "resize")]
        return Provenance(*texts, count=int(str(found["count"])), data=str(found["data"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: the provenance in '{KEY}' is damaged ({error})") from None
