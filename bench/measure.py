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
from bench.contenders import Contender

Clock = Callable[[Callable[[], object], int], float]


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
    contenders: Sequence[Contender], rounds: int, block: int, clock: Clock | None = None
) -> dict[str, list[float]]:
    """Times all contenders in every round, each round beginning with another one.

    Args:
        contenders: Whose steps to time; they are reset before each round, outside of the timings.
        rounds: How often each is timed.
        block: Calls per timing.
        clock: Times a block of calls, in milliseconds per call. (default: ``timed``)

    Returns:
        Name -> milliseconds per call, one entry a round.
    """
    for contender in contenders:
        contender.step()
        contender.step()
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        for contender in contenders:
            contender.reset()
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            times[contender.name].append((clock or timed)(contender.step, block))
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


def gpu_timed(step: Callable[[], object], block: int) -> float:
    """Returns the GPU's milliseconds per call over ``block`` calls, after one that warms up again."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    step()
    begin.record()
    for _ in range(block):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / block


def host_timed(step: Callable[[], object], block: int) -> float:
    """Returns the host's milliseconds per call: the GPU is idle before, and nobody waits for it."""
    torch.cuda.synchronize()
    passed = timed(step, block)
    torch.cuda.synchronize()
    return passed


def cpu_name() -> str:
    """Returns what the system calls its processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":")[1].strip() for line in lines if "model name" in line)
    return next(names, platform.processor())


def machine(program: str) -> dict[str, Any]:
    """Says where and with what a run of ``program`` was recorded."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "grokfused": grokfused.__version__,
        "commit": commit + (" and uncommitted changes" if changed else ""),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m", program, *sys.argv[1:]]),
    }
