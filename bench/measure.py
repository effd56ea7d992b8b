"""How it is measured: contenders take turns round by round, and ratios are taken within a round."""

from __future__ import annotations

import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch

import grokfused


class Spread(NamedTuple):
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Returns median and quartiles of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Returns the spread of the ratios within each round, in which a drift of the machine cancels."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def interleaved(
    steps: dict[str, Callable[[], object]],
    rounds: int,
    block: int,
    between: Sequence[Callable[[], object]] = (),
) -> dict[str, list[float]]:
    """Times all contenders in every round, each round beginning with another one.

    Args:
        steps: Name -> what to time.
        rounds: How often each is timed.
        block: Calls per timing.
        between: Called before each round, outside of the timings.

    Returns:
        Name -> milliseconds per call, one entry a round.
    """
    for step in steps.values():
        step()
        step()
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for reset in between:
            reset()
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(timed(steps[name], block))
    return times


def timed(step: Callable[[], object], block: int) -> float:
    """Returns milliseconds per call over ``block`` calls, after one that warms the caches again."""
    step()
    gc.collect(0)
    gc.disable()
    begin = time.perf_counter_ns()
    for _ in range(block):
        step()
    passed = time.perf_counter_ns() - begin
    gc.enable()
    return passed / block / 1e6


def machine() -> dict[str, Any]:
    """Says where and with what a run was recorded."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "grokfused": grokfused.__version__,
        "commit": commit + (" and uncommitted changes" if changed else ""),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": "python -m " + " ".join(["bench.step_cpu", *sys.argv[1:]]),
    }
