"""What a step does beside taking time: launches, memory for the moment; and on which machine."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

# Its profiler would print that it starts and stops; asked when it is used for the first time.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch
from torch.profiler import ProfilerActivity, profile

import grokfused
from grokfused.lab.bench.timing import Step

SECOND = "the step that is looked at"


class Probe(NamedTuple):
    """What one step starts, and the memory it takes for the moment.

    ``launches``: on a GPU the kernels, copies and fills; on a CPU the operators called, those inside of
    others included, as torch's profiler sees them (a graph of torch.compile is one), and the native kernel,
    which it does not see. ``peak_extra_bytes``: how far the memory that torch allocates rises above what it
    was.
    """

    launches: int
    peak_extra_bytes: int


def probe(step: Step, device: str) -> Probe:
    """Looks at one step."""
    return _probe_gpu(step) if device == "cuda" else _probe_cpu(step)


def _probe_gpu(step: Step) -> Probe:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        step()
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    launches = sum(event.device_type == on_gpu for event in recorded.events())
    return Probe(launches, torch.cuda.max_memory_allocated() - before)


def _probe_cpu(step: Step) -> Probe:
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=True, acc_events=True) as recorded:
        # Two steps: of memory that is freed in the first one the profiler knows no size.
        step()
        with torch.profiler.record_function(SECOND):
            step()
    return _second_step(recorded)


def _second_step(recorded: profile) -> Probe:
    """Returns what the profiler saw in the second of two steps."""
    events = recorded.events()
    span = next(event.time_range for event in events if event.name == SECOND)
    launches = sum(
        ("::" in event.name or "CompiledFxGraph" in event.name)
        and span.start <= event.time_range.start <= span.end
        for event in events
    )
    raw: Any = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    begin = next(event.start_ns() for event in raw if event.name() == SECOND)
    changes = sorted((event.start_ns(), event.nbytes()) for event in raw if event.name() == "[memory]")
    level = peak = 0
    for at, change in changes:
        if at >= begin:
            level += change
            peak = max(peak, level)
    return Probe(launches, peak)


class Others:
    """How much of the processors other processes take while a block runs: they make times worthless.

    ``share`` is of all processors together, after the block.
    """

    share = 0.0

    def __enter__(self) -> Others:
        self.begin = self._seconds()
        return self

    def __exit__(self, *raised: object) -> None:
        total, busy, own = (end - begin for end, begin in zip(self._seconds(), self.begin, strict=True))
        self.share = max(0.0, (busy - own) / total) if total else 0.0

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """Returns the seconds of all processors together, those that were not idle, and ours."""
        ticks = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        idle = sum(ticks[3:5])  # and waiting for a disk
        per_second = os.sysconf("SC_CLK_TCK")
        return sum(ticks) / per_second, (sum(ticks) - idle) / per_second, time.process_time()


def cpu_name() -> str:
    """Returns what the system calls its processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":")[1].strip() for line in lines if "model name" in line)
    return next(names, platform.processor())


def commit() -> str:
    """Returns the commit of the code that was measured, or that it is an installed package of none."""
    folder = Path(grokfused.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # another project's checkout may lie around it
        changed = git("status", "--porcelain", "-uno")
        return git("rev-parse", "--short", "HEAD") + (" and uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "none (installed)"


def machine(command: str, device: str = "cpu") -> dict[str, Any]:
    """Says where and with what a run of ``command`` was recorded."""
    facts = {
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "grokfused": grokfused.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }
    return {**facts, **gpu()} if device == "cuda" else facts


def gpu() -> dict[str, Any]:
    """Says on which GPU a run was recorded."""
    facts = torch.cuda.get_device_properties(0)
    return {
        "gpu": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory_gib": round(facts.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }
