"""The memory model: the bytes that a step must read and write, counted from what the optimizer keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfused import GrokAdamW
from grokfused.backends.block8 import BLOCK
from grokfused.state.arrays import there
from grokfused.step.mask import PackedMask


class Traffic(NamedTuple):
    """Bytes per element of each array that one step moves.

    ``read_only`` and ``updated`` (read and written) are gone through together, ``read_before`` in a pass
    before that.
    """

    updated: tuple[float, ...]
    read_only: tuple[float, ...]
    read_before: tuple[float, ...] = ()

    @property
    def read(self) -> float:
        """Bytes read per element."""
        return sum(self.updated) + sum(self.read_only) + sum(self.read_before)

    @property
    def written(self) -> float:
        """Bytes written per element."""
        return sum(self.updated)

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
    param = torch.zeros(BLOCK, dtype=dtype, requires_grad=True)
    param.grad = torch.zeros_like(param)
    # On the reference, which needs neither a compiler nor a GPU and keeps the same states.
    optimizer = GrokAdamW([param], **{**options, "backend": "reference"})
    optimizer.step()
    kept = [optimizer.state[param][array.name] for array in there(optimizer.state[param])]
    grad = float(param.grad.itemsize)
    sizes = [state_itemsize or _itemsize(state, param) for state in kept]
    # Once in as many steps as a window is long, an element reads all of it.
    again = [float(state.itemsize) for state in kept if state.dim() > param.dim()]
    clips = optimizer.param_groups[0]["max_grad_norm"] is not None
    return Traffic((float(param.itemsize), *sizes), (grad, *again), (grad,) if clips else ())


def _itemsize(state: Tensor, param: Tensor) -> float:
    """Returns what an element updates of a state: of a window one value, of a block's its share."""
    return state.itemsize * min(1.0, state.numel() / param.numel())


def under_masks(dense: Traffic, masks: Iterable[PackedMask], dtype: torch.dtype = torch.float32) -> Traffic:
    """Returns what a step moves per element under these masks.

    A word of 32 elements that keeps some of them is moved whole. One that keeps none costs its bits; in mode
    "zero" its parameters are looked at too.

    Args:
        dense: What it moves without a mask.
        masks: One of each parameter.
        dtype: Of the parameters. (default: torch.float32)
    """
    count = used = looked_at = 0
    for mask in masks:
        own, kept = mask.words.numel(), int((mask.words != 0).sum())
        count, used = count + own, used + kept
        looked_at += own - kept if mask.mode == "zero" else 0

    def of(sizes: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(used / count * size for size in sizes)

    looks = (looked_at / count * dtype.itemsize,) if looked_at else ()
    return Traffic(of(dense.updated), (*of(dense.read_only), 1 / 8, *looks), of(dense.read_before))
