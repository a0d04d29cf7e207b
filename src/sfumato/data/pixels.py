"""What a raw pixel means, and the two maps between raw values and the model's [-1, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Dtype = Literal["uint8", "uint16", "float32"]
DTYPES: tuple[Dtype, ...] = ("uint8", "uint16", "float32")
_FULL_RANGE = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}


@dataclass(frozen=True)
class PixelFormat:
    """Shape and number format of raw images; raw `low` is the model's -1 and raw `high` its +1.

    `alpha`: the last channel was kept as the opacity of the others, and is written as such. It says
    nothing of what the numbers mean: formats that differ in it alone are equal.
    """

    channels: int
    height: int
    width: int
    dtype: Dtype
    low: float
    high: float
    alpha: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.channels, self.height, self.width) < 1:
            raise DataError(
                f"images need at least one channel, row and column, got shape {self.shape}"
            )
        if self.dtype not in DTYPES:
            raise DataError(f"pixel dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise DataError(
                f"value range: expected finite LOW < HIGH, got {self.low:g} {self.high:g}"
            )
        if self.dtype in _FULL_RANGE:
            _, top = _FULL_RANGE[self.dtype]
            if self.low < 0 or self.high > top or self.low % 1 or self.high % 1:
                raise DataError(
                    f"value range of {self.dtype} pixels: expected whole numbers within "
                    f"0..{top:g}, got {self.low:g} {self.high:g}"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (self.channels, self.height, self.width)

    @property
    def bits(self) -> int:
        """Bits per value as stored: 8, 16 or 32."""
        return {"uint8": 8, "uint16": 16, "float32": 32}[self.dtype]

    @property
    def levels(self) -> int | None:
        """How many values an integer pixel can take (256 for plain uint8); None for floats."""
        return None if self.dtype == "float32" else int(self.high - self.low) + 1

    @property
    def nbytes(self) -> int:
        """Bytes of one raw image."""
        return math.prod(self.shape) * self.bits // 8

    def describe(self) -> str:
        """One phrase: `3 x 32 x 32 uint8`, with the value range where it is not the dtype's own."""
        text = f"{self.channels} x {self.height} x {self.width} {self.dtype}"
        if _FULL_RANGE.get(self.dtype) != (self.low, self.high):
            text += f" in [{self.low:g}, {self.high:g}]"
        return text

    def to_toml(self) -> dict[str, str | int | float]:
        """A flat table that `from_toml` reads back exactly."""
        table = asdict(self)
        return table if self.alpha else {k: v for k, v in table.items() if k != "alpha"}

    @classmethod
    def from_toml(cls, table: Mapping[str, Any]) -> PixelFormat:
        """Inverse of `to_toml`; DataError when a key is missing or of the wrong kind."""
        try:
            return cls(
                channels=int(table["channels"]),
                height=int(table["height"]),
                width=int(table["width"]),
                dtype=table["dtype"],
                low=float(table["low"]),
                high=float(table["high"]),
                alpha=bool(table.get("alpha", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                "pixel format: expected channels, height, width, dtype, low and high, "
                f"got {dict(table)} ({type(error).__name__}: {error})"
            ) from error


def pixel_format(
    shape: tuple[int, int, int],
    dtype: Dtype,
    value_range: tuple[float, float] | None,
    *,
    alpha: bool = False,
) -> PixelFormat:
    """The format of [C, H, W] images; integers default to their full range, floats must state one.

    A range on integers is for data that fills only part of its container, such as 12-bit values
    in uint16 (0, 4095). `alpha`: transparency is kept, which 2 and 4 channels have.
    """
    value_range = value_range or _FULL_RANGE.get(dtype)
    if value_range is None:
        raise DataError(
            "float pixels carry no range of their own: state it with --value-range LOW HIGH "
            "(value_range=(low, high))"
        )
    low, high = map(float, value_range)
    return PixelFormat(*shape, dtype, low, high, alpha=alpha and shape[0] in (2, 4))


class UnknownRangeError(DataError):
    """Pixels that need a stated value range; `low` and `high` are what they span."""

    def __init__(self, what: str, low: float, high: float, why: str) -> None:
        super().__init__(
            f"{what}: {why}, but they span [{low:g}, {high:g}]; state the raw values of black and "
            f"white with --value-range LOW HIGH (value_range=(low, high)), "
            f"for example {range_option(low, high)}"
        )
        self.low, self.high = low, high


def range_option(low: float, high: float) -> str:
    """The option that states a span as the value range, fractions rounded outwards."""
    high = high if high > low else low + 1
    if low % 1 or high % 1:
        unit = 10.0 ** (math.floor(math.log10(high - low)) - 2)
        low, high = math.floor(low / unit) * unit, math.ceil(high / unit) * unit
    return f"--value-range {low:.10g} {high:.10g}"


def float_range(minimum: float, maximum: float, what: str) -> tuple[float, float]:
    """The default range of float images: [0, 1] if all values lie inside it, else [-1, 1].

    Raises UnknownRangeError naming the extremes when they fit neither.
    """
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        if low <= minimum and maximum <= high:
            return low, high
    why = "values without a range of their own were expected inside [0, 1] or [-1, 1]"
    raise UnknownRangeError(what, minimum, maximum, why)


def to_model(array: NDArray[Any], fmt: PixelFormat) -> Tensor:
    """Raw [..., C, H, W] values of `fmt.dtype` -> float32 in [-1, 1]; u / 127.5 - 1 for uint8."""
    import torch

    if str(array.dtype) != fmt.dtype or array.shape[-3:] != fmt.shape:
        raise ValueError(
            f"expected raw {fmt.describe()} images, got {array.dtype} of shape {array.shape}"
        )
    x = torch.from_numpy(array.astype(np.float32, order="C"))
    if fmt.low != 0:
        x.sub_(fmt.low)
    return x.div_((fmt.high - fmt.low) / 2).sub_(1)


def from_model(x: Tensor, fmt: PixelFormat) -> NDArray[Any]:
    """Model values [..., C, H, W] -> raw ones: clipped to [-1, 1], integers rounded to nearest.

    Inverts `to_model` exactly for every 8- and 16-bit value. Raises ValueError on NaN or a channel
    count other than the format's.
    """
    import torch

    if x.ndim < 3 or x.shape[-3] != fmt.channels:
        raise ValueError(
            f"expected [..., {fmt.channels}, H, W] for {fmt.describe()}, got {list(x.shape)}"
        )
    x = x.detach().to(device="cpu")
    x = x if x.dtype == torch.float64 else x.float()
    if x.isnan().any():
        raise ValueError("cannot turn NaN into pixels: the model's output is not finite")
    raw = (x.clamp(-1, 1) + 1) * ((fmt.high - fmt.low) / 2) + fmt.low
    if fmt.dtype != "float32":
        raw = raw.round()
    return raw.numpy().astype(fmt.dtype)
