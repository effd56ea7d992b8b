"""One optimizer step, measured: what every device's bench shares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from bench.cases import Shapes
from bench.contenders import Contender
from bench.measure import Spread, machine, ratios, spread

OURS = "GrokAdamW"
FUSED = "AdamW(fused)"
Rows = list[dict[str, Any]]


def rows(
    case: str, shapes: Shapes, entries: Sequence[Contender], times: dict[str, list[float]], key: str
) -> Rows:
    """Returns one row per contender; ratios are how many times as long the baseline takes.

    Args:
        case: The name of the case.
        shapes: Of its tensors.
        entries: Whom the times are of.
        times: Name -> milliseconds, one entry per round.
        key: What kind of time it is: the row's entry for it.
    """
    count = sum(torch.Size(shape).numel() for shape in shapes)
    copied = 2 * torch.float32.itemsize
    found = []
    for entry in entries:
        # (bytes of ours / time of ours) / (bytes of the copy / time of the copy), round by round
        share = ratios(times["copy_"], times[entry.name])
        factor = entry.bytes_per_element / copied
        median = spread(times[entry.name]).median
        found.append(
            {
                "case": case,
                "tensors": len(shapes),
                "elements": count,
                "contender": entry.name,
                "rounds": len(times[entry.name]),
                key: spread(times[entry.name])._asdict(),
                "bytes_per_element": entry.bytes_per_element,
                "gigabytes_per_second": count * entry.bytes_per_element / median / 1e6,
                "share_of_copy": Spread(*(factor * value for value in share))._asdict(),
                "times_longer_than": {
                    name: ratios(times[entry.name], times[name])._asdict() for name in (OURS, FUSED)
                },
            }
        )
    return found


class Promise(NamedTuple):
    """What is promised of a step: a figure of a recorded run, and its bound."""

    what: str
    measured: float
    sign: str
    bound: float

    def record(self) -> dict[str, Any]:
        """Returns the promise beside what was measured."""
        kept = self.measured >= self.bound if self.sign == ">=" else self.measured <= self.bound
        return {
            "what": self.what,
            "measured": self.measured,
            "promise": f"{self.sign} {self.bound}",
            "kept": kept,
        }


def shown(found: Rows, title: str) -> Table:
    """Returns the rows as a table; spreads are quartiles."""
    table = Table(title=title)
    times = [key for key in ("milliseconds", "host_milliseconds") if key in found[0]]
    names = {"milliseconds": ("ms", "quartiles"), "host_milliseconds": ("host ms", "quartiles")}
    columns = ["case", "contender", *(name for key in times for name in names[key])]
    columns += ["B/element", "GB/s", "of copy_", f"/ {OURS}", f"/ {FUSED}"]
    for column in columns:
        table.add_column(column, justify="left" if column in ("case", "contender") else "right")
    for row in found:
        cells = [row["case"], row["contender"]]
        for key in times:
            cells += [f"{row[key]['median']:.3f}", f"{row[key]['low']:.3f}-{row[key]['high']:.3f}"]
        longer = row["times_longer_than"]
        cells += [str(row["bytes_per_element"]), f"{row['gigabytes_per_second']:.1f}"]
        cells += [f"{row['share_of_copy']['median']:.2f}"]
        cells += [f"{longer[name]['median']:.2f}" for name in (OURS, FUSED)]
        table.add_row(*cells, end_section=row["contender"] == "copy_")
    return table


def show_promises(console: Console, promises: Sequence[dict[str, Any]]) -> None:
    """Prints each promise and whether this run kept it."""
    for promise in promises:
        mark = "[green]kept[/green]" if promise["kept"] else "[red]missed[/red]"
        console.print(
            f"{mark} {promise['what']}: {promise['measured']:.2f} (promised {promise['promise']})",
            highlight=False,
        )


def longer(found: Rows, case: str, name: str, than: str) -> float:
    """Returns how many times as long as ``than`` a contender takes on a case."""
    row = next(row for row in found if (row["case"], row["contender"]) == (case, name))
    return float(row["times_longer_than"][than]["median"])


def record(found: Rows, promises: Sequence[dict[str, Any]], program: str, path: Path, title: str) -> None:
    """Writes a run as JSON, and prints it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {"machine": machine(program), "rows": found, "promises": promises}
    path.write_text(json.dumps(written, indent=1) + "\n")
    console = Console(width=140)
    console.print(shown(found, title))
    show_promises(console, promises)
    console.print(f"recorded in {path}")
