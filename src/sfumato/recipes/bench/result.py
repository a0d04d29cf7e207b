"""What was measured, as plain values: JSON, the table and the advice are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rates:
    """Images a second of one arithmetic: network calls of sampling, forward and backward."""

    forward: float
    training: float


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a training step and its parts; `waited` is the share spent waiting for data.

    `step` is the whole step as the training loop takes it; the parts were measured by themselves.
    """

    step: float
    gradient: float
    optimizer: float
    average: float
    waited: float


@dataclass(frozen=True)
class Result:
    """Everything that `sfumato bench` measured.

    ceilings: FLOP/s, of "copy" B/s, by names such as "conv bfloat16 NHWC". rates: by arithmetic,
    such as "bfloat16 NHWC". flops_*: of one image. batch: images of the timed calls, `batch_asked`
    the recipe's. larger_batch: images/s in training with twice the batch over those with it, 0 if
    not measured. operators: shares of the time by class, in "sampling" and "training".
    """

    name: str
    shape: tuple[int, int, int]
    parameters: int
    flops_forward: int
    flops_training: int
    batch: int
    batch_asked: int
    precision: str
    ceilings: Mapping[str, float]
    rates: Mapping[str, Rates]
    step: StepTimes
    operators: Mapping[str, Mapping[str, float]]
    larger_batch: float = 0.0
    data: str = "synthetic images in memory"
    cores: int = 1
    threads: int = 1
    device: str = "cpu"
    unused_cuda: bool = False
    no_kernels: str = ""
    """Why the CPU's own kernels are missing."""
    spread: float = 1.0
    """Slowest over median round of the ceilings: well above 1 where others use the machine."""
    granted: float = 1.0
    """Share of its threads' time that the CPU gave the process while it measured the ceilings."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def fastest(self) -> str:
        """The arithmetic with most images a second in training."""
        return max(self.rates, key=lambda name: self.rates[name].training)

    def achieved(self, arithmetic: str) -> tuple[float, float]:
        """Return FLOP/s of forward, and of forward with backward, in an arithmetic."""
        rates = self.rates[arithmetic]
        return rates.forward * self.flops_forward, rates.training * self.flops_training

    def fraction(self, arithmetic: str, ceiling: str, *, training: bool) -> float:
        """Return those over a ceiling, "gemm" or "conv", of the same arithmetic."""
        dtype = arithmetic.split()[0]
        name = f"gemm {dtype}" if ceiling == "gemm" else f"conv {arithmetic}"
        return self.achieved(arithmetic)[training] / self.ceilings[name]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values, the derived fractions included."""
        found = asdict(self)
        found["fastest"] = self.fastest
        found["fractions"] = {
            name: {
                f"{kind} of {ceiling}": self.fraction(name, ceiling, training=kind == "training")
                for kind in ("forward", "training")
                for ceiling in ("gemm", "conv")
            }
            for name in self.rates
        }
        return found
