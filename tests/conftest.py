"""Settings of the whole suite."""

from __future__ import annotations

import torch

# Sums over threads may differ in the last bit, and the suite shares its machine.
torch.set_num_threads(1)
