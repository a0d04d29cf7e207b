"""A network replayed as CUDA graphs: a GPU is not kept waiting for Python's kernel launches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_WARM_UP = 2


@dataclass(eq=False)
class _Graph:
    """One recorded call: write to `given`, replay, read `out`."""

    graph: torch.cuda.CUDAGraph
    given: dict[str, Tensor]
    out: Tensor


class Graphed(nn.Module):
    """A network without gradients, whose calls of the same shapes are recorded and replayed.

    For sampling: the network must be in evaluation mode and its weights stay as they are. The first
    calls of each set of shapes, calls that need gradients and calls off a GPU are the network's
    own. Every answer is a copy, since a replay overwrites the last. At most `most` sets are kept.
    """

    def __init__(self, network: nn.Module, most: int = 4) -> None:
        super().__init__()
        self.network, self.most = network, most
        self.spectrum = getattr(network, "spectrum", None)
        self._seen: dict[tuple[object, ...], int] = {}
        self._graphs: dict[tuple[object, ...], _Graph] = {}

    def forward(self, x: Tensor, noise_label: Tensor, **condition: Tensor) -> Tensor:
        """Return what the network returns."""
        given = {"x": x, "noise_label": noise_label, **condition}
        if not x.is_cuda or self.network.training or torch.is_grad_enabled():
            return self.network(**given)
        with torch.cuda.device(x.device):
            return self._replayed(given)

    def _replayed(self, given: dict[str, Tensor]) -> Tensor:
        key = tuple((name, tuple(t.shape), t.dtype) for name, t in given.items())
        known = self._graphs.get(key)
        if known is None:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= _WARM_UP:
                return self.network(**given)
            known = self._record(given)
            if len(self._graphs) == self.most:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[key] = known
        for name, value in given.items():
            known.given[name].copy_(value)
        known.graph.replay()
        return known.out.clone()

    def _record(self, given: dict[str, Tensor]) -> _Graph:
        kept = {name: value.clone() for name, value in given.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # What libraries allocate at their first call, before.
            self.network(**kept)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Threads that load data pin memory meanwhile, which is no part of the graph.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = self.network(**kept)
        return _Graph(graph, kept, out)
