"""What tests do with a GPU although torch warns of it; tests/test_gpu_check.py acts the torch that warns."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Lets a block raise where the host waits for the GPU; the mode ends with it, whatever it raises."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def captured() -> Iterator[torch.cuda.CUDAGraph]:
    """Captures a block in a new graph; it may raise and leave the graph empty, of which torch would warn."""
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The CUDA Graph is empty", UserWarning)
        with torch.cuda.graph(graph):
            yield graph
