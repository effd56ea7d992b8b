"""Measures one optimizer step on the CPU against the machine's copy bandwidth and against other ways.

Run it as ``python -m bench.step_cpu``; it prints a table and writes every row as JSON.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.cases import CPU_CASES, Shapes
from bench.contenders import BF16, Contender, baselines, contender
from bench.measure import interleaved
from bench.step import FUSED, OURS, Promise, Rows, longer, record, rows

# case -> rounds and calls per round, so that a timing lasts some milliseconds and a case two minutes at most
ROUNDS = {"gpt-30m": (101, 1), "demo": (401, 12), "1000 x 1024": (101, 1)}


def contenders(shapes: Shapes) -> list[Contender]:
    """Returns who is measured on these shapes."""
    narrow = "GrokAdamW, bfloat16 states"
    return [
        contender(OURS, shapes, fused=True),
        contender(narrow, shapes, state_dtype=BF16),
        contender(f"{narrow}, nearest", shapes, state_dtype=BF16, state_rounding="nearest"),
        *baselines(shapes),
    ]


def promises(found: Rows) -> list[dict[str, Any]]:
    """Returns what is promised of a step, beside what this run measured."""
    share = next(
        float(row["share_of_copy"]["median"])
        for row in found
        if (row["case"], row["contender"]) == ("gpt-30m", OURS)
    )
    foreach, python = "foreach EMA + AdamW(fused)", "Python Grokfast + AdamW(fused)"
    narrow = longer(found, "gpt-30m", "GrokAdamW, bfloat16 states", FUSED)
    made = [
        Promise("gpt-30m: share of the copy bandwidth", share, ">=", 0.90),
        Promise(f"gpt-30m: {foreach} takes", longer(found, "gpt-30m", foreach, OURS), ">=", 1.35),
        Promise(f"gpt-30m: {python} takes", longer(found, "gpt-30m", python, OURS), ">=", 3.5),
        Promise("demo: of AdamW(fused)", longer(found, "demo", OURS, FUSED), "<=", 0.60),
        Promise("1000 x 1024: of AdamW(fused)", longer(found, "1000 x 1024", OURS, FUSED), "<=", 0.35),
        Promise("gpt-30m: bfloat16 states, of AdamW(fused)", narrow, "<=", 1.0),
    ]
    return [promise.record() for promise in made]


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench/results/step_cpu.json"))
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of one call: checks, measures nothing"
    )
    options = parser.parse_args()
    found: Rows = []
    for name, shapes in CPU_CASES.items():
        rounds, block = (2, 1) if options.quick else ROUNDS[name]
        entries = contenders(shapes)
        found += rows(name, shapes, entries, interleaved(entries, rounds, block), "milliseconds")
    record(found, promises(found), "bench.step_cpu", options.json, "one step on the CPU")


if __name__ == "__main__":
    main()
