"""What the page of `shiftquant` shows."""

from __future__ import annotations

import statistics

from matplotlib.figure import Figure

from grokfused.lab.papers.cells import mean_of
from grokfused.lab.papers.frame import Page, Record, Verdict, rows_in, runs_of
from grokfused.lab.papers.pages import spread
from grokfused.lab.papers.shiftquant import ROWS
from grokfused.lab.quantise import SCALES

COLUMNS = ("run", "accuracy held out", "what", "per tensor, 4 bits", "shifts", "float groups", "per channel")


def error_at(record: Record, row: str, kind: str, scales: str, bits: int = 4) -> list[float]:
    """Returns relative errors at so many bits, seed by seed."""
    at = record["setting"]["bits"].index(bits)
    return [run[kind][scales][at] for run in runs_of(record, row)]


def cells(record: Record) -> list[list[str]]:
    """Returns the table: accuracies in per cent, and relative errors at 4 bits."""
    found = []
    for row in rows_in(record):
        if ROWS[row].recorded:
            for kind in ("gradients", "exp_avg"):
                shown = [spread(error_at(record, row, kind, scales), 3) for scales in SCALES]
                found.append([ROWS[row].what, "", kind, *shown])
        else:
            accuracies = spread([100 * run["accuracy"] for run in runs_of(record, row)], 2)
            found.append([ROWS[row].what, accuracies, *[""] * 5])
    return found


def verdict(record: Record) -> Verdict:
    """Returns what came out: medians over seeds, and over the two trainings."""
    middle = {
        scales: statistics.median(
            [each for row in ("images", "text") for each in error_at(record, row, "gradients", scales)]
        )
        for scales in SCALES
    }
    to_groups, to_channels, to_tensor = (
        middle["shifts"] / middle[other] for other in ("float groups", "per channel", "per tensor")
    )
    mean = {row: 100 * mean_of(record, row, "accuracy") for row in ROWS if not ROWS[row].recorded}
    lost6, lost4 = (mean["float"] - mean[row] for row in ("6", "4"))
    near, cheap = to_groups < 1.25, lost4 <= 1.0
    return Verdict(
        "yes" if near and cheap else "in part" if near or cheap else "no",
        f"error {to_groups:.2f} times float groups', 4 bits lose {lost4:.2f} points",
        [
            "On recorded gradients at 4 bits, shifts have "
            f"{to_groups:.2f} times the error of float "
            f"scales for the same groups, {to_channels:.2f} times that of a scale for each "
            f"channel and {to_tensor:.2f} "
            "times that of one scale for all.",
            f"Trained in integers throughout, the convolutions lose {lost6:.2f} points with 6 bits and "
            f"{lost4:.2f} with 4 (the paper: 0.92 with 4 bits, on ResNets); with one scale for gradients "
            f"{mean['float'] - mean['4-tensor']:.2f}.",
            f"L1 in place of L2 normalisation changes {mean['float'] - mean['float-l2']:+.2f} points in "
            f"float32 and {mean['4'] - mean['4-l2']:+.2f} with 4 bits. Integers are "
            "emulated: this says nothing of speed.",
        ],
    )


def draw(record: Record, figure: Figure) -> None:
    """Draws the relative error on gradients over bits, a panel a training, a line a seed."""
    for panel, row in enumerate(("images", "text"), 1):
        axes = figure.add_subplot(1, 2, panel)
        for number, scales in enumerate(SCALES):
            for at, one in enumerate(runs_of(record, row)):
                label = None if at else scales
                axes.plot(record["setting"]["bits"], one["gradients"][scales], f"C{number}", label=label)
        axes.set(title=f"gradients, {row}", xlabel="bits", ylabel="relative error", yscale="log")
        axes.legend(frameon=False, fontsize=8)


PAGE = Page(columns=COLUMNS, cells=cells, verdict=verdict, draw=draw)
