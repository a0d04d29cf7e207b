"""Muon: momentum whose matrices are orthogonalised, so that every direction learns equally fast.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". A convolution's
weight counts as the matrix [outputs, inputs * kernel area]. Everything else is left to Adam.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.training.optimizer import trained

# The odd quintic a s + b s^3 + c s^5 that takes singular values in (0, 1] towards 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
_LEAST_CHANNELS = 16


@dataclass(frozen=True)
class Muon:
    """Muon for hidden convolutions, Adam for all other parameters; one rate for both.

    The training's rate is Adam's; matrices move by `rate * matrix_rate * sqrt(max(1, rows /
    columns))` along their orthogonalised momentum.
    """

    matrix_rate: float = 8.0
    momentum: float = 0.95
    iterations: int = 5
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's."""
    eps: float = 1e-8

    def over(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters."""
        return MuonOptimizer(trained(network), self)


class MuonOptimizer(torch.optim.Optimizer):
    """What `Muon` describes; weights of one shape are treated in one batch."""

    def __init__(self, parameters: Iterable[nn.Parameter], rule: Muon) -> None:
        self.rule = rule
        super().__init__(
            parameters, {"lr": 0.0, "fused": True}
        )  # so that loading keeps counts on the device

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        """Move every parameter that has a gradient; closures are not called."""
        for group in self.param_groups:
            shapes: defaultdict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            others: list[Tensor] = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                if is_hidden_convolution(p):
                    shapes[len(p), p[0].numel()].append(p)
                else:
                    others.append(p)
            self._step_matrices([*shapes.values()], group["lr"])
            if others:
                self._step_adam(others, group["lr"])

    def _step_matrices(self, groups: list[list[nn.Parameter]], rate: float) -> None:
        ahead = [self._ahead(parameters) for parameters in groups]
        made = orthogonalise(ahead, self.rule.iterations)
        for parameters, updates in zip(groups, made, strict=True):
            rows, columns = updates.shape[1:]
            size = rate * self.rule.matrix_rate * max(1.0, rows / columns) ** 0.5
            for p, update in zip(parameters, updates, strict=True):
                p.sub_(update.reshape(p.shape), alpha=size)

    def _ahead(self, parameters: list[nn.Parameter]) -> Tensor:
        """The momentum of weights of one shape as matrices, one step ahead (Nesterov)."""
        gradients = [_gradient(p) for p in parameters]
        kept, momentum = [self._kept(p, "momentum") for p in parameters], self.rule.momentum
        torch._foreach_lerp_(kept, gradients, 1 - momentum)  # pyright: ignore
        ahead: list[Tensor] = torch._foreach_lerp(gradients, kept, momentum)  # pyright: ignore
        return torch.stack([a.reshape(len(a), -1) for a in ahead])

    def _step_adam(self, parameters: list[Tensor], rate: float) -> None:
        gradients = [_gradient(p) for p in parameters]
        first = [self._kept(p, "exp_avg") for p in parameters]
        second = [self._kept(p, "exp_avg_sq") for p in parameters]
        steps: list[Tensor] = []
        for p in parameters:
            count = self.state[p].setdefault("step", torch.zeros((), device=p.device))
            steps.append(count)
        torch._fused_adam_(  # pyright: ignore
            parameters,
            gradients,
            first,
            second,
            [],
            _advanced(steps),
            lr=rate,
            beta1=self.rule.betas[0],
            beta2=self.rule.betas[1],
            weight_decay=0.0,
            eps=self.rule.eps,
            amsgrad=False,
            maximize=False,
        )

    def _kept(self, parameter: Tensor, name: str) -> Tensor:
        state: dict[str, Any] = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state[name]


def is_hidden_convolution(parameter: Tensor) -> bool:
    """Whether it is a convolution's weight between features: 16 channels or more on both sides."""
    return parameter.ndim == 4 and min(parameter.shape[:2]) >= _LEAST_CHANNELS


def orthogonalise(stacks: Sequence[Tensor], iterations: int) -> list[Tensor]:
    """Bring all singular values of every [n, rows, columns] near 1 (0.7 to 1.2), keeping vectors.

    Newton-Schulz iterations of an odd quintic, after dividing by the Frobenius norm; singular
    values below about a thousandth of that norm stay smaller. All iterations are on the matrices
    times their transposes, small and square, on which alone an odd polynomial's factor depends.
    """
    wide = [x.mT if x.shape[1] > x.shape[2] else x for x in stacks]
    wide = [x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12) for x in wide]
    made, alike = [*wide], defaultdict[int, list[int]](list)
    for index, x in enumerate(wide):
        alike[x.shape[1]].append(index)
    for indices in alike.values():
        factors = _factors(torch.cat([wide[i] @ wide[i].mT for i in indices]), iterations)
        parts = factors.split([len(wide[i]) for i in indices])
        for i, factor in zip(indices, parts, strict=True):
            made[i] = factor @ wide[i]
    return [m.mT if x.shape[1] > x.shape[2] else m for m, x in zip(made, stacks, strict=True)]


def _factors(squares: Tensor, iterations: int) -> Tensor:
    """What all iterations together multiply x by, given x x^T [n, m, m]; the factors commute."""
    whole = factor = _factor(squares)
    for _ in range(iterations - 1):
        squares = factor @ squares @ factor
        factor = _factor(squares)
        whole = factor @ whole
    return whole


def _factor(squares: Tensor) -> Tensor:
    """a + b s + c s^2, which one iteration multiplies x by."""
    a, b, c = QUINTIC
    factor = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _advanced(steps: list[Tensor]) -> list[Tensor]:
    torch._foreach_add_(steps, 1)  # pyright: ignore
    return steps
