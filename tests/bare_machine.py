"""A plugin of pytest's that acts a machine of few packages and with a GPU, as far as collection goes."""

import importlib.abc
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder

import pytest
import torch

# What `make gpu-check` may count on, with what these need themselves.
INSTALLED = ("torch", "triton", "numpy", "pytest", "hypothesis", "rich", "typer", "matplotlib", "pybind11")
INSTALLED += ("ninja", "setuptools")


def needed(names: tuple[str, ...]) -> set[str]:
    """Returns the distributions of these names and all that they need."""
    found, left = set(), list(names)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        left += [name_in(line) for line in asked if "extra ==" not in line]
    return found


def name_in(requirement: str) -> str:
    """Returns the name at the front of a requirement ("numpy>=2; python_version ...")."""
    end = next((at for at, sign in enumerate(requirement) if not (sign.isalnum() or sign in "-_.")), None)
    return requirement[:end]


class Present(importlib.abc.MetaPathFinder):
    """Finds what Python finds on its path, but for the distributions that are not on that machine."""

    def __init__(self) -> None:
        there = needed(INSTALLED) | {"grokfused"}
        modules = metadata.packages_distributions().items()
        self.absent = {
            module
            for module, names in modules
            if not there & {name.lower().replace("_", "-") for name in names}
        }

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in self.absent else PathFinder.find_spec(name, path, target)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    sys.meta_path[:] = [Present() if finder is PathFinder else finder for finder in sys.meta_path]
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_name = lambda *device: "acted"
    torch.cuda.get_device_capability = lambda *device: (9, 0)
    from grokfused.backends import native

    native._architectures = lambda: ("9.0",)
