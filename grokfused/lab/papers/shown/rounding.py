"""What the page of `rounding` shows."""

from __future__ import annotations

import statistics

from matplotlib.figure import Figure

from grokfused.lab.papers.cells import mean_of
from grokfused.lab.papers.frame import Page, Record, Verdict
from grokfused.lab.papers.pages import paired
from grokfused.lab.papers.rounding import ROWS

ROUNDINGS = ("nearest", "stochastic", "kahan")
COLUMNS = ("parameters", "bytes held", "bytes moved", "held-out loss", "above float32", "range")


def above(record: Record, row: str) -> list[float]:
    """Returns by how much the row's loss is above that of float32, seed by seed."""
    return paired(record, row, "float32", "loss")


def cells(record: Record) -> list[list[str]]:
    """Returns the table, row by row; bytes are per parameter."""
    found = []
    for name, row in ROWS.items():
        more = above(record, name)
        ends = [f"{statistics.mean(more):+.4f}", f"{min(more):+.4f} to {max(more):+.4f}"]
        bytes_ = [f"{size:.4g}" for size in (row.held_bytes, row.moved_bytes)]
        mean = f"{mean_of(record, name, 'loss'):.4f}"
        found.append([name, *bytes_, mean, *(ends if name != "float32" else ["", ""])])
    return found


def verdict(record: Record) -> Verdict:
    """Returns what the figures say, and what they do not."""
    nearest, stochastic, kahan = (above(record, f"bfloat16, {how}") for how in ROUNDINGS)
    lost, left = statistics.mean(nearest), [statistics.mean(more) for more in (stochastic, kahan)]
    kept = all(abs(value) < 0.05 * lost for value in left) and min(nearest) > 0
    ranges = {name: above(record, name) for name in list(ROWS)[1:]}
    equal = [name for name, more in ranges.items() if min(more) <= 0 <= max(more)]
    reading = [
        f"bfloat16 rounded to nearest ends {lost:+.4f} nats per byte from float32, mean of the seeds; "
        f"rounded stochastically {left[0]:+.4f}, with Kahan's compensation {left[1]:+.4f}.",
        f"Seeds disagree on which side of float32 these end: {'; '.join(equal) or 'none'}.",
        "What nearest loses depends on how small steps are beside parameters. This is one small model, one "
        "lr and few seeds: an order, no interval, and no statement about large models.",
    ]
    holds = "yes" if kept else "no" if lost <= 0 else "in part"
    return Verdict(holds, f"{lost:+.3f} nats nearest, {left[0]:+.3f} stochastic", reading)


def draw(record: Record, figure: Figure) -> None:
    """Draws each row's loss above float32, seed by seed, over the bytes that it holds."""
    axes = figure.add_subplot()
    for number, (name, row) in enumerate(list(ROWS.items())[1:]):
        more = above(record, name)
        axes.plot([row.held_bytes] * len(more), more, "o^"[number % 2], markersize=5, label=name)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set(xlabel="bytes held per parameter", ylabel="loss above float32, nats per byte")
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.legend(frameon=False, fontsize=7)


PAGE = Page(columns=COLUMNS, cells=cells, verdict=verdict, draw=draw)
