"""The restoration benchmark: its pairs and tests are of one kind, and its rows are kept."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipe_helpers import pixels
from sfumato.data.clouds import Clouds
from sfumato.data.sources import open_images

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import _damage
import restoration


def model_space(raw: Any) -> torch.Tensor:
    return torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_training_clouds_are_the_tables_but_of_other_seeds(tmp_path: Path) -> None:
    raw = pixels((3, 16, 16), 4)
    np.save(tmp_path / "images.npy", raw)
    images = open_images(tmp_path / "images.npy")
    pairs = list(_damage.training_pairs(images, 2, 0.5))
    assert len(pairs) == 8
    hidden = [float((a != b).any(0).mean()) for a, b, _ in pairs]
    low, high = _damage.COVERS
    # A cloud's very edge may round to the ground's own value.
    assert all(low - 0.1 <= share <= high + 0.01 for share in hidden)
    assert max(hidden) - min(hidden) > 0.1
    assert not np.array_equal(pairs[0][0], pairs[4][0])
    np.testing.assert_array_equal(pairs[0][1], pairs[4][1])
    # What the table does to an image, training does with the same seed and cover.
    cover = float(np.random.default_rng([0, 1]).uniform(*_damage.COVERS))
    field = _damage.drawn((16, 16), _damage.TRAINING_SEED, cover, 0.5)
    x = model_space(raw[:1])
    seen = _damage.as_bytes(Clouds.over(x, field))
    np.testing.assert_array_equal(((seen[0] + 1) * 127.5).round().numpy(), pairs[0][0])


def test_damage_knows_what_it_left_and_answers_keep_it() -> None:
    x0 = model_space(pixels((3, 16, 16), 3))
    damage = _damage.clouded(x0, 0.3, 0.5)
    known = damage.known.expand_as(x0)
    torch.testing.assert_close(damage.seen[known], x0[known], atol=1e-6, rtol=0)
    assert float((~damage.known).double().mean()) == pytest.approx(0.3, abs=0.01)
    assert _damage.clouded(x0, 0.3, 1e-3).thin < 0.02 < damage.thin
    answer = _damage.in_place(damage, torch.full_like(x0, 7.0))
    torch.testing.assert_close(answer[known], x0[known], atol=0, rtol=0)
    assert (answer[~known] == 1).all()


def test_classical_methods_fill_in_what_is_lost_and_nothing_else() -> None:
    pytest.importorskip("cv2")
    pytest.importorskip("skimage")
    column = torch.linspace(-1, 1, 16)
    x0 = column.expand(2, 3, 16, 16).contiguous()  # smooth: easily guessed
    damage = _damage.scattered(x0, 0.2)
    lost = ~damage.known.expand_as(x0)
    for fill in _damage.classical().values():
        x = fill(damage)
        assert (x[~lost] == x0[~lost]).all()
        assert float((x - x0)[lost].abs().mean()) < 0.1 < float(x0[lost].abs().mean())


class Features:
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def test_rows_are_kept_and_made_anew_for_another_model(tmp_path: Path) -> None:
    path, calls = tmp_path / "rows.json", [0]
    truth = torch.zeros(2, 3, 12, 12)

    def draw(seed: int) -> torch.Tensor:
        calls[0] += 1
        return truth + (0.1 if seed else -0.1)

    def rows(n: int = 2) -> restoration.Rows:
        return restoration.Rows(path, {"n": n}, Features(), "cpu")  # type: ignore[arg-type]

    restoration.drawn(rows(), "t", "model", "a", truth, 2, draw)
    table = rows().tables["t"]
    assert table["model, one answer"]["psnr"] == pytest.approx(20 * np.log10(2 / 0.1), abs=1e-3)
    # The two errors cancel: exact, which counts as rounding does.
    assert table["model, mean of 2"]["psnr"] == restoration.EXACT
    restoration.drawn(rows(), "t", "model", "a", truth, 2, draw)
    assert calls[0] == 2
    restoration.drawn(rows(), "t", "model", "b", truth, 2, draw)
    assert calls[0] == 4
    with pytest.raises(SystemExit, match="another --name"):
        rows(3)
