"""Whether windows fit into memory: asked before the first byte of them is allocated.

The host promises memory that it does not have, and ends the process that uses it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grokfused.state.arrays import used
from grokfused.state.sharding import local
from grokfused.state.storage import state_dtype_for
from grokfused.step.grad_filter import WINDOW


def refuse_what_does_not_fit(
    members: Iterable[tuple[Tensor, Mapping[str, Any], Mapping[str, Any]]],
) -> None:
    """Raises MemoryError where the windows that are to be made are larger than what is free.

    Args:
        members: (parameter, its state, its group) of each.
    """
    needed = Counter[torch.device]()
    for param, state, group in members:
        states = state_dtype_for(param, group["state_dtype"])
        for array in used(param, group, states):
            if array.planes == WINDOW and array.name not in state:
                dtype = array.dtype(param, group, states)
                needed[param.device] += array.planes_of(group) * local(param).numel() * dtype.itemsize
    refuse_windows_larger_than_what_is_free(needed, "window_dtype=torch.bfloat16, or grad_filter='ema'")


def refuse_windows_larger_than_what_is_free(needed: Mapping[torch.device, int], instead: str) -> None:
    """Raises MemoryError where windows of so many bytes do not fit on a device.

    Args:
        needed: Device -> bytes.
        instead: What the message names beside a smaller window.
    """
    for device, size in needed.items():
        free = free_bytes(device)
        if free is not None and size > free:
            raise MemoryError(
                f"the windows of gradients take {size:,} bytes on {device}, and {free:,} are free: take a "
                f"smaller window_size, {instead}"
            )


def free_bytes(device: torch.device) -> int | None:
    """Returns how much memory may still be allocated on a device; None where no one can say."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type != "cpu":
        return None
    limits = [_available(), _left_to_the_group()]
    return min((limit for limit in limits if limit is not None), default=None)


def _available() -> int | None:
    """Returns what the machine can give without swapping: Linux says so; elsewhere, all that it has."""
    if found := re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo")):
        return int(found[1]) * 1024
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_to_the_group(folder: str = "/sys/fs/cgroup") -> int | None:
    """Returns what the control group of a container still allows, the cache of files not counted."""
    limit, used_now = _read(f"{folder}/memory.max").strip(), _read(f"{folder}/memory.current").strip()
    if not (limit.isdigit() and used_now.isdigit()):
        return None
    cache = re.search(r"^inactive_file (\d+)$", _read(f"{folder}/memory.stat"), re.MULTILINE)
    return max(0, int(limit) - int(used_now) + (int(cache[1]) if cache else 0))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
