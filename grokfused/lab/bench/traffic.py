"""The memory model: the bytes that a step must read and write, counted from what the optimizer keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from grokfused import GrokAdamW
from grokfused.backends.reference import LANES
from grokfused.state.arrays import there
from grokfused.step.mask import PackedMask


class Traffic(NamedTuple):
    """Bytes per element that one step reads and writes."""

    read: float
    written: float

    @property
    def total(self) -> float:
        """Bytes moved per element."""
        return self.read + self.written


def traffic(
    options: Mapping[str, Any], dtype: torch.dtype = torch.float32, state_itemsize: int | None = None
) -> Traffic:
    """Returns what one step of a variant moves per element at least.

    The parameter and every state are read and written once, of a window one value, and another one is read on
    average; the gradient is read once, and once more where its norm has to be known first. Which states there
    are, and of which dtype, is asked of an optimizer that has taken a step.

    Args:
        options: Keyword arguments of ``GrokAdamW``, those that are not its defaults.
        dtype: Of parameters and gradients. (default: torch.float32)
        state_itemsize: Bytes to an element of each state, where those are not ours. (default: as they are)
    """
    param = torch.zeros(1, dtype=dtype, requires_grad=True)
    param.grad = torch.zeros_like(param)
    # On the reference, which needs neither a compiler nor a GPU and keeps the same states.
    optimizer = GrokAdamW([param], **{**options, "backend": "reference"})
    optimizer.step()
    kept = [optimizer.state[param][array.name] for array in there(optimizer.state[param])]
    updated = param.itemsize + sum(state_itemsize or state.itemsize for state in kept)
    grad_reads = 1 if optimizer.param_groups[0]["max_grad_norm"] is None else 2
    # Once in as many steps as a window is long, an element reads all of it.
    again = sum(state.itemsize for state in kept if state.dim() > param.dim())
    return Traffic(updated + grad_reads * param.grad.itemsize + again, updated)


def under_masks(dense: Traffic, masks: Iterable[PackedMask], dtype: torch.dtype = torch.float32) -> Traffic:
    """Returns what a step moves per element under these masks.

    A word of 32 elements that keeps some of them is moved whole. One that keeps none costs its bits; in mode
    "zero" its parameters are looked at too.

    Args:
        dense: What it moves without a mask.
        masks: One of each parameter.
        dtype: Of the parameters. (default: torch.float32)
    """
    read = written = lanes = 0.0
    for mask in masks:
        kept = int((mask.words != 0).sum()) * LANES
        lanes += mask.words.numel() * LANES
        left_out = mask.words.numel() * LANES - kept
        read += kept * dense.read + left_out * (dtype.itemsize if mask.mode == "zero" else 0)
        written += kept * dense.written
    return Traffic(1 / 8 + read / lanes, written / lanes)
