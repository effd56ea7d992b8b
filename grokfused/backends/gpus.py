"""Which GPUs the CUDA kernels of a build run on.

A build holds machine code for some compute capabilities ("8.6"), and may hold PTX ("8.6+PTX"), which the
driver compiles in the first step. Machine code runs on GPUs of its major number, from its minor number on,
PTX on those of its capability and all later ones; what is made for one GPU ("9.0a") runs there alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch

Code = Literal["machine code", "PTX", "none"]


class Gpu(NamedTuple):
    """A GPU that torch sees."""

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} ({self.capability[0]}.{self.capability[1]})"


def visible() -> list[Gpu]:
    """Returns the GPUs that torch sees; this initialises CUDA."""
    return [
        Gpu(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))
        for index in range(torch.cuda.device_count())
    ]


def code_for(gpu: Gpu, built: Iterable[str]) -> Code:
    """Says what a build has for a GPU.

    Args:
        gpu: The GPU.
        built: The capabilities of the build, as in TORCH_CUDA_ARCH_LIST. A name that is none of a capability
            ("native") counts as the GPU's: nothing is known against it.
    """
    found: Code = "none"
    for name in built:
        parts = re.fullmatch(r"(\d+)\.(\d)([a-z]?)(\+PTX)?", name)
        if parts is None:
            return "machine code"
        capability, only_there = (int(parts[1]), int(parts[2])), parts[3] == "a"
        reached = gpu.capability == capability if only_there else gpu.capability >= capability
        if reached and gpu.capability[0] == capability[0]:
            return "machine code"
        if reached and parts[4]:
            found = "PTX"
    return found


def devices() -> list[str]:
    """Returns the devices that may be told apart: "cuda", or each GPU where their capabilities differ."""
    found = visible() if torch.cuda.is_available() else []
    if len({gpu.capability for gpu in found}) > 1:
        return [f"cuda:{index}" for index in range(len(found))]
    return ["cuda"] if found else []


def why_not(built: tuple[str, ...], index: int | None) -> str | None:
    """Says why a build has no code for a GPU, by its index or the current one, or None."""
    gpu = _gpu(index)
    if code_for(gpu, built) != "none":
        return None
    return (
        f"_C has kernels for compute capability {', '.join(built)}, which {gpu} cannot run: {_build_again()}"
    )


def note(built: tuple[str, ...], index: int | None) -> str | None:
    """Says that the driver must compile a build's kernels for a GPU, or None."""
    gpu = _gpu(index)
    if code_for(gpu, built) != "PTX":
        return None
    return (
        f"_C has no machine code for {gpu}: the driver compiles the kernels in the first step, which takes "
        f"long; to avoid that, {_build_again()}"
    )


def _gpu(index: int | None) -> Gpu:
    return visible()[torch.cuda.current_device() if index is None else index]


def _build_again() -> str:
    names = dict.fromkeys("{}.{}".format(*gpu.capability) for gpu in visible())
    return f"build again with TORCH_CUDA_ARCH_LIST='{';'.join(names)}'"
