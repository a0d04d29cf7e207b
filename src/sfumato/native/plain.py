"""What kernels can be asked for: images in memory, while torch does not record what is done."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_plain_image_batch(x: Tensor) -> bool:
    """Whether x is [B, C, H, W] on a CPU, dense and channels last, C a multiple of 16.

    Not while torch traces, transforms or counts: it would not see them.
    """
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.ndim == 4
        and x.shape[1] % 16 == 0
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore
        and torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore
        and torch._C._len_torch_dispatch_stack() == 0  # pyright: ignore
        and x.is_contiguous(memory_format=torch.channels_last)
        and forward_ad.unpack_dual(x).tangent is None
    )
