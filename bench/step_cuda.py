"""Measures one optimizer step on an NVIDIA GPU: its time there, the host's time, and its launches.

Run it as ``python -m bench.step_cuda``; it prints a table and writes every row as JSON. The command
``grokfused bench --device cuda`` measures the same way; here are the cases that something is promised of, and
what the numerical contract costs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench import aims, fma
from grokfused.lab.bench import show
from grokfused.lab.bench.cases import CASES
from grokfused.lab.bench.implementations import COPY, FOREACH_EMA, FUSED, NARROW, OURS, PYTHON_EMA, Place
from grokfused.lab.bench.peers import ALL
from grokfused.lab.bench.probes import machine
from grokfused.lab.bench.rows import Row, measure
from grokfused.lab.bench.timing import Turns

DEVICE = "cuda"
NAMES = ("one of 64 M", "32 x 2048 x 2048", "gpt-2 small", "5000 x 1000", "demo")
CUDA_CASES = {name: CASES[name] for name in NAMES}
IMPLEMENTATIONS = ("GrokAdamW, backend=triton", OURS, "GrokAdamW, capturable", NARROW)
IMPLEMENTATIONS += (FUSED, FOREACH_EMA, PYTHON_EMA, COPY)
TURNS, QUICK = Turns(3.0, least=11, most=51), Turns(0.0, least=2)


def measured(turns: Turns) -> Iterator[list[Row]]:
    """Yields, for each dtype of the parameters and case, one row per implementation."""
    who = [ALL[name] for name in IMPLEMENTATIONS]
    for dtype in (torch.float32, torch.bfloat16):
        for name, shapes in CUDA_CASES.items():
            found = measure(name, shapes, who, Place(DEVICE, dtype), turns)
            yield [{"set": "gpu", **row} for row in found]
            torch.cuda.empty_cache()


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes what was measured so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(unfinished, path)


def main() -> int:
    """Measures, prints and records, each case when it is done; returns 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench/results/step_cuda.json"))
    parser.add_argument("--quick", action="store_true", help="few rounds: checks, measures nothing")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.step_cuda: torch finds no NVIDIA GPU here; nothing was measured", file=sys.stderr)
        return 2
    where = machine(" ".join(["python -m bench.step_cuda", *sys.argv[1:]]), DEVICE)
    record: dict[str, Any] = {"machine": where, "rows": []}
    console = Console(width=show.FILE_WIDTH)
    for rows in measured(QUICK if options.quick else TURNS):
        record["rows"] += rows
        write(options.json, record)
        for title, found in show.groups(rows):
            show.print_table(console, title, found)
    kept = aims.of_set("gpu", record["rows"])
    aims.show(console, kept)
    record["aims"] = [aim.record() for aim in kept]
    write(options.json, record)
    record["fma"] = fma.cost()
    console.print(f"what the contract costs: {record['fma']}", highlight=False)
    write(options.json, record)
    console.print(f"recorded in {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
