"""Measuring while training: the right number, the best checkpoint kept, training undisturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from recipe_helpers import array_file, break_losses, open_run, pixels, small
from sfumato.cli import main
from sfumato.errors import ConfigError
from sfumato.recipes.loading import load
from sfumato.recipes.run_log import read
from sfumato.training.history import checkpoints


class Pooled(nn.Module):
    """2 x 2 means of every channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("features") / "pooled.pt"
    torch.jit.script(Pooled()).save(str(path))
    return str(path)


def trained(folder: Path, steps: int = 6, **run: Any) -> Path:
    made = open_run(folder / "run", array_file(folder / "data"), small(steps=steps), **run)
    for _ in made.steps():
        pass
    return folder / "run"


def measured(run: Path) -> list[dict[str, Any]]:
    return [line for line in read(run / "log.jsonl") if "frechet" in line]


def pooled(raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The features of raw [n, 1, 8, 8] by numpy."""
    return raw.reshape(len(raw), 2, 4, 2, 4).mean((2, 4)).reshape(len(raw), 4) / 127.5 - 1


def test_the_number_is_that_of_the_saved_weights(tmp_path: Path, features: str) -> None:
    run = trained(tmp_path, eval_every=3, eval_n=10, eval_features=features)
    lines = measured(run)
    assert [line["step"] for line in lines] == [3, 6]
    a = pooled(load(run).sample(10))
    b = pooled(pixels(count=12).transpose(0, 3, 1, 2))
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert lines[-1]["frechet"] == pytest.approx(float(expected), rel=1e-4)
    assert lines[-1]["frechet_against"] == "training images"


def test_what_is_measured_is_saved_before(
    tmp_path: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring may take longer than a job has left that is told to end."""
    found: list[list[int]] = []

    def look(*arguments: Any) -> float:
        found.append([int(one.name) for one in checkpoints(tmp_path / "run")])
        return 1.0

    monkeypatch.setattr("sfumato.recipes.evaluation.during.frechet_distance", look)
    trained(tmp_path, eval_every=2, eval_n=4, eval_features=features, keep=9, save_every=100)
    assert [steps[-1] for steps in found] == [2, 4, 6]


def test_the_best_checkpoint_is_kept(
    tmp_path: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(
        "sfumato.recipes.evaluation.during.frechet_distance", lambda a, b: next(values)
    )
    run = trained(
        tmp_path, steps=9, eval_every=2, eval_n=4, eval_features=features, keep=1, save_every=100
    )
    # The second measurement, at step 4, is the best; the last checkpoint is the end's.
    assert [path.name for path in checkpoints(run)] == ["00000004", "00000009"]


def test_a_resumed_run_knows_its_best(
    tmp_path: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(
        "sfumato.recipes.evaluation.during.frechet_distance", lambda a, b: next(values)
    )
    options: dict[str, Any] = {
        "eval_every": 2, "eval_n": 4, "eval_features": features, "keep": 1, "save_every": 100
    }  # fmt: skip
    folder, data = tmp_path / "run", array_file(tmp_path / "data")
    steps = open_run(folder, data, small(steps=7), **options).steps()
    for _ in range(3):
        next(steps)
    steps.close()
    for _ in open_run(folder, data, small(steps=7), resume=True, **options).steps():
        pass
    assert [path.name for path in checkpoints(folder)] == ["00000002", "00000007"]
    assert [line["frechet"] for line in measured(folder)] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("broken", "snapshot_steps", "distances", "kept"),
    [
        # Steps 2, 4, 6 are measured, then back from 8 to 4, then 6 and 8: 4 is the best.
        ({7, 8}, 4, [5.0, 1.0, 0.5, 2.0, 3.0], ["00000004", "00000009"]),
        # 2 and 4, back from 6 to 3, then 4, 6, 8: the checkpoint of 2 went when 4 was better.
        ({5, 6}, 3, [1.0, 0.5, 2.0, 1.5, 4.0], ["00000006", "00000009"]),
    ],
)
def test_what_a_rollback_abandons_is_not_the_best(
    tmp_path: Path,
    features: str,
    monkeypatch: pytest.MonkeyPatch,
    broken: set[int],
    snapshot_steps: int,
    distances: list[float],
    kept: list[str],
) -> None:
    values = iter(distances)
    monkeypatch.setattr(
        "sfumato.recipes.evaluation.during.frechet_distance", lambda a, b: next(values)
    )
    options: dict[str, Any] = {
        "eval_every": 2, "eval_n": 4, "eval_features": features, "keep": 1, "save_every": 100
    }  # fmt: skip
    folder = tmp_path / "run"
    run = open_run(folder, array_file(tmp_path / "data"), small(steps=9), **options)
    break_losses(run, broken, patience=2, snapshot_steps=snapshot_steps)
    for record in run.steps():
        if record.rolled_back:
            assert measured(folder)[-1]["step"] <= record.step == snapshot_steps
    assert [path.name for path in checkpoints(folder)] == kept
    assert next(values, None) is None


def test_a_step_that_left_the_weights_alone_is_not_measured(tmp_path: Path, features: str) -> None:
    run = open_run(
        tmp_path / "run", array_file(tmp_path / "data"), small(steps=6),
        eval_every=2, eval_n=4, eval_features=features,
    )  # fmt: skip
    break_losses(run, {4})
    assert [record.step for record in run.steps() if record.skipped] == [4]
    assert [line["step"] for line in measured(tmp_path / "run")] == [2, 6]


def test_the_extractor_goes_where_the_model_is(
    tmp_path: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[torch.device] = []

    def watched(extractor: Any, device: torch.device) -> Any:
        moved.append(device)
        return extractor

    monkeypatch.setattr("sfumato.recipes.evaluation.during.on_device", watched)
    trained(tmp_path, eval_every=3, eval_n=4, eval_features=features)
    assert moved == [torch.device("cpu")]


def test_measuring_does_not_disturb_training(tmp_path: Path, features: str) -> None:
    runs = [
        trained(tmp_path / name, eval_every=every, eval_n=4, eval_features=features)
        for name, every in (("with", 2), ("without", 0))
    ]
    a, b = (load(run, weights="network").network.state_dict() for run in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_missing_weights_are_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown features"):
        trained(tmp_path, eval_every=2, eval_features="resnet")
    data = array_file(tmp_path / "more")
    arguments = ["train", "edm-tiny", "--data", str(data), "--layout", "NHWC", "--images", "64"]
    arguments += ["--eval-every", "1", "--eval-n", "1", "--out", str(tmp_path / "x")]
    assert main(arguments) == 2
