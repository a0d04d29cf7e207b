"""Statistics files: exact, shared with other projects, never unpickled, never half written."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from sfumato.errors import DataError
from sfumato.metrics.frechet import FeatureStatistics, frechet_distance
from sfumato.metrics.statistics_file import (
    ASSUMED_COUNT,
    Provenance,
    read_statistics,
    write_statistics,
)


def statistics(n=200, seed=0):
    rng = np.random.default_rng(seed)
    made = FeatureStatistics(6)
    made.update(rng.normal(size=(n, 6)) * rng.uniform(0.1, 9, 6) + rng.normal(size=6))
    return made


def provenance(n=200):
    return Provenance("Netz, 96 px, ähnlich", "0123456789abcdef", "bicubic, float", n, "feed")


def test_round_trip(tmp_path: Path):
    path, made = tmp_path / "a.npz", statistics()
    write_statistics(path, made, provenance())
    found = read_statistics(path)
    assert found.provenance == provenance()
    assert found.warning is None
    assert found.statistics.count == 200
    assert np.array_equal(found.statistics.mean, made.mean)
    # From covariance to scatter and back may move the last bit.
    np.testing.assert_allclose(found.statistics.covariance, made.covariance, rtol=5e-16)
    other = statistics(seed=1)
    assert frechet_distance(found.statistics, other) == pytest.approx(
        frechet_distance(made, other), rel=1e-12
    )
    assert list(tmp_path.iterdir()) == [path]


def test_others_read_it(tmp_path: Path):
    """As pytorch-fid does, and as EDM does, which loads every key."""
    path, made = tmp_path / "a.npz", statistics()
    write_statistics(path, made, provenance())
    with np.load(path) as file:  # no pickle: numpy's default
        assert np.array_equal(file["mu"][:], made.mean)
        assert np.array_equal(file["sigma"][:], made.covariance)
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
    with path.open("rb") as opened:
        assert set(dict(np.load(opened))) == {"mu", "sigma", "sfumato"}


def test_it_reads_others(tmp_path: Path):
    path, made = tmp_path / "foreign.npz", statistics()
    np.savez_compressed(path, mu=made.mean, sigma=made.covariance, mu_s=np.zeros(3))
    found = read_statistics(path)
    assert found.provenance is None
    assert found.statistics.count == ASSUMED_COUNT
    assert "does not say how many" in (found.warning or "")
    np.testing.assert_allclose(found.statistics.covariance, made.covariance, rtol=1e-15)
    # What is assumed does not enter the distance.
    assert frechet_distance(found.statistics, made) == pytest.approx(0, abs=1e-9)
    told = read_statistics(path, count=200)
    assert told.statistics.count == 200
    assert "how many" not in (told.warning or "")


def test_a_count_that_contradicts_the_file_is_refused(tmp_path: Path):
    path = tmp_path / "a.npz"
    write_statistics(path, statistics(), provenance())
    with pytest.raises(DataError, match="of 200 images, not 300"):
        read_statistics(path, count=300)
    with pytest.raises(ValueError, match="provenance says 3"):
        write_statistics(path, statistics(), provenance(3))


class Trap:
    """Raises when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("something was unpickled",))


def objects():
    return np.array([Trap()], dtype=object)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": np.zeros(2)}, r"no 'mu' in it, only \['mean'\]"),
        ({"mu": np.zeros(2)}, "no 'sigma'"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, r"got \[2\] and \[3, 3\]"),
        ({"mu": np.zeros((2, 1)), "sigma": np.eye(2)}, r"got \[2, 1\]"),
        ({"mu": np.zeros(2), "sigma": np.eye(2) * np.nan}, "'sigma' holds NaN"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "expected real numbers"),
        ({"mu": np.zeros(2), "sigma": np.eye(2) * 1j}, "expected real numbers"),
        ({"mu": np.zeros(2), "sigma": np.array([[1, 5], [0, 1]])}, "not symmetric"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "negative variance"),
        ({"mu": objects(), "sigma": np.eye(1)}, "never loaded"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "sfumato": np.array("{")}, "damaged"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "sfumato": np.array("[1]")}, "damaged"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "sfumato": np.array("{}")}, "damaged"),
    ],
)
def test_contents_are_checked(tmp_path: Path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=message):
        read_statistics(path)


def test_files_that_are_no_archive(tmp_path: Path):
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match="no file"):
        read_statistics(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"is no \.npz"):
        read_statistics(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"is no \.npz"):
        read_statistics(path)
    write_statistics(path, statistics(), provenance())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="only the beginning"):
        read_statistics(path)
    # The directory at the end is whole, the numbers are not.
    path.write_bytes(whole[:100] + b"\x55" * 80 + whole[180:])
    with pytest.raises(DataError, match="damaged"):
        read_statistics(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.npz"
    write_statistics(path, statistics(), provenance())
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        write_statistics(path, statistics(seed=1), provenance())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_ends_in_npz(tmp_path: Path):
    with pytest.raises(ValueError, match=r"\.npz"):
        write_statistics(tmp_path / "a.npy", statistics(), provenance())
