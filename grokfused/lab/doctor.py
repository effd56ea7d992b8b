"""The command ``grokfused doctor``: whether a step is fast on this machine, and if not, why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import grokfused
from grokfused.lab.bench.cases import CASES
from grokfused.lab.bench.implementations import FUSED, IMPLEMENTATIONS, OURS, Place
from grokfused.lab.bench.probes import Others, cpu_name
from grokfused.lab.bench.rows import CannotRun, ready, timed
from grokfused.lab.bench.timing import CLOCKS, Turns, ratios, spread
from grokfused.lab.terminal import say

CASE = "gpt-30m"  # large enough that memory decides, as in the models one trains
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
DISTURBED = 0.1  # share of the processors that others take


def backend_lines(facts: dict[str, Any]) -> Iterator[str]:
    """Yields what steps parameters on each device; where that is the reference, why."""
    for device, name in facts["auto"].items():
        if name != "reference":
            yield f"{device}: the {name} backend steps parameters"
            continue
        yield f"{device}: only the slow reference backend runs, because"
        for other, about in facts["backends"].items():
            if reason := about["why_not"].get(device):
                yield f"    {other}: {reason}"


def processor_lines() -> Iterator[str]:
    """Yields what the CPU has, and what is left unused."""
    threads, processors = torch.get_num_threads(), len(os.sched_getaffinity(0))
    yield f"processor: {cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"
    yield f"threads: {threads}, on {processors} processors"
    if threads < processors:
        yield f"    torch.set_num_threads({processors}), or OMP_NUM_THREADS={processors}, uses all of them"
    if HUGE_PAGES.exists():
        setting = HUGE_PAGES.read_text().partition("[")[2].partition("]")[0]
        yield f"huge pages: {setting}"
        if setting == "madvise":
            yield "    THP_MEM_ALLOC_ENABLE=1 has torch ask for them: try it where tensors are large"


def beside_fused(device: str, seconds: float) -> str:
    """Measures a step in turns with AdamW(fused=True), and says what came out."""
    place = Place(device)
    try:
        contenders = {name: ready(IMPLEMENTATIONS[name], CASES[CASE], place) for name in (OURS, FUSED)}
    except CannotRun as error:
        return f"{device}: not measured, {error}"
    with Others() as others:
        times = timed(contenders, CLOCKS[device][0], Turns(seconds))
    ratio, own = ratios(times[OURS], times[FUSED]), spread(times[OURS])
    count = sum(torch.Size(shape).numel() for shape in CASES[CASE]) / 1e6
    said = (
        f"{device}: a step of GrokAdamW takes {ratio.median:.2f} of AdamW(fused=True) ({ratio.low:.2f} to "
        f"{ratio.high:.2f}), {own.median:.3g} ms for {count:.1f} million float32 parameters"
    )
    if others.share > DISTURBED:
        said += (
            f"\n    other processes took {others.share:.0%} of the processors: measure again when it is quiet"
        )
    return said


def doctor(
    seconds: Annotated[float, typer.Option(min=0.0, help="Of measurement, on each device.")] = 2.0,
) -> None:
    """Says whether a step is fast on this machine: backends, threads, huge pages, and a measurement."""
    facts = grokfused.info()
    say(f"grokfused {facts['version']}, torch {facts['torch']}, Python {facts['python']}")
    for line in (*backend_lines(facts), *processor_lines()):
        say(line)
    slow = [device for device, name in facts["auto"].items() if name == "reference"]
    for device in facts["auto"]:
        kind = torch.device(device).type
        if device not in slow and (device == kind or device == f"{kind}:0"):
            say(beside_fused(kind, seconds))
    if slow:
        say(f"Not on {' and '.join(slow)}: see the reasons above.")
        raise typer.Exit(1)
    say("Yes: compiled code steps parameters on every device there is. `grokfused verify` compares its bits.")
