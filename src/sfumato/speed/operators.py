"""What a call's time goes to, by class of operator, as torch's profiler sees it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from sfumato.speed.timing import synchronize

CLASSES: tuple[tuple[str, str], ...] = (
    ("moving average", r"lerp"),
    ("optimizer", r"adam|sgd|foreach|vector_norm"),
    ("attention", r"attention|softmax"),
    ("norms", r"norm(?!al)"),
    ("dropout", r"dropout|bernoulli|random_"),
    ("convolutions", r"conv"),
    ("matrix products", r"(^|::|_)(mm|addmm|bmm|baddbmm|matmul|linear)(_|$)"),
    ("resampling", r"upsample|avg_pool|interpolate|pad|resampled"),
    ("copies", r"copy|clone|contiguous|(^|::)cat|memcpy|memset|fill|zero|stack|index_select"),
    ("random numbers", r"normal|uniform|rand"),
    (
        "elementwise",
        r"join|silu|sigmoid|add|mul|div|sub|neg|sqrt|pow|exp|log|where|clamp|sum|mean|"
        r"(^|::)(lt|gt|le|ge|eq|ne|sin|cos)(_|$)|square|max|min|triton|fused",
    ),
)
"""Class and what its operators' names look like, the first that fits; the rest is "other"."""

_OPTIMIZER = "Optimizer.step"


def class_of(name: str) -> str:
    """Return the class of an operator by its name, such as aten::native_group_norm."""
    lowered = name.lower()
    if lowered.startswith(("autograd::", "torch::autograd")):
        return "other"
    return next((c for c, pattern in CLASSES if re.search(pattern, lowered)), "other")


def shares(call: Callable[[], object], device: torch.device | str = "cpu") -> dict[str, float]:
    """Return the share of the call's operator time that each class takes, largest first.

    The optimizer's own step counts as such, whatever it consists of. On a GPU it is the time of the
    kernels. The call is made twice; shares sum to 1.
    """
    cuda = torch.device(device).type == "cuda"
    call()
    synchronize(device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profile(activities=activities) as profiler:
        call()
        synchronize(device)
    events: Iterable[Any] = profiler.events() or ()
    spent: Counter[str] = Counter()
    for event in events:
        # Kernels are listed once more by themselves: they count with what launched them.
        if cuda and event.device_type.name != "CPU":
            continue
        time = event.self_device_time_total if cuda else event.self_cpu_time_total
        if time > 0:
            spent["optimizer" if _of_optimizer(event) else class_of(event.name)] += time
    return as_shares(spent)


def as_shares(spent: Mapping[str, float]) -> dict[str, float]:
    """Return amounts as shares of their sum, largest first."""
    total = sum(spent.values())
    if not total:
        return {}
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return {name: amount / total for name, amount in ordered}


def _of_optimizer(event: Any) -> bool:
    """Whether an event lies in the optimizer's step, whatever it does there."""
    while event is not None:
        if event.name.startswith(_OPTIMIZER):
            return True
        event = event.cpu_parent
    return False
