"""Steps one commit's optimizer for ``bench.guard``: a line of JSON asks, a line of JSON answers.

It runs with that commit's folder in front of the path, so it may use of grokfused only what every commit has.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

import torch

import grokfused


def made(case: dict[str, Any]) -> Any:
    """Returns the optimizer of a case, warm."""
    random = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=random).requires_grad_() for shape in case["shapes"]]
    for param in params:
        param.grad = torch.randn(param.shape, generator=random)
    optimizer = grokfused.GrokAdamW(params, **case["options"])
    if case["density"] is not None:
        shapes = [
            p.shape if case["layout"] == "unstructured" else (*p.shape[:1], *[1] * (p.dim() - 1))
            for p in params
        ]
        masks = [torch.rand(shape, generator=random) < case["density"] for shape in shapes]
        optimizer.set_masks({p: mask.expand(p.shape) for p, mask in zip(params, masks, strict=True)})
    for _ in range(3):
        optimizer.step()
    return optimizer


def timed(optimizer: Any, calls: int) -> float:
    """Returns seconds per step, after one that warms the caches again."""
    optimizer.step()
    gc.collect(0)
    gc.disable()
    begin = time.perf_counter()
    for _ in range(calls):
        optimizer.step()
    passed = time.perf_counter() - begin
    gc.enable()
    return passed / calls


def main() -> None:
    """Answers until the input ends."""
    optimizer = None
    print(json.dumps(grokfused.__file__), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "case" in asked:
                optimizer = None  # first frees the last one's memory
                optimizer = made(asked["case"])
            answer: Any = timed(optimizer, asked["calls"])
        except Exception as error:  # an older commit may lack an option; whatever it is, it is shown
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
