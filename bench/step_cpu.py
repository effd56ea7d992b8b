"""Measures one optimizer step on the CPU against the machine's copy bandwidth and against other ways.

Run it as ``python -m bench.step_cpu``; it prints a table and writes every row as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.cases import CASES, Shapes
from bench.contenders import contenders
from bench.measure import Spread, interleaved, machine, ratios, spread

OURS = "GrokAdamW"
FUSED = "AdamW(fused)"
# case -> rounds and calls per round, so that a timing lasts some milliseconds and a case under a minute
ROUNDS = {"gpt-30m": (41, 1), "demo": (401, 12), "1000 x 1024": (101, 1)}


def measure(name: str, shapes: Shapes, rounds: int, block: int) -> list[dict[str, Any]]:
    """Returns one row per contender; ratios are how many times as long the baseline takes."""
    entries, between = contenders(shapes)
    times = interleaved({entry.name: entry.step for entry in entries}, rounds, block, between)
    count = sum(torch.Size(shape).numel() for shape in shapes)
    copied = 2 * torch.float32.itemsize
    rows = []
    for entry in entries:
        # (bytes of ours / time of ours) / (bytes of the copy / time of the copy), round by round
        share = ratios(times["copy_"], times[entry.name])
        factor = entry.bytes_per_element / copied
        rows.append(
            {
                "case": name,
                "tensors": len(shapes),
                "elements": count,
                "contender": entry.name,
                "rounds": rounds,
                "milliseconds": spread(times[entry.name])._asdict(),
                "bytes_per_element": entry.bytes_per_element,
                "gigabytes_per_second": count
                * entry.bytes_per_element
                / spread(times[entry.name]).median
                / 1e6,
                "share_of_copy": Spread(*(factor * value for value in share))._asdict(),
                "times_longer_than": {
                    OURS: ratios(times[entry.name], times[OURS])._asdict(),
                    FUSED: ratios(times[entry.name], times[FUSED])._asdict(),
                },
            }
        )
    return rows


def promises(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what is promised of a step, beside what this run measured."""
    found = {(row["case"], row["contender"]): row for row in rows}

    def longer(case: str, contender: str, than: str) -> float:
        return float(found[case, contender]["times_longer_than"][than]["median"])

    figures = [
        (
            "gpt-30m: share of the copy bandwidth",
            found["gpt-30m", OURS]["share_of_copy"]["median"],
            ">=",
            0.90,
        ),
        (
            "gpt-30m: foreach EMA + AdamW(fused) takes",
            longer("gpt-30m", "foreach EMA + AdamW(fused)", OURS),
            ">=",
            1.35,
        ),
        (
            "gpt-30m: Python Grokfast + AdamW(fused) takes",
            longer("gpt-30m", "Python Grokfast + AdamW(fused)", OURS),
            ">=",
            3.5,
        ),
        ("demo: of AdamW(fused)", longer("demo", OURS, FUSED), "<=", 0.60),
        ("1000 x 1024: of AdamW(fused)", longer("1000 x 1024", OURS, FUSED), "<=", 0.35),
        (
            "gpt-30m: bfloat16 states, of AdamW(fused)",
            longer("gpt-30m", "GrokAdamW, bfloat16 states", FUSED),
            "<=",
            1.0,
        ),
    ]
    return [
        {
            "what": what,
            "measured": got,
            "promise": f"{sign} {bound}",
            "kept": got >= bound if sign == ">=" else got <= bound,
        }
        for what, got, sign, bound in figures
    ]


def shown(rows: list[dict[str, Any]]) -> Table:
    """Returns the rows as a table; spreads are quartiles."""
    table = Table(title="one step on the CPU")
    for column in (
        "case",
        "contender",
        "ms",
        "quartiles",
        "B/element",
        "GB/s",
        "of copy_",
        "/ GrokAdamW",
        "/ AdamW(fused)",
    ):
        table.add_column(column, justify="left" if column in ("case", "contender") else "right")
    for row in rows:
        ms = row["milliseconds"]
        longer = row["times_longer_than"]
        table.add_row(
            row["case"],
            row["contender"],
            f"{ms['median']:.3f}",
            f"{ms['low']:.3f}-{ms['high']:.3f}",
            str(row["bytes_per_element"]),
            f"{row['gigabytes_per_second']:.1f}",
            f"{row['share_of_copy']['median']:.2f}",
            f"{longer[OURS]['median']:.2f}",
            f"{longer[FUSED]['median']:.2f}",
            end_section=row["contender"] == "copy_",
        )
    return table


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench/results/step_cpu.json"))
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of one call: checks, measures nothing"
    )
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, shapes in CASES.items():
        rounds, block = (2, 1) if options.quick else ROUNDS[name]
        rows += measure(name, shapes, rounds, block)
    kept = promises(rows)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({"machine": machine(), "rows": rows, "promises": kept}, indent=1) + "\n"
    )
    console = Console(width=140)
    console.print(shown(rows))
    for promise in kept:
        mark = "[green]kept[/green]" if promise["kept"] else "[red]missed[/red]"
        console.print(
            f"{mark} {promise['what']}: {promise['measured']:.2f} (promised {promise['promise']})",
            highlight=False,
        )
    console.print(f"recorded in {options.json}")


if __name__ == "__main__":
    main()
