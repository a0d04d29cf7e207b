"""What kernels can be asked for: memory that is there, and nobody who looks over torch's work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F


def is_watched() -> bool:
    """Whether torch traces, transforms or counts what is done: it would not see a kernel."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore
        or torch._C._len_torch_dispatch_stack() > 0  # pyright: ignore
        or forward_ad._current_level >= 0  # pyright: ignore
    )


def needs_torch(dy: Tensor) -> bool:
    """Whether a gradient is to have a graph, or many are asked for at once."""
    return (
        torch.is_grad_enabled() or is_watched() or torch._C._functorch.is_legacy_batchedtensor(dy)  # pyright: ignore
    )


def is_plain(*tensors: Tensor) -> bool:
    """Whether these are numbers in the CPU's memory, no stand-ins of tracing or sharding."""
    return all(type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" for t in tensors)


def is_plain_image_batch(x: Tensor) -> bool:
    """Whether x is [B, C, H, W], dense and channels last, of 16, 32, ... channels and some pixels.

    Images of one pixel are left out: whether their channels come last cannot be told.
    """
    return (
        is_plain(x)
        and x.ndim == 4
        and x.shape[1] % 16 == 0
        and x.numel() > 0
        and x.shape[2] * x.shape[3] > 1
        and not is_watched()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def numbers(*shape: int) -> Tensor:
    """Memory for float32, whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def channels_last(dtype: torch.dtype, *images: Tensor) -> tuple[Tensor, ...]:
    """Images as kernels read them: hooks may give back what was saved in another layout."""
    return tuple(t.to(dtype).contiguous(memory_format=torch.channels_last) for t in images)


def gradients_by_torch(
    again: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor
) -> list[Tensor | None]:
    """The gradients of what `again` makes of the inputs, with a graph of their own where asked.

    For second derivatives, of which a kernel knows nothing.
    """
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: an input that another depends on is not to gain what goes through that one.
        seen = [None if t is None else t.view_as(t) for t in inputs]
        wanted = [t for t in seen if t is not None and t.requires_grad]
        y = again(*seen)
        made = iter(torch.autograd.grad(y, wanted, dy.to(y.dtype), create_graph=graph))
    return [next(made) if t is not None and t.requires_grad else None for t in seen]


def norm_gradients_by_torch(
    inputs: tuple[Tensor, Tensor | None, Tensor, Tensor],
    dy: Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool,
    drops: bool,
    dtype: torch.dtype,
) -> list[Tensor | None]:
    """`gradients_by_torch` of act(norm(x + offset) scale + shift) in dtype; none where it drops."""
    if drops:
        raise NotImplementedError(
            "second derivatives of a network that drops out: call network.eval(), or build "
            "it with dropout=0"
        )

    def again(x: Tensor, offset: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
        h = x.float() if offset is None else x.float() + offset[..., None, None]
        h = F.group_norm(h, groups, eps=eps) * scale[..., None, None]
        h = h + shift[..., None, None]
        return (F.silu(h) if silu else h).to(dtype)

    return gradients_by_torch(again, inputs, dy)
