"""Measures the step with clipping on the CPU: in the step's own pass, and by torch before it.

Run it as ``python -m bench.clipping_cpu``; it prints every row and writes them as JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases import CPU_CASES, Shapes, bytes_per_element
from bench.contenders import ALPHA, F32, LAMB, Contender, copy, fused_adamw, parameters, restoring_grads
from bench.contenders import contender as ours
from bench.measure import interleaved, ratios
from bench.step import FUSED, OURS, Promise, Rows, record, rows
from grokfused import GrokAdamW

ROUNDS = {"gpt-30m": (81, 1), "demo": (201, 10)}  # case -> rounds, calls per timing
MAX_NORM = 1.0  # the gradients' is in the hundreds or more: every step clips
IN_THE_PASS, BEFORE, BEFORE_FUSED = f"{OURS}(max_grad_norm)", f"clip + {OURS}", f"clip + {FUSED}"


def clipped_before(params: list[Tensor], step: Callable[[], object]) -> Callable[[], object]:
    """Returns torch's clipping, which reads the gradients to measure and again to scale them, and a step."""

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        step()

    return clip_and_step


def contenders(shapes: Shapes) -> list[Contender]:
    """Returns who is measured; the norm reads a gradient, torch's scaling reads and writes it."""
    grokfast, adamw = parameters(shapes), parameters(shapes)
    step = GrokAdamW(grokfast, alpha=ALPHA, lamb=LAMB).step
    filtered, plain = (bytes_per_element(F32, F32, states) for states in (3, 2))
    read, scaled = F32.itemsize, 2 * F32.itemsize
    in_the_pass = ours(IN_THE_PASS, shapes, max_grad_norm=MAX_NORM)
    return [
        ours(OURS, shapes),
        in_the_pass._replace(bytes_per_element=filtered + read),
        Contender(
            BEFORE, clipped_before(grokfast, step), filtered + read + scaled, restoring_grads(grokfast)
        ),
        Contender(FUSED, fused_adamw(parameters(shapes)).step, plain),
        Contender(
            BEFORE_FUSED,
            clipped_before(adamw, fused_adamw(adamw).step),
            plain + read + scaled,
            restoring_grads(adamw),
        ),
        Contender("copy_", copy(shapes), 2 * F32.itemsize),
    ]


def promise(case: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """Returns what is promised of clipping in the pass, beside what this run measured."""
    ratio = ratios(times[BEFORE], times[IN_THE_PASS]).median
    return Promise(f"{case}: {BEFORE} takes, of {IN_THE_PASS}", ratio, ">=", 1.0).record()


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench/results/clipping_cpu.json"))
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of one call: checks, measures nothing"
    )
    options = parser.parse_args()
    found: Rows = []
    promises = []
    for case, (rounds, block) in ROUNDS.items():
        entries = contenders(CPU_CASES[case])
        times = interleaved(entries, *((2, 1) if options.quick else (rounds, block)))
        found += rows(case, CPU_CASES[case], entries, times, "milliseconds")
        promises.append(promise(case, times))
    record(found, promises, "bench.clipping_cpu", options.json, "one step with clipping on the CPU")


if __name__ == "__main__":
    main()
