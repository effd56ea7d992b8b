"""How long a step of many small tensors takes: the case for which a kernel takes many at once."""

from __future__ import annotations

import statistics
import time
from functools import partial

import torch
from torch import nn

from grokfused import GrokAdamW


def step_times(seed: int, device: str = "cpu") -> dict[str, float]:
    """Returns microseconds a step of ours and of torch's fused AdamW, the medians of steps in turn."""
    torch.manual_seed(seed)
    made: list[tuple[torch.optim.Optimizer, list[float]]] = []
    fused = partial(torch.optim.AdamW, fused=True)
    for kind in (partial(GrokAdamW, grad_filter="none"), fused):
        params = [nn.Parameter(torch.randn(1_024, device=device)) for _ in range(100)]
        for param in params:
            param.grad = torch.randn(1_024, device=device)
        made.append((kind(params, 1e-3), []))
    for _ in range(200):
        for optimizer, times in made:
            begin = time.perf_counter()
            optimizer.step()
            if device != "cpu":
                torch.cuda.synchronize(device)
            times.append(1e6 * (time.perf_counter() - begin))
    ours, theirs = (statistics.median(times) for _, times in made)
    return {"ours": ours, "theirs": theirs}
