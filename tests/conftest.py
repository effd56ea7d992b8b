"""Fixtures of several test files."""

from collections.abc import Callable, Iterator

import pytest
import torch

from grokfused import buckets


@pytest.fixture(params=["numbered by the host", "numbered by the device"])
def numbering(request, monkeypatch) -> None:
    """Lets the CPU number its steps as a GPU does."""
    if request.param == "numbered by the device":
        monkeypatch.setattr(buckets, "NUMBERING_DEVICES", ("cpu",))


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
