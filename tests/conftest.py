"""Fixtures of several test files."""

import os

# Threads that wait do not spin: workers of pytest share the processors. Before torch loads its OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import signal
from collections.abc import Callable, Iterator

import pytest
import torch

from grokfused.step import engine


@pytest.fixture(params=["numbered by the host", "numbered by the device"])
def numbering(request, monkeypatch) -> None:
    """Lets the CPU number its steps as a GPU does."""
    if request.param == "numbered by the device":
        monkeypatch.setattr(engine, "NUMBERING_DEVICES", ("cpu",))


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def grokadamw() -> type[torch.optim.Optimizer]:
    """PyPI's optimizer of that name."""
    return pytest.importorskip("grokadamw", reason="it is not installed (pip install '.[bench]')").GrokAdamW


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Lets Ctrl-C do what it does in a terminal: under ``nohup`` and many runners of CI it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def nothing_compiled_before() -> Iterator[None]:
    """Lets each test compile by itself, and count its own breaks of the graph."""
    from torch._dynamo.utils import counters  # only where it is needed: it takes long to import

    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    # The "eager" backend (torch 2.13) leaves a no_grad of the graph on where something raises in it.
    assert torch.is_grad_enabled()
