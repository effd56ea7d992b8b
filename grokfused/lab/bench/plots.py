"""Rows as figures: a roofline of each case, and the curves."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

from grokfused.lab.bench.rows import Row

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from grokfused.lab.bench.show import groups, share_of

CURVES = {
    "parameters": ("elements", "parameters in one tensor"),
    "tensors": ("tensors", "tensors that 2^20 parameters are in"),
}
WINDOW = re.compile(r"(.* of) (\d+)( in bfloat16|)")


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "why_not" not in row]


def roofline(axes: Axes, title: str, rows: Sequence[Row]) -> None:
    """Draws each implementation's share of the limit, with its quartiles."""
    found = [(row, share) for row in rows[::-1] if (share := share_of(row))]
    shown, shares = [row for row, _ in found], [share for _, share in found]
    medians = [share["median"] for share in shares]
    errors = [
        [share["median"] - share["low"] for share in shares],
        [share["high"] - share["median"] for share in shares],
    ]
    colors = ["C0" if row["implementation"].startswith("GrokAdamW") else "0.7" for row in shown]
    axes.barh([row["implementation"] for row in shown], medians, xerr=errors, color=colors, ecolor="0.3")
    axes.axvline(1, color="0.3", linewidth=0.8)
    axes.set(xlabel="share of the limit in the same rounds")
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="y", labelsize=7)


def _lines(axes: Axes, rows: Sequence[Row], x: str, label: str) -> None:
    """Draws a line per value of ``label``, with the quartiles of each time."""
    for name in dict.fromkeys(row[label] for row in rows):
        own = sorted((row for row in rows if row[label] == name), key=lambda row: row[x])
        times = [row["milliseconds"] for row in own]
        at = [row[x] for row in own]
        (line,) = axes.plot(at, [time["median"] for time in times], "o-", markersize=3, label=name)
        low, high = [time["low"] for time in times], [time["high"] for time in times]
        axes.fill_between(at, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(ylabel="ms")
    axes.legend(fontsize=7, frameon=False)


def curve(axes: Axes, rows: Sequence[Row], x: str, xlabel: str) -> None:
    """Draws the times over parameters or tensors, log-log."""
    _lines(axes, rows, x, "implementation")
    axes.set(xscale="log", yscale="log", xlabel=xlabel)


def density(axes: Axes, rows: Sequence[Row]) -> None:
    """Draws the times under masks over density; those without a mask are levels."""
    ours = [row for row in rows if "density" in row and row["implementation"].endswith(" kept")]
    _lines(axes, ours, "density", "layout")
    others = [row for row in rows if row not in ours and row["rank"]]
    for number, row in enumerate(others, 2):
        axes.axhline(
            row["milliseconds"]["median"], color=f"C{number}", linewidth=0.8, label=row["implementation"]
        )
    axes.set(xscale="log", xlabel="share of elements that is kept", ylim=(0, None))
    axes.legend(fontsize=7, frameon=False)


def windows(axes: Axes, title: str, rows: Sequence[Row]) -> None:
    """Draws the times of means over the size of their window, ours and the authors'."""
    found = [(WINDOW.fullmatch(row["implementation"]), row) for row in rows if row["rank"]]
    means = [{**row, "way": m[1] + m[3], "window": int(m[2])} for m, row in found if m]
    _lines(axes, means, "window", "way")
    axes.set(xscale="log", yscale="log", xlabel="gradients in the window")
    axes.set_title(title, fontsize=9)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes all that the rows have figures for as one PNG.

    Raises:
        ValueError: No row was measured.
    """
    found = _measured(rows)
    panels: list[tuple[float, Callable[[Axes], None]]] = []
    cases = [row for row in found if row["set"] not in (*CURVES, "masks", "windows")]
    for title, own in groups(cases):
        panels.append((1 + 0.22 * len(own), lambda axes, title=title, own=own: roofline(axes, title, own)))  # type: ignore[misc]
    for name, (x, xlabel) in CURVES.items():
        own = [row for row in found if row["set"] == name and row["rank"]]
        if own:
            panels.append((3.2, lambda axes, own=own, x=x, label=xlabel: curve(axes, own, x, label)))  # type: ignore[misc]
    for title, own in groups([row for row in found if row["set"] == "windows"]):
        panels.append((3.2, lambda axes, title=title, own=own: windows(axes, title, own)))  # type: ignore[misc]
    under_masks = [row for row in found if row["set"] == "masks"]
    if under_masks:
        panels.append((3.2, lambda axes: density(axes, under_masks)))
    if not panels:
        raise ValueError("there is nothing to draw: no row was measured")
    heights = [height for height, _ in panels]
    figure, all_axes = pyplot.subplots(
        len(panels),
        figsize=(8, sum(heights) + 0.4),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axes, (_, draw_panel) in zip(all_axes[:, 0], panels, strict=True):
        draw_panel(axes)
    figure.savefig(path, dpi=110, format="png")
    pyplot.close(figure)
