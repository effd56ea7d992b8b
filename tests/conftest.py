"""Fixtures of several test files."""

import pytest

from grokfused import buckets


@pytest.fixture(params=["numbered by the host", "numbered by the device"])
def numbering(request, monkeypatch) -> None:
    """Lets the CPU number its steps as a GPU does."""
    if request.param == "numbered by the device":
        monkeypatch.setattr(buckets, "NUMBERING_DEVICES", ("cpu",))
