"""Settings of the whole suite."""

from __future__ import annotations

import os

import torch

# Where there is no GPU its kernels are interpreted; Triton reads this as it is first imported, by
# whichever test.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Sums over threads may differ in the last bit, and the suite shares its machine.
torch.set_num_threads(1)
