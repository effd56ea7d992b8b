"""The snippets of docs/trainers.md, and what the tests that run them have in common."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grokfused.lab.agreement import differing_bits

PAGE = (Path(__file__).parent.parent / "docs" / "trainers.md").read_text()
SNIPPETS = dict(re.findall(r"## ([^\n]+)\n\n```python\n(.*?)```", PAGE, re.DOTALL))


def installed(package: str) -> Any:
    return pytest.importorskip(package, reason=f"{package} is not installed (pip install '.[trainers]')")


@pytest.fixture(autouse=True)
def on_the_cpu_in_an_empty_folder(monkeypatch, tmp_path) -> None:
    """A backward pass on a GPU need not be the same twice, and the runs below write where they are."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(tmp_path)


def run(title: str, edits: dict[str, str] | None = None, **names: Any) -> dict[str, Any]:
    """Runs the snippet under a title, always from the same seed, and returns what it has defined."""
    code = SNIPPETS[title]
    for old, new in (edits or {}).items():
        assert old in code, old
        code = code.replace(old, new)
    torch.manual_seed(0)
    found = {"__name__": "snippet", **names}
    exec(compile(code, "docs/trainers.md", "exec"), found)
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and not any(differing_bits(a[name], b[name]) for name in a)
