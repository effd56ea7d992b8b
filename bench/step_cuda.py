"""Measures one optimizer step on an NVIDIA GPU: its time there, the host's time, and its launches.

Run it as ``python -m bench.step_cuda``; it prints a table and writes every row as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

import grokfused
from bench import fma
from bench.cases import CUDA_CASES, Shapes
from bench.contenders import BF16, Contender, Place, baselines, contender
from bench.measure import gpu_timed, host_timed, interleaved, machine, spread
from bench.step import FUSED, OURS, Promise, Rows, rows, show_promises, shown

# case -> rounds, and calls per round whose GPU time is taken
ROUNDS = {"one of 64 M": (31, 4), "32 x 2048 x 2048": (31, 4), "gpt-2 small": (31, 4), "5000 x 1000": (11, 2)}
SMALL = (51, 10)
HOST_BLOCK = 3  # calls whose host time is taken: few, so that no queue of launches is ever full
DEVICE = "cuda"


def contenders(shapes: Shapes, dtype: torch.dtype) -> list[Contender]:
    """Returns who is measured on these shapes and this dtype of parameters."""
    place = Place(DEVICE, dtype)
    mirror = "GrokAdamW, Triton"
    runs = DEVICE in grokfused.info()["backends"]["triton"]["available"]
    return [
        *([contender(mirror, shapes, place, backend="triton")] if runs else []),
        contender(OURS, shapes, place),
        contender("GrokAdamW, capturable", shapes, place, capturable=True),
        contender("GrokAdamW, bfloat16 states", shapes, place, state_dtype=BF16),
        *baselines(shapes, place),
    ]


def launches(entry: Contender) -> int:
    """Returns how many kernels, copies and fills of memory one step starts on the GPU."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        entry.step()
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == on_gpu for event in recorded.events())


def measure(case: str, shapes: Shapes, dtype: torch.dtype, quick: bool) -> Rows:
    """Returns one row per contender: GPU time, host time, launches."""
    rounds, block = (2, 1) if quick else ROUNDS.get(case, SMALL)
    entries = contenders(shapes, dtype)
    on_gpu = interleaved(entries, rounds, block, gpu_timed)
    on_host = interleaved(entries, rounds, HOST_BLOCK, host_timed)
    found = rows(case, shapes, entries, on_gpu, "milliseconds")
    for row, entry in zip(found, entries, strict=True):
        row["host_milliseconds"] = spread(on_host[entry.name])._asdict()
        row["launches"] = launches(entry)
        row["dtype"] = str(dtype).removeprefix("torch.")
    return found


def promises(found: Rows) -> list[dict[str, Any]]:
    """Returns what is promised of a step on a GPU, beside what this run measured."""
    by_name = {(row["dtype"], row["case"], row["contender"]): row for row in found}

    def row(case: str, name: str = OURS, dtype: str = "float32") -> dict[str, Any]:
        return by_name[dtype, case, name]

    def share(case: str, dtype: str = "float32") -> float:
        return float(row(case, dtype=dtype)["share_of_copy"]["median"])

    big, many = ("one of 64 M", "32 x 2048 x 2048"), ("gpt-2 small", "5000 x 1000")
    made = [Promise(f"{case}: share of the copy bandwidth", share(case), ">=", 0.92) for case in big]
    made += [
        Promise(f"{case}, bfloat16 parameters: share of it", share(case, "bfloat16"), ">=", 0.88)
        for case in big
    ]
    for case in many:
        ours, fused = row(case), row(case, FUSED)
        bandwidth = ours["gigabytes_per_second"] / fused["gigabytes_per_second"]
        host = ours["host_milliseconds"]["median"] / fused["host_milliseconds"]["median"]
        made.append(Promise(f"{case}: bytes per GPU time, of AdamW(fused)'s", bandwidth, ">=", 1.0))
        made.append(Promise(f"{case}: host time, of AdamW(fused)'s", host, "<=", 0.6))
        made.append(Promise(f"{case}: launches", ours["launches"], "<=", 1))
    for name, bound in (("foreach EMA + AdamW(fused)", 1.35), ("Python Grokfast + AdamW(fused)", 2.0)):
        longer = float(row("gpt-2 small", name)["times_longer_than"][OURS]["median"])
        made.append(Promise(f"gpt-2 small: {name} takes", longer, ">=", bound))
    return [promise.record() for promise in made]


def gpu() -> dict[str, Any]:
    """Says which GPU a run was recorded on."""
    facts = torch.cuda.get_device_properties(0)
    return {
        "gpu": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory_gib": round(facts.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }


def main() -> int:
    """Measures, prints and records; returns 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench/results/step_cuda.json"))
    parser.add_argument("--quick", action="store_true", help="few rounds: checks, measures nothing")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.step_cuda: torch finds no NVIDIA GPU here; nothing was measured", file=sys.stderr)
        return 2
    found: Rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for name, shapes in CUDA_CASES.items():
            found += measure(name, shapes, dtype, options.quick)
            torch.cuda.empty_cache()
    kept = promises(found)
    record = {"machine": {**machine("bench.step_cuda"), **gpu()}, "rows": found, "promises": kept}
    record["fma"] = fma.cost()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1) + "\n")
    console = Console(width=160)
    console.print(shown(found, "one step on the GPU"))
    show_promises(console, kept)
    console.print(f"what the contract costs: {record['fma']}", highlight=False)
    console.print(f"recorded in {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
