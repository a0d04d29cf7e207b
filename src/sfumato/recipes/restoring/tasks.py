"""What was done to an image, as an operator, and the image it was done to."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from sfumato.data.pixels import PixelFormat
from sfumato.errors import ConfigError, DataError
from sfumato.recipes.restoring.damaged import Damaged, read_damaged
from sfumato.recipes.restoring.unknown import reading_file
from sfumato.restoration import GREY, Average, Blur, Identity, Mask, Operator, check_adjoint
from sfumato.restoration.operators import Composed

_BEYOND = 0.002
"""Share of a blurred pixel that may come from beyond the image: less than 8 bits show."""


@dataclass(frozen=True)
class Task:
    """At most one of what may have been done to a whole image; none: parts of it are missing.

    `enlarge`: it was made smaller by this factor. `kernel`: it was blurred by this file's or
    "gaussian:DEVIATION" in pixels. `noise`: white noise was added, of this deviation in pixel
    values, "auto" to estimate it. `colorize`: its colours are gone. `operator`: FILE.py:NAME, of
    the user's own.
    """

    enlarge: int | None = None
    kernel: str | None = None
    noise: str | None = None
    colorize: bool = False
    operator: str | None = None

    def __post_init__(self) -> None:
        """Refuse several at once, and factors that enlarge nothing."""
        given = {
            "--super-resolve": self.enlarge is not None,
            "--deblur": self.kernel is not None,
            "--denoise": self.noise is not None,
            "--colorize": self.colorize,
            "--op": self.operator is not None,
        }
        chosen = [name for name, there in given.items() if there]
        if len(chosen) > 1:
            raise ConfigError(
                f"{' and '.join(chosen)} exclude each other: write an operator that does both, and "
                "give it by --op"
            )
        if self.enlarge is not None and self.enlarge < 2:
            raise ConfigError(f"--super-resolve enlarges by 2 or more, not {self.enlarge}")

    @property
    def missing(self) -> bool:
        """Whether parts of the image are missing, and nothing else."""
        return self == Task()


@dataclass(frozen=True, eq=False)
class Question:
    """A whole image to find: its shape and format, how it was measured, and what came of it.

    `shown` [C', h, w] in [-1, 1] is the measurement as a picture, `damaged` what it was read as;
    None for one that is no image.
    """

    shape: tuple[int, int, int]
    operator: Operator
    y: Tensor
    form: PixelFormat
    shown: Tensor
    damaged: Damaged | None


def question(task: Task, path: Path, form: PixelFormat, channels: int | None = None) -> Question:
    """Read what was measured of an image, and check the operator.

    `channels` converts grey and RGB into each other.

    Raises DataError for a file that does not fit, ConfigError for a kernel or operator that cannot
    be used, among them one whose adjoint is wrong.
    """
    if task.operator is not None:
        return _own(task.operator, path, form, channels)
    if task.colorize:
        if form.channels != 3:
            raise ConfigError(f"--colorize needs a model of RGB images, not {form.channels} bands")
        damaged = read_damaged(path, replace(form, channels=1), channels=1)
    else:
        damaged = read_damaged(path, form, channels=channels)
    _, height, width = damaged.format.shape
    known = damaged.known
    if task.enlarge is not None:
        height, width = height * task.enlarge, width * task.enlarge
        operator: Operator = Average(task.enlarge)
    elif task.kernel is not None:
        kernel = read_kernel(task.kernel, (height, width))
        operator, known = Blur(kernel), known & inside(kernel, (height, width))
    else:
        operator = GREY if task.colorize else Identity()
    own = replace(form, height=height, width=width)
    y = damaged.x[None]
    if not known.all():
        known = known.expand_as(damaged.x)
        y = torch.where(known, y, 0.0)
        operator = (
            Mask(known) if isinstance(operator, Identity) else Composed(operator, Mask(known))
        )
    return Question(own.shape, operator, y, own, damaged.x, damaged)


def read_kernel(told: str, size: tuple[int, int]) -> Tensor:
    """Return a kernel [h, w] that sums to 1: "gaussian:DEVIATION", or a .npy or image file.

    Raises ConfigError for one that is larger than the image of `size`, or cannot be read.
    """
    if told.startswith("gaussian:"):
        try:
            std = float(told.removeprefix("gaussian:"))
        except ValueError:
            std = 0.0
        if not 0 < std < 1e3:
            raise ConfigError(f"expected gaussian:DEVIATION in pixels, as gaussian:1.5, not {told}")
        reach = max(1, round(3 * std))
        line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).double() / std) ** 2)
        kernel = torch.outer(line, line)
    else:
        kernel = torch.from_numpy(_array(Path(told)))
    if kernel.ndim != 2 or not kernel.isfinite().all() or not float(kernel.sum()) > 0:
        raise ConfigError(f"{told}: a kernel is [h, w], finite, with a sum above 0")
    if kernel.shape[0] > size[0] or kernel.shape[1] > size[1]:
        raise ConfigError(
            f"{told}: the kernel, {kernel.shape[0]} x {kernel.shape[1]}, is larger than the image, "
            f"{size[0]} x {size[1]}"
        )
    return kernel / kernel.sum()


def inside(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which pixels [H, W] of a blurred image of `size` show hardly more than the image.

    Near its borders a camera's image is blurred with what lies beyond, of which nothing is known.
    Raises ConfigError where the kernel reaches beyond from everywhere.
    """
    weights = kernel.abs().double()
    high, wide = kernel.shape
    # The pixel at the kernel's centre sees kernel[centre + d] of the pixel at -d: of the flipped
    # kernel a rectangle, which sums from its corner tell at once.
    sums = torch.nn.functional.pad(weights.flip(0, 1), (1, 0, 1, 0)).cumsum(0).cumsum(1)

    def reach(side: int, pixels: int) -> tuple[Tensor, Tensor]:
        first = (side - 1) // 2 - torch.arange(pixels)
        return first.clamp(0, side), (first + pixels).clamp(0, side)

    (top, bottom), (left, right) = reach(high, size[0]), reach(wide, size[1])
    seen = (sums[bottom] - sums[top])[:, right] - (sums[bottom] - sums[top])[:, left]
    known = seen >= (1 - _BEYOND) * float(weights.sum())
    if not known.any():
        raise ConfigError(
            f"the kernel, {high} x {wide}, reaches beyond the image, {size[0]} x {size[1]}, from "
            "everywhere: give a larger image or a smaller kernel"
        )
    return known


def _array(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    from PIL import Image

    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False).astype(np.float64)
        return np.asarray(Image.open(path).convert("F"), dtype=np.float64)
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist: a kernel is gaussian:DEVIATION, a .npy or an image file"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read as a kernel: {error}") from error


def _own(told: str, path: Path, form: PixelFormat, channels: int | None) -> Question:
    """An operator of the user's: FILE.py:NAME, an instance or a class without arguments."""
    operator = _imported(told)
    try:
        check_adjoint(operator, form.shape)
        expected = operator(torch.zeros(1, *form.shape)).shape[1:]
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(_failing(told, error)) from error
    damaged = None
    whole = form.dtype != "float32" and _whole_numbers(path)
    if whole and len(expected) != 3:
        raise DataError(
            f"{path}: the operator measures {list(expected)}, which are no pixels: expected floats "
            "of images in [-1, 1], got whole numbers"
        )
    if path.suffix == ".npy" and not whole:
        y = torch.from_numpy(reading_file(path, _load)).float()[None]
        if y.ndim != 1 + len(expected):
            raise DataError(
                f"{path}: the operator measures {list(expected)}, and this is {list(y.shape[1:])}"
            )
        shown = y[0] if len(expected) == 3 and y.shape[1] in (1, 3) else torch.zeros(form.shape)
    elif len(expected) != 3:
        raise ConfigError(
            f"{path}: the operator measures {list(expected)}, which is no image: give it as .npy"
        )
    else:
        own = replace(form, channels=int(expected[0]))
        damaged = read_damaged(path, own, channels=channels)
        y, shown = damaged.x[None], damaged.x
    if y.shape[1:] != expected:
        raise DataError(
            f"{path}: the operator measures {list(expected)} of images {list(form.shape)}, and "
            f"this is {list(y.shape[1:])}"
        )
    if damaged is not None and damaged.share:
        operator = Composed(operator, Mask(damaged.known.expand_as(damaged.x)))
    return Question(form.shape, operator, y, form, shown, damaged)


def try_own(told: str, operator: Operator, x: Tensor) -> None:
    """Raise ConfigError where a user's operator fails for x [B, C, H, W] as it will be asked."""
    try:
        back = operator.adjoint(operator(x))
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(_failing(told, error)) from error
    if back.shape != x.shape or back.device != x.device:
        raise ConfigError(
            f"--op {told}: of {list(x.shape)} on {x.device} it makes {list(back.shape)} on "
            f"{back.device}: an operator takes any batch, and stays on its device"
        )


def _failing(told: str, error: Exception) -> str:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    hint = ""
    if isinstance(error, RuntimeError):
        hint = " (tensors of its own must follow x's dtype and device: self.matrix.to(x))"
    return f"--op {told}: {kind}{error}{hint}"


def _whole_numbers(path: Path) -> bool:
    """Whether a file is an array of whole numbers."""
    if path.suffix != ".npy":
        return False
    mapped = reading_file(path, lambda _: np.load(path, mmap_mode="r", allow_pickle=False))
    return mapped.dtype.kind in "iu"


def _load(stream: BinaryIO) -> np.ndarray[Any, Any]:
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError("expected finite numbers")
    return array.astype(np.float32)


def _imported(told: str) -> Operator:
    file, _, name = told.rpartition(":")
    if not file or not Path(file).is_file():
        raise ConfigError(f"expected --op FILE.py:NAME of a file that exists, got {told}")
    spec = importlib.util.spec_from_file_location("own_operator", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"expected --op FILE.py:NAME of Python code, got {told}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name, None)
        made = found() if isinstance(found, type) else found
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"--op {told} fails: {type(error).__name__}: {error}") from error
    if found is None:
        raise ConfigError(f"{file} holds no {name}")
    if not callable(made) or not callable(getattr(made, "adjoint", None)):
        raise ConfigError(f"--op {told}: an operator has __call__(x) and adjoint(y)")
    return cast("Operator", made)
