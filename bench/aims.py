"""What is promised of a step, beside what a recorded run measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from grokfused.lab.bench.implementations import (
    CLIP_FIRST,
    CLIPPING,
    EIGHT_BITS,
    FOREACH_EMA,
    FUSED,
    MASKED_FUSED,
    NARROW,
    NARROWEST,
    OURS,
    PYTHON_EMA,
)
from grokfused.lab.bench.rows import Row
from grokfused.lab.bench.show import share_of
from grokfused.lab.bench.windows import MEAN


class Aim(NamedTuple):
    """A figure of a run, and its bound."""

    what: str
    measured: float
    sign: str
    bound: float

    @property
    def kept(self) -> bool:
        """Whether this run kept it."""
        return self.measured >= self.bound if self.sign == ">=" else self.measured <= self.bound

    def record(self) -> dict[str, Any]:
        """Returns the aim beside what was measured."""
        return {**self._asdict(), "kept": self.kept}


class Found:
    """The rows of one set of a run; one without figures has NaN, which keeps no aim."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {(r["dtype"], r["case"], r["implementation"]): r for r in rows}

    def figure(
        self, of: Callable[[Row], float], case: str, name: str = OURS, dtype: str = "float32"
    ) -> float:
        """Returns one figure of a row."""
        row = self.rows.get((dtype, case, name), {"why_not": "it was not measured"})
        return math.nan if "why_not" in row else of(row)

    def share(self, case: str, name: str = OURS, dtype: str = "float32") -> float:
        """Returns the share of its device's limit that an implementation reaches."""

        def median(row: Row) -> float:
            share = share_of(row)
            return share["median"] if share else math.nan

        return self.figure(median, case, name, dtype)

    def longer(self, case: str, name: str, than: str) -> float:
        """Returns how many times as long as ``than`` an implementation takes."""

        def ratio(row: Row) -> float:
            base = row["times_longer_than"].get(than)
            return float(base["median"]) if base else math.nan

        return self.figure(ratio, case, name)


def of_steps(found: Found) -> list[Aim]:
    """Returns what is promised of a step on the CPU."""
    big = "gpt-30m"
    return [
        Aim(f"{big}: share of the limit", found.share(big), ">=", 0.92),
        Aim(f"{big}: bfloat16 states, share of the limit", found.share(big, NARROW), ">=", 0.92),
        Aim(
            f"{big}: bfloat16 parameters and states, share of the limit",
            found.share(big, NARROWEST),
            ">=",
            0.85,
        ),
        Aim(f"{big}: {FOREACH_EMA} takes", found.longer(big, FOREACH_EMA, OURS), ">=", 1.35),
        Aim(f"{big}: {PYTHON_EMA} takes", found.longer(big, PYTHON_EMA, OURS), ">=", 3.5),
        Aim(f"demo: of {FUSED}", found.longer("demo", OURS, FUSED), "<=", 0.50),
        Aim(f"1000 x 1024: of {FUSED}", found.longer("1000 x 1024", OURS, FUSED), "<=", 0.27),
        Aim(f"{big}: bfloat16 states, of {FUSED}", found.longer(big, NARROW, FUSED), "<=", 1.0),
    ]


def of_masks(found: Found) -> list[Aim]:
    """Returns what is promised of a step under masks on the CPU."""

    def longer(name: str) -> float:
        return found.longer("gpt-30m", name, OURS)

    usual, tenth = longer(MASKED_FUSED), longer("unstructured, 10% kept")
    return [
        Aim("the usual way takes, of ours without a mask", usual, ">=", 1.8),
        Aim("the usual way takes, of ours with 10% kept at random", usual / tenth, ">=", 1.8),
        Aim("a mask of True costs", longer("unstructured, 100% kept"), "<=", 1.04),
        Aim("10% kept at random costs", tenth, "<=", 1.0),
        Aim("10% of whole rows kept costs", longer("whole rows, 10% kept"), "<=", 0.25),
    ]


def of_clipping(found: Found) -> list[Aim]:
    """Returns what is promised of clipping in the step's pass on the CPU; it moves 40 bytes instead of 36."""
    by_bytes = found.longer("gpt-30m", CLIPPING, OURS) / (40 / 36)
    aims = [Aim(f"gpt-30m: {CLIPPING} takes, of what its bytes would", by_bytes, "<=", 1.1)]
    for case in ("gpt-30m", "demo"):
        before = found.longer(case, CLIP_FIRST, OURS) / found.longer(case, CLIPPING, OURS)
        aims.append(Aim(f"{case}: {CLIP_FIRST} takes, of {CLIPPING}", before, ">=", 1.0))
    return aims


def of_eight_bits(found: Found) -> list[Aim]:
    """Returns what is promised of states of 8 bits on the CPU."""
    return [Aim(f"gpt-30m: 8-bit states, of {FUSED}", found.longer("gpt-30m", EIGHT_BITS, FUSED), "<=", 1.0)]


def on_a_gpu(found: Found) -> list[Aim]:
    """Returns what is promised of a step on a GPU."""
    big, many = ("one of 64 M", "32 x 2048 x 2048"), ("gpt-2 small", "5000 x 1000")
    aims = []
    for dtype, bound in (("float32", 0.92), ("bfloat16", 0.88)):
        for case in big:
            share = found.share(case, dtype=dtype)
            aims.append(Aim(f"{case}, {dtype}: share of the copy bandwidth", share, ">=", bound))
    for case in many:

        def of_fused(key: Callable[[Row], float], case: str = case) -> float:
            return found.figure(key, case) / found.figure(key, case, FUSED)

        bandwidth = of_fused(lambda row: float(row["gigabytes_per_second"]))
        host = of_fused(lambda row: float(row["host_milliseconds"]["median"]))
        launches = found.figure(lambda row: float(row["launches"]), case)
        aims.append(Aim(f"{case}: bytes per GPU time, of {FUSED}'s", bandwidth, ">=", 1.0))
        aims.append(Aim(f"{case}: host time, of {FUSED}'s", host, "<=", 0.6))
        aims.append(Aim(f"{case}: launches", launches, "<=", 1))
    for name, bound in ((FOREACH_EMA, 1.35), (PYTHON_EMA, 2.0)):
        longer = found.longer("gpt-2 small", name, OURS)
        aims.append(Aim(f"gpt-2 small: {name} takes", longer, ">=", bound))
    return aims


def of_windows(found: Found) -> list[Aim]:
    """Returns what is promised of the mean of a window on the CPU; one of 1,000 fits small models only."""
    cases = {"gpt-30m": (10, 100), "4 x 1 M": (10, 100, 1000)}
    means = [(case, MEAN.format(window)) for case, windows in cases.items() for window in windows]
    return [Aim(f"{case}: {name} takes", found.longer(case, name, OURS), "<=", 1.5) for case, name in means]


AIMS = {
    "steps": of_steps,
    "masks": of_masks,
    "clipping": of_clipping,
    "8-bit": of_eight_bits,
    "windows": of_windows,
    "gpu": on_a_gpu,
}


def of_set(name: str, rows: Sequence[Row]) -> list[Aim]:
    """Returns what is promised of the rows of one set."""
    return AIMS[name](Found(rows)) if name in AIMS else []


def of_run(machine: Mapping[str, Any], name: str, rows: Sequence[Row]) -> list[Aim]:
    """Returns what is promised of a set in a recorded run on a CPU: with AVX-512, and nothing without."""
    return of_set(name, rows) if machine["capability"] == "AVX512" else []


def show(console: Console, aims: Sequence[Aim]) -> None:
    """Prints each aim and whether this run kept it."""
    for aim in aims:
        mark = "[green]kept[/green]" if aim.kept else "[red]missed[/red]"
        console.print(
            f"{mark} {aim.what}: {aim.measured:.2f} (aim {aim.sign} {aim.bound})",
            highlight=False,
            soft_wrap=True,
        )
