"""The user's own feature network, as a TorchScript or ONNX file.

The file gets every channel of the images, resized and scaled as asked, and answers with one tensor
whose rows, flattened, are the features. TorchScript and ONNX hold computations rather than Python,
but a file from a stranger can still take up memory and time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sfumato.errors import CheckpointError, DataError, MissingExtraError
from sfumato.metrics.resize import ANTIALIASED_BICUBIC, Resize
from sfumato.metrics.weights import checked_hash, load_torchscript

Run = Callable[[Tensor], object]


@dataclass(frozen=True)
class Feeding:
    """How images [B, C, H, W] in [-1, 1] are put before a network."""

    size: int | None = None
    """Side of the square they are resized to; None leaves them as they are."""
    low: float = -1.0
    """What black (-1) becomes."""
    high: float = 1.0
    """What white (1) becomes."""
    resize: Resize = ANTIALIASED_BICUBIC

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"the size must be at least 1 pixel, not {self.size}")
        if not self.low < self.high:
            raise ValueError(f"the range must be ascending, not {self.low:g} to {self.high:g}")

    @property
    def name(self) -> str:
        """What it is, for the reader of a number."""
        size = "own size" if self.size is None else f"{self.size} px {self.resize.name}"
        return f"{size}, range {self.low:g} to {self.high:g}"

    def __call__(self, images: Tensor) -> Tensor:
        """What the network is given, float32."""
        if images.ndim != 4 or not images.is_floating_point():
            raise DataError(
                f"expected float images [B, C, H, W], got {images.dtype} {list(images.shape)}"
            )
        x = images.float() if self.size is None else self.resize(images, self.size)
        if (self.low, self.high) == (-1, 1):
            return x
        return (x + 1) * ((self.high - self.low) / 2) + self.low


@dataclass(frozen=True, eq=False)
class ForeignFeatures:
    """A FeatureExtractor around somebody else's network."""

    run: Run
    kind: str
    fingerprint: str
    feeding: Feeding
    module: torch.jit.ScriptModule | None = None
    """The network, where it can be moved to a device."""

    @property
    def name(self) -> str:
        """What the features are, for the reader of a number."""
        return f"{self.kind}, {self.feeding.name}, all channels"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, F] float32 of images [B, C, H, W]; DataError when they are not such."""
        try:
            rows = self.run(self.feeding(images))
        except RuntimeError as error:
            raise DataError(
                f"{self.kind} does not take images {list(images.shape)} as {self.feeding.name}: "
                f"{(str(error).splitlines() or [''])[-1]}"
            ) from None
        if not isinstance(rows, Tensor) or rows.ndim < 2 or len(rows) != len(images):
            found = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise DataError(
                f"{self.kind} must answer {len(images)} images with one tensor "
                f"[{len(images)}, ...], got {found}"
            )
        rows = rows.flatten(1).float()
        if not bool(rows.isfinite().all()):
            raise DataError(
                f"{self.kind} gave NaN or infinity: is the range {self.feeding.low:g} to "
                f"{self.feeding.high:g} the one it was trained on?"
            )
        return rows

    def to(self, device: torch.device) -> ForeignFeatures:
        """The same extractor, its network moved to a device where it can be."""
        if self.module is not None:
            self.module.to(device)
        return self


def torchscript_features(path: Path, feeding: Feeding | None = None) -> ForeignFeatures:
    """The network of a TorchScript file; CheckpointError when it is missing or none."""
    digest = checked_hash(path)[:16]
    module = load_torchscript(path, "features")

    def run(x: Tensor) -> object:
        weight = next(module.parameters(), None)
        return module(x if weight is None else x.to(weight.device))

    return ForeignFeatures(run, f"TorchScript {path.name}", digest, feeding or Feeding(), module)


def onnx_features(path: Path, feeding: Feeding | None = None) -> ForeignFeatures:
    """The network of an ONNX file with one input, on the CPU; its first output is the features.

    A file made for a fixed number of images is run in parts of that many. Raises CheckpointError
    when the file is missing or none, MissingExtraError without the package onnxruntime.
    """
    digest = checked_hash(path)[:16]
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtraError("onnxruntime", "onnx", "features of an ONNX file") from None
    runtime = cast("Any", onnxruntime)
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base of their own
        raise CheckpointError(
            f"{path} is not an ONNX file that onnxruntime can run: {str(error).splitlines()[0]}"
        ) from None
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise CheckpointError(f"{path} has {len(inputs)} inputs, expected one, the images")
    label, batch = str(inputs[0].name), inputs[0].shape[0]

    def answer(x: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {label: x.contiguous().numpy()})[0])
        except Exception as error:  # likewise
            raise RuntimeError(str(error)) from None

    def run(x: Tensor) -> Tensor:
        x = x.cpu()
        if not isinstance(batch, int):
            return answer(x)
        missing = -len(x) % batch
        padded = torch.cat([x, x[:1].expand(missing, -1, -1, -1)])
        return torch.cat([answer(part) for part in padded.split(batch)])[: len(x)]

    return ForeignFeatures(run, f"ONNX {path.name}", digest, feeding or Feeding())
