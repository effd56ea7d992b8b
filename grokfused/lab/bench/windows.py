"""The mean of a window of gradients: ours, and as the paper's authors take it."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from grokfused.lab.bench.implementations import ADAMW, LAMB, Implementation, Work, grads_of, ours
from grokfused.lab.bench.timing import Step

WINDOWS = (10, 100, 1000)
MEAN, NARROW_MEAN, AUTHORS = "GrokAdamW, mean of {}", "GrokAdamW, mean of {} in bfloat16", "deque, sum of {}"


def _ours(name: str, window: int, dtype: torch.dtype) -> Implementation:
    options: dict[str, Any] = {"grad_filter": "mean", "window_size": window, "window_dtype": dtype}
    made = ours(name.format(window), **options)
    return Implementation(made.name, made.make, made.work, window_bytes=window * dtype.itemsize)


def _authors(window: int) -> Implementation:
    """Grokfast-MA as the paper's algorithm 1 reads: the gradients are kept, and summed in every step."""

    def make(params: list[Tensor]) -> Step:
        optimizer = torch.optim.AdamW(params, **ADAMW, fused=True)
        windows = [deque((grad.clone() for _ in range(window)), maxlen=window) for grad in grads_of(params)]

        def step() -> None:
            for param, grads in zip(params, windows, strict=True):
                assert param.grad is not None
                grads.append(param.grad)
                param.grad = param.grad + LAMB * (sum(grads) / window)
            optimizer.step()

        return step

    # The least that such a step moves is what ours does.
    work = Work({"grad_filter": "mean"}, states="as params")
    return Implementation(AUTHORS.format(window), make, work, writes_grads=True, window_bytes=4 * window)


WINDOWED: dict[str, Implementation] = {
    each.name: each
    for window in WINDOWS
    for each in (
        _ours(MEAN, window, torch.float32),
        _ours(NARROW_MEAN, window, torch.bfloat16),
        _authors(window),
    )
}
