"""Measures the step under sparsity masks on the CPU: what they cost, what they save, and the usual way.

Run it as ``python -m bench.masks_cpu``; it prints the curve of time against density and writes every row as
JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases import Shapes, bytes_per_element, gpt_30m
from bench.contenders import (
    ALPHA,
    F32,
    LAMB,
    Contender,
    copy,
    foreach_masked,
    fused_adamw,
    parameters,
    restoring_grads,
)
from bench.contenders import contender as unmasked
from bench.measure import interleaved
from bench.step import OURS, Promise, Rows, longer, record, rows
from grokfused import GrokAdamW
from grokfused.mask import pack

CASE = "gpt-30m"
ROUNDS = 41
DENSITIES = (1.0, 0.5, 0.1, 0.01)
USUAL = "foreach EMA + grad * mask + AdamW(fused) + param * mask"


def unstructured(param: Tensor, density: float, random: torch.Generator) -> Tensor:
    """Every element by itself."""
    return torch.rand(param.shape, generator=random) < density


def whole_rows(param: Tensor, density: float, random: torch.Generator) -> Tensor:
    """Rows of a matrix; aligned runs of 32 of a vector."""
    count, length = (param.shape[0], param[0].numel()) if param.dim() > 1 else (param.numel() // 32, 32)
    kept = torch.rand(count, generator=random) < density
    return kept[:, None].expand(count, length).reshape(param.shape)


def masked_bytes(params: list[Tensor], masks: list[Tensor]) -> float:
    """Returns what a step must move per element: a word that keeps nothing costs its bit and its param."""
    kept = total = 0
    for param, mask in zip(params, masks, strict=True):
        words = pack(mask, param, "zero").words
        kept += int((words != 0).sum()) * 32
        total += words.numel() * 32
    return 1 / 8 + (kept * bytes_per_element(F32, F32, 3) + (total - kept) * F32.itemsize) / total


def contender(shapes: Shapes, kind: Callable[..., Tensor], density: float) -> Contender:
    """Returns a GrokAdamW of which every parameter has a mask in mode "zero"."""
    params, random = parameters(shapes), torch.Generator().manual_seed(1)
    masks = [kind(param, density, random) for param in params]
    optimizer = GrokAdamW(params, alpha=ALPHA, lamb=LAMB)
    optimizer.set_masks(dict(zip(params, masks, strict=True)))
    name = f"{kind.__name__.replace('_', ' ')}, {density:.0%} kept"
    return Contender(name, optimizer.step, round(masked_bytes(params, masks), 2))


def usual(shapes: Shapes) -> Contender:
    """Returns three passes with torch's own operations; its time does not depend on the density."""
    params, random = parameters(shapes), torch.Generator().manual_seed(1)
    masks = [unstructured(param, 0.1, random) for param in params]
    grokfast = bytes_per_element(F32, F32, 3)
    return Contender(USUAL, foreach_masked(params, masks), grokfast, restoring_grads(params))


def contenders(shapes: Shapes) -> list[Contender]:
    """Returns who is measured."""
    adamw = parameters(shapes)
    return [
        unmasked(OURS, shapes),
        *(contender(shapes, unstructured, density) for density in DENSITIES),
        *(contender(shapes, whole_rows, density) for density in DENSITIES[1:]),
        usual(shapes),
        Contender("AdamW(fused)", fused_adamw(adamw).step, bytes_per_element(F32, F32, 2)),
        Contender("copy_", copy(shapes), 2 * F32.itemsize),
    ]


def promises(found: Rows) -> list[dict[str, Any]]:
    """Returns what is promised of a step under masks, beside what this run measured."""
    ours, tenth = longer(found, CASE, USUAL, OURS), longer(found, CASE, "unstructured, 10% kept", OURS)
    made = [
        Promise("the usual way takes, of ours without a mask", ours, ">=", 1.8),
        Promise("the usual way takes, of ours with 10% kept at random", ours / tenth, ">=", 1.8),
        Promise("a mask of True costs", longer(found, CASE, "unstructured, 100% kept", OURS), "<=", 1.06),
        Promise("10% kept at random costs", tenth, "<=", 1.0),
    ]
    return [promise.record() for promise in made]


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench/results/masks_cpu.json"))
    parser.add_argument(
        "--quick", action="store_true", help="two rounds on a small list: checks, measures nothing"
    )
    options = parser.parse_args()
    shapes: Shapes = [(64, 64), (64,)] if options.quick else gpt_30m()
    entries = contenders(shapes)
    times = interleaved(entries, 2 if options.quick else ROUNDS, 1)
    found = rows(CASE, shapes, entries, times, "milliseconds")
    record(found, promises(found), "bench.masks_cpu", options.json, "one step under masks on the CPU")


if __name__ == "__main__":
    main()
