"""A training step as one CUDA graph: launching a small network's kernels takes longer than running them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Results = tuple[Tensor, ...]


class Captured(NamedTuple):
    """A graph, where it reads its argument and where it leaves its results."""

    graph: torch.cuda.CUDAGraph
    rows: Tensor
    results: Results


class Graphed:
    """Calls a function on CUDA tensors: by itself the first time, by a graph of it from then on.

    Every length of the argument gets a graph of its own. The first call prepares what may not be captured
    (states, libraries' handles), and is a real one: no step is taken that would not have been taken anyway.

    Args:
        step: Takes rows, int64 [n]; returns tensors. Must not make the host wait for the device.
    """

    def __init__(self, step: Callable[[Tensor], Results]) -> None:
        self.step = step
        self.called: set[int] = set()
        self.captured: dict[int, Captured] = {}

    def __call__(self, rows: Tensor) -> Results:
        """Returns what the function returns, in tensors of the caller's own."""
        size = len(rows)
        if size not in self.called:
            self.called.add(size)
            return self.step(rows)
        if size not in self.captured:
            self.captured[size] = self._capture(rows)
        graph, place, results = self.captured[size]
        place.copy_(rows)
        graph.replay()
        return tuple(result.clone() for result in results)

    def _capture(self, rows: Tensor) -> Captured:
        place, graph = rows.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self.step(place)
        return Captured(graph, place, results)
