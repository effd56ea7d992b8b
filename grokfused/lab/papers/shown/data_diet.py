"""What the page of `data-diet` shows."""

from __future__ import annotations

import statistics

from matplotlib.figure import Figure

from grokfused.lab.papers.data_diet import DATA, ROWS
from grokfused.lab.papers.frame import Page, Record, Verdict, rows_in, runs_of
from grokfused.lab.papers.pages import paired, spread

COLUMNS = ("kept", "0 %", "25 %", "50 %", "75 %", "90 % pruned", "wrong labels found")


def shares(record: Record) -> list[str]:
    """Returns the shares that were pruned, as they are written."""
    return [f"{share:g}" for share in record["setting"]["pruned"]]


def cells(record: Record) -> list[list[str]]:
    """Returns the table: accuracies held out in per cent, at each pruned share."""
    found = []
    for row in rows_in(record):
        runs = runs_of(record, row)
        accuracies = [spread([100 * run[share] for run in runs], 1) for share in shares(record)]
        noise = spread([run["noise"] for run in runs], 2) if "noise" in runs[0] else ""
        found.append([ROWS[row].what, *accuracies, noise])
    return found


def verdict(record: Record) -> Verdict:
    """Returns what came out at half of the data, paired by seed."""
    more = {data: paired(record, f"{data}-el2n", f"{data}-random", "0.5") for data in DATA}
    mean = {data: 100 * statistics.mean(each) for data, each in more.items()}
    runs = {data: runs_of(record, f"{data}-el2n") for data in DATA}
    cost = {data: 100 * statistics.mean(run["0"] - run["0.5"] for run in runs[data]) for data in DATA}
    tenth = {
        data: 100 * statistics.mean(paired(record, f"{data}-el2n", f"{data}-random", "0.9")) for data in DATA
    }
    noise = {data: statistics.median(run["noise"] for run in runs[data]) for data in DATA}
    above = [each > 0 for one in more.values() for each in one]
    return Verdict(
        "yes" if all(above) else "in part" if any(above) else "no",
        ", ".join(f"{data} {mean[data]:+.1f} points over random at 50 %" for data in DATA),
        [
            f"With half of the data, the hardest by EL2N are {mean['digits']:+.2f} points from a random half "
            f"on digits and {mean['reviews']:+.2f} on reviews; all data gives {cost['digits']:+.2f} and "
            f"{cost['reviews']:+.2f} points more than they do.",
            f"With a tenth of the data the hardest are {tenth['digits']:+.1f} and {tenth['reviews']:+.1f} "
            "points from a random tenth: how much to prune, and from which end, depends on data and share.",
            f"Wrong labels (10 %) score above right ones with probability {noise['digits']:.2f} and "
            f"{noise['reviews']:.2f} by EL2N: what is kept longest of noisy data is its noise.",
        ],
    )


def draw(record: Record, figure: Figure) -> None:
    """Draws accuracy over the pruned share, a panel a data set; bars from smallest to largest."""
    for panel, data in enumerate(DATA, 1):
        axes = figure.add_subplot(1, len(DATA), panel)
        for row in (row for row in rows_in(record) if ROWS[row].data == data):
            columns = [[100 * run[share] for run in runs_of(record, row)] for share in shares(record)]
            middle = [statistics.median(column) for column in columns]
            ends = [[m - min(c) for m, c in zip(middle, columns, strict=True)]]
            ends.append([max(c) - m for m, c in zip(middle, columns, strict=True)])
            label = ROWS[row].what.removeprefix(f"{data}: ")
            axes.errorbar([100 * float(s) for s in shares(record)], middle, ends, capsize=2, label=label)
        axes.set(title=data, xlabel="pruned, %", ylabel="accuracy held out, %")
        axes.legend(frameon=False, fontsize=7)


PAGE = Page(columns=COLUMNS, cells=cells, verdict=verdict, draw=draw)
