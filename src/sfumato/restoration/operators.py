"""What was measured of an image: linear operators A, their adjoints, and (gain A A' + floor)^-1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from sfumato.diffusion import expand
from sfumato.noise import F64

_NOTHING = 1e-6
"""Eigenvalues so much smaller than the largest count as 0: float32 tells them no better."""
Spectrum = Callable[[Tensor], Tensor]


class Operator(Protocol):
    """A linear map of images x [B, *data] to measurements y [B, *measured]: all that is needed."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return A x."""
        ...

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Return A' y, for which <A x, y> = <x, A' y>."""
        ...


class Spectral(Operator, Protocol):
    """An operator that knows the eigenvalues of A A': what is solved with it is solved exactly."""

    def spectral(self, function: Spectrum, y: Tensor, /) -> Tensor:
        """Return f(A A') y [B, *measured]; f maps eigenvalues >= 0, elementwise."""
        ...


def is_spectral(operator: Operator) -> TypeGuard[Spectral]:
    """Return whether an operator knows the eigenvalues of A A'."""
    return callable(getattr(operator, "spectral", None))


@dataclass(frozen=True, eq=False)
class Mask:
    """Keeps what is known, and tells 0 elsewhere: `known` [*data] or broadcastable, bool."""

    known: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return x where it is known."""
        return x * self.known.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return y where it is known."""
        return y * self.known.to(y)

    def spectral(self, function: Spectrum, y: Tensor) -> Tensor:
        """Eigenvalues are 1 and 0."""
        return function(self.known.to(y).expand_as(y)) * y


@dataclass(frozen=True)
class Identity:
    """The image itself: what is measured is its noise alone."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Return y."""
        return y

    def spectral(self, function: Spectrum, y: Tensor) -> Tensor:
        """All eigenvalues are 1."""
        return function(torch.ones((), dtype=y.dtype, device=y.device)) * y


@dataclass(frozen=True)
class Average:
    """The means of blocks of `factor` x `factor` pixels of [B, C, H, W]: a smaller image.

    Raises ValueError for a factor below 1 and, when called, for a size it does not divide.
    """

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"blocks have at least one pixel, not {self.factor}")

    def __call__(self, x: Tensor) -> Tensor:
        """Return the means [B, C, H / factor, W / factor]."""
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(
                f"blocks of {self.factor} pixels do not divide {x.shape[-2]} x {x.shape[-1]}: crop "
                "or choose another factor"
            )
        return torch.nn.functional.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return each mean, over the block's size, in all of its pixels."""
        whole = y.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)
        return whole / self.factor**2

    def spectral(self, function: Spectrum, y: Tensor) -> Tensor:
        """All eigenvalues are 1 / factor^2."""
        value = torch.tensor(self.factor**-2.0, dtype=y.dtype, device=y.device)
        return function(value) * y


@dataclass(frozen=True, eq=False)
class Blur:
    """A convolution of [B, C, H, W] with `kernel` [h, w], the image going on at its other side.

    Raises ValueError for a kernel that is not finite and, when called, for one larger than the
    image.
    """

    kernel: Tensor

    def __post_init__(self) -> None:
        if self.kernel.ndim != 2 or not self.kernel.isfinite().all():
            raise ValueError(f"a kernel is finite, [h, w], not {list(self.kernel.shape)}")

    def _transfer(self, like: Tensor) -> Tensor:
        height, width = like.shape[-2:]
        h, w = self.kernel.shape
        if h > height or w > width:
            raise ValueError(f"the kernel, {h} x {w}, is larger than the image, {height} x {width}")
        whole = torch.zeros(height, width, dtype=like.dtype, device=like.device)
        whole[:h, :w] = self.kernel.to(like)
        return torch.fft.rfft2(whole.roll((-(h // 2), -(w // 2)), (0, 1)))

    def _apply(self, transfer: Tensor, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=x.shape[-2:])

    def __call__(self, x: Tensor) -> Tensor:
        """Return the blurred image."""
        return self._apply(self._transfer(x), x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the correlation with the kernel."""
        return self._apply(self._transfer(y).conj(), y)

    def spectral(self, function: Spectrum, y: Tensor) -> Tensor:
        """Eigenvalues are the squared absolute values of the kernel's Fourier transform."""
        transfer = self._transfer(y)
        return self._apply(function(transfer.abs().square()), y)


@dataclass(frozen=True, eq=False)
class Mix:
    """Channels [B, C, ...] mixed by a matrix [K, C] into K of them: grey from colours, say.

    Raises ValueError for a matrix that is not finite.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or not self.matrix.isfinite().all():
            raise ValueError(f"a mix is a finite matrix [K, C], not {list(self.matrix.shape)}")

    def __call__(self, x: Tensor) -> Tensor:
        """Return the mixed channels."""
        return torch.einsum("kc,bc...->bk...", self.matrix.to(x), x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the transposed mix."""
        return torch.einsum("kc,bk...->bc...", self.matrix.to(y), y)

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        matrix = self.matrix.to(F64)
        values, vectors = torch.linalg.eigh(matrix @ matrix.T)
        return values.clamp(min=0), vectors

    def spectral(self, function: Spectrum, y: Tensor) -> Tensor:
        """Eigenvalues are those of matrix matrix'."""
        values, vectors = (part.to(y) for part in self._eigen)
        apart = torch.einsum("kj,bk...->bj...", vectors, y)
        apart = apart * function(values).reshape(1, -1, *[1] * (y.ndim - 2))
        return torch.einsum("kj,bj...->bk...", vectors, apart)


GREY = Mix(torch.tensor([[0.299, 0.587, 0.114]], dtype=F64))
"""Grey of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True, eq=False)
class Composed:
    """One operator after another: x -> then(first(x))."""

    first: Operator
    then: Operator

    def __call__(self, x: Tensor) -> Tensor:
        """Return then(first(x))."""
        return self.then(self.first(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the adjoints in turn."""
        return self.first.adjoint(self.then.adjoint(y))


def solve(operator: Operator, y: Tensor, gain: Tensor, floor: Tensor, rounds: int = 50) -> Tensor:
    """Return (gain A A' + floor)^-1 y [B, *measured]; gain and floor [] or [B, 1, ...], >= 0.

    Exactly where the operator knows its spectrum, else by conjugate gradients. Where eigenvalue
    and floor together are below a millionth of the largest it is 0: the pseudo-inverse.
    """
    if is_spectral(operator) and gain.numel() == floor.numel() == 1:
        one, least = gain.reshape(()), floor.reshape(())
        return operator.spectral(lambda value: inverse(one * value + least), y)
    gain, floor = (expand(part.flatten(), y) for part in (gain, floor))

    def apply(v: Tensor) -> Tensor:
        return gain * operator(operator.adjoint(v)) + floor * v

    return conjugate_gradients(apply, y, rounds)


def inverse(value: Tensor) -> Tensor:
    """Return 1 / value, and 0 where it is lost in the largest one's rounding."""
    least = value.max() * _NOTHING
    return torch.where(value > least, 1 / value.clamp(min=least), torch.zeros_like(value))


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], y: Tensor, rounds: int, tolerance: float = 1e-6
) -> Tensor:
    """Return v with M v = y [B, *measured], M symmetric and positive, image by image.

    It stops after `rounds`, where the rest is `tolerance` of y, and for an image of which M shows
    itself not to be positive.
    """
    v, rest = torch.zeros_like(y), y.clone()
    direction, square = rest, _dot(rest, rest)
    enough = tolerance**2 * square
    for _ in range(rounds):
        if not (square > enough).any():
            break
        image = apply(direction)
        curve = _dot(direction, image)
        good = (curve > 0) & (square > enough)
        step = torch.where(good, square / torch.where(good, curve, 1.0), 0.0)
        v, rest = v + step * direction, rest - step * image
        after = _dot(rest, rest)
        turn = torch.where(good, after / torch.where(good, square, 1.0), 0.0)
        direction = rest + turn * direction
        square = torch.where(good, after, torch.zeros_like(after))
    return v


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products image by image, [B, 1, ...]."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def check_adjoint(operator: Operator, shape: tuple[int, ...], seed: int = 0) -> None:
    """Raise ValueError unless <A x, y> = <x, A' y> for random x [1, *shape] and y, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, *shape, generator=generator, dtype=F64)
    measured = operator(x)
    y = torch.randn(measured.shape, generator=generator, dtype=F64)
    back = operator.adjoint(y)
    if back.shape != x.shape:
        raise ValueError(
            f"the operator's adjoint returns {list(back.shape)} for images {list(x.shape)}: it "
            "must return the images' shape"
        )
    one, other = float((measured * y).sum()), float((x * back).sum())
    size = math.sqrt(float(measured.square().sum()) * float(y.square().sum()))
    if not abs(one - other) <= 1e-5 * size:
        raise ValueError(
            f"the operator's adjoint is wrong: <A x, y> is {one:.6g} and <x, A' y> is {other:.6g} "
            "for random x and y, and they must be equal"
        )
    if not torch.allclose(operator(2 * x), 2 * measured, rtol=1e-5, atol=1e-8):
        raise ValueError("the operator is not linear: A(2 x) is not 2 A x")
