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
    """Returns the GPUs that torch sees; this initializes CUDA."""
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


def why_not(built: tuple[str, ...]) -> str | None:
    """Says which GPU a build has no code for, or None."""
    lacking = [gpu for gpu in visible() if code_for(gpu, built) == "none"]
    if not lacking:
        return None
    return (
        f"_C has kernels for compute capability {', '.join(built)}, which {lacking[0]} cannot run: "
        f"{_build_again(lacking)}, or hide that GPU with CUDA_VISIBLE_DEVICES"
    )


def note(built: tuple[str, ...]) -> str | None:
    """Says which GPU the driver must compile a build's kernels for, or None."""
    slow = [gpu for gpu in visible() if code_for(gpu, built) == "PTX"]
    if not slow:
        return None
    return (
        f"_C has no machine code for {slow[0]}: the driver compiles the kernels in the first step, which "
        f"takes long; to avoid that, {_build_again(slow)}"
    )


def _build_again(gpus: list[Gpu]) -> str:
    names = dict.fromkeys("{}.{}".format(*gpu.capability) for gpu in gpus)
    return f"build again with TORCH_CUDA_ARCH_LIST='{';'.join(names)}'"
