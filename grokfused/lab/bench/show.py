"""Rows as a table: on a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grokfused.lab.bench.implementations import COPY, FOREACH_EMA, FUSED, OURS
from grokfused.lab.bench.rows import Row

RATIOS = {"x ours": OURS, "x fused": FUSED, "x EMA": FOREACH_EMA}
COLUMNS = ("place", "implementation", "ms (quartiles)", "B/el", "GB/s", "of limit", *RATIOS)
COLUMNS += ("host ms", "launches", "extra MB")
WIDTH, FILE_WIDTH = 132, 200  # columns of a terminal that all of this needs; no name is broken in a file
DISTURBED = 0.05  # share of the processors that others take
ESSENTIAL = ("place", "implementation", "ms (quartiles)", "of limit", "x fused")  # in a narrower one
LEGEND = (
    "Medians. Implementations took turns, and ratios are taken within each round; a place is a range, and a "
    "ratio has a ~, where their quartiles do not tell two apart. B/el: bytes per element that the work must "
    "move at least; GB/s: those, over the time; of limit: the time in which as many threads read and write "
    "arrays of these bytes in place, without arithmetic, over that of the step in the same rounds (on a GPU, "
    f"the bandwidth, of that of {COPY}). x ours, x fused, x EMA: times as long as {OURS}, {FUSED} and "
    f"{FOREACH_EMA}. On a CPU, host ms is the time of all its processors, and launches are the operators "
    "called; on a GPU, how long the host is busy, and what it starts. Extra MB: memory that torch allocates "
    "for the time of the step."
)


def groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Returns the rows of each case, the fastest first, the copy and those that could not run last."""
    several = len({row.get("set") for row in rows}) > 1

    def order(row: Row) -> tuple[int, float]:
        if "why_not" in row:
            return 2, 0.0
        return (1 if row["rank"] is None else 0), row["milliseconds"]["median"]

    def title(row: Row) -> str:
        dtype = "" if row["dtype"] == "float32" else f", {row['dtype']}"
        case = f"{row['set']} · {row['case']}" if several else row["case"]  # of two sets, two tables
        return f"{case}{dtype}: {row['elements']:,} elements in {row['tensors']:,} tensors"

    return [(name, sorted(found, key=order)) for name, found in groupby(rows, title)]


def disturbed(rows: Sequence[Row]) -> list[str]:
    """Returns a line for each case that other processes disturbed."""
    worst: dict[str, float] = {}
    for row in rows:
        worst[row["case"]] = max(worst.get(row["case"], 0.0), row["others"])
    return [
        f"While {case} was measured, other processes took {share:.0%} of the processors: "
        "do not trust its times"
        for case, share in worst.items()
        if share > DISTURBED
    ]


def share_of(row: Row) -> dict[str, float] | None:
    """Returns a row's share of the limit of its device, with quartiles; None where it is not known."""
    share: dict[str, float] | None = row.get("share_of_copy" if row["device"] == "cuda" else "share_of_limit")
    return share


def no_limit(rows: Sequence[Row]) -> list[str]:
    """Returns a line for each reason why rows have no share of the limit."""
    reasons = dict.fromkeys(row["why_no_limit"] for row in rows if "why_no_limit" in row)
    return [f"The limit could not be measured: {reason}" for reason in reasons]


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _ratio(row: Row, base: str) -> str:
    ratio = row["times_longer_than"].get(base)
    if ratio is None:
        return "-"
    unsure = "~" if ratio["low"] < 1 < ratio["high"] else ""
    return f"{unsure}{ratio['median']:.2f}"


def cells(row: Row) -> list[str]:
    """Returns a row's cells; of one that could not run the second one says why."""
    if "why_not" in row:
        return ["-", f"{row['implementation']}: {row['why_not']}"]
    first, last = row["rank"] or (0, 0)
    ms, share = row["milliseconds"], share_of(row)
    return [
        "-" if not first else str(first) if first == last else f"{first}-{last}",
        row["implementation"],
        f"{_number(ms['median'])} ({_number(ms['low'])}-{_number(ms['high'])})",
        f"{row['bytes_per_element']:g}",
        _number(row["gigabytes_per_second"]),
        f"{share['median']:.2f}" if share else "-",
        *(_ratio(row, base) for base in RATIOS.values()),
        _number(row["host_milliseconds"]["median"]),
        str(row["launches"]),
        f"{row['peak_extra_bytes'] / 1e6:.2f}",
    ]


def table(title: str, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> Table:
    """Returns the rows of one case for a terminal."""
    # As text: what a peer raises may look like markup.
    shown = Table(title=Text(title), title_justify="left", box=SIMPLE)
    for column in columns:
        name = column == "implementation"
        shown.add_column(column, justify="left" if name else "right", no_wrap=not name)
    for row in rows:
        every = dict(zip(COLUMNS, cells(row), strict=False))
        own = (Text(every.get(column, "")) for column in columns)
        shown.add_row(*own, style="dim" if "why_not" in row else "")
    return shown


def print_table(console: Console, title: str, rows: Sequence[Row]) -> None:
    """Prints the rows of one case; on a narrow terminal the essential columns only."""
    if not console.is_terminal:  # a file has no width
        console = Console(file=console.file, width=FILE_WIDTH)
        console.print(table(title, rows))
    elif console.width >= WIDTH:
        console.print(table(title, rows))
    else:
        console.print(table(title, rows, ESSENTIAL))
        hint = f"the other columns need a terminal of {WIDTH} columns, --markdown or --json"
        console.print(hint, style="dim", highlight=False)
    for line in (*no_limit(rows), *disturbed(rows)):
        console.print(line, style="red", highlight=False, markup=False)


def where(machine: dict[str, Any]) -> str:
    """Says in one line what a run was recorded on."""
    device = f"{machine['gpu']}, " if "gpu" in machine else ""
    return (
        f"`{machine['command']}` on {device}{machine['cpu']} ({machine['capability']}, {machine['threads']} "
        f"threads), torch {machine['torch']}, commit {machine['commit']}, {machine['date'][:10]}."
    )


def markdown(rows: Sequence[Row]) -> str:
    """Returns the rows as one Markdown table, with the case of each."""
    header = ["case", *COLUMNS]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for title, found in groups(rows):
        case = title.partition(":")[0]
        for row in found:
            own = [case, *cells(row)]
            own += [""] * (len(header) - len(own))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in own) + " |")
    for line in (*no_limit(rows), *disturbed(rows)):
        lines += ["", line]
    return "\n".join(lines) + "\n"
