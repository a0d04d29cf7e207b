"""Models from disk: everything a verb needs, from the path of a run or checkpoint alone."""

from __future__ import annotations

from pathlib import Path

from sfumato.data.pixels import PixelFormat
from sfumato.recipes import build
from sfumato.recipes.environment import tune_device
from sfumato.recipes.model import Model
from sfumato.recipes.toml import from_toml
from sfumato.training.checkpoint import DESCRIPTION, load_checkpoint
from sfumato.training.history import latest_checkpoint
from sfumato.training.named_tensors import load_weights
from sfumato.training.precision import Precision


def load(path: str | Path, *, weights: str = "ema", device: str = "cpu") -> Model:
    """Load a run (its newest valid checkpoint) or one checkpoint folder.

    `weights` is "ema" (the moving average, for sampling) or "network" (the raw ones).
    Raises CheckpointError where there is none, or it is damaged or of another version, and
    ValueError for other weights.
    """
    if weights not in ("ema", "network"):
        raise ValueError(f'weights are "ema" (the average) or "network", not {weights!r}')
    tune_device(device)
    where, notes = Path(path), ()
    if not (where / DESCRIPTION).is_file():
        latest = latest_checkpoint(where)
        where, notes = latest.path, latest.skipped
    checkpoint = load_checkpoint(where, training=weights != "ema")
    tensors = checkpoint.ema if weights == "ema" else checkpoint.network
    assert tensors is not None
    about = checkpoint.describe
    recipe = from_toml(about["recipe"])
    form = PixelFormat.from_toml(about["data"]["format"])
    classes = tuple(about["data"].get("classes", ()))
    told = about["data"].get("condition")
    condition = None if told is None else PixelFormat.from_toml(told)
    network = build.network_of(
        recipe,
        form.shape,
        len(classes),
        condition=condition.channels if condition else 0,
        device=device,
    )
    load_weights(network, tensors, where)
    network.eval().requires_grad_(False)
    precision = Precision(**about["precision"])
    precision.apply(network)
    return Model(
        recipe,
        network,
        form,
        classes,
        where,
        checkpoint.images,
        weights,
        str(precision),
        notes,
        checkpoint.hash_of("ema" if weights == "ema" else "network"),
        condition,
    )
