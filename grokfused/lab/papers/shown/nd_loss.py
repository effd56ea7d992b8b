"""What the page of `nd-loss` shows."""

from __future__ import annotations

import statistics

from matplotlib.figure import Figure

from grokfused.lab.papers.frame import Page, Record, Verdict, rows_in, runs_of
from grokfused.lab.papers.nd_loss import ROWS
from grokfused.lab.papers.pages import paired, spread

COLUMNS = ("run", "accuracy held out", "above KD, by seed", "cosine to the class's mean", "feature norm")


def cells(record: Record) -> list[list[str]]:
    """Returns the table, accuracies in per cent."""
    return [
        [
            ROWS[row].what,
            spread([100 * run["accuracy"] for run in runs_of(record, row)], 2),
            spread([100 * more for more in paired(record, row, "kd", "accuracy")], 2) if row != "kd" else "",
            *(spread([run[name] for run in runs_of(record, row)], 2) for name in ("direction", "norm")),
        ]
        for row in rows_in(record)
    ]


def verdict(record: Record) -> Verdict:
    """Returns what came out: the differences are paired by seed."""
    more = {
        row: [100 * each for each in paired(record, row, "kd", "accuracy")] for row in ("alone", "nd", "kd++")
    }
    mean = {row: statistics.mean(values) for row, values in more.items()}
    wins = sum(value > 0 for value in more["kd++"])
    count = len(more["kd++"])
    beyond = mean["kd++"] > 2 * statistics.stdev(more["kd++"]) / count**0.5
    holds = "yes" if wins == count else "in part" if beyond else "no"
    return Verdict(
        holds,
        f"KD++ {mean['kd++']:+.2f} points over KD",
        [
            f"KD++ is above KD in {wins} of {count} seeds, {mean['kd++']:+.2f} points on average; the paper "
            "has +1.0 to +2.5 points on CIFAR-100.",
            f"A student alone is {mean['alone']:+.2f} points from KD, one with ND and without KD "
            f"{mean['nd']:+.2f}: cosine and norm move as the loss says, whatever accuracy does.",
            f"Accuracy is counted on {record['setting']['held_out']:,} images: a point is "
            f"{record['setting']['held_out'] // 100} of them. Weights of the terms were not tuned.",
        ],
    )


def draw(record: Record, figure: Figure) -> None:
    """Draws each student's accuracy beside its features' cosine to the class's mean."""
    axes = figure.add_subplot()
    for number, row in enumerate(rows_in(record)):
        pairs = [(run["direction"], 100 * run["accuracy"]) for run in runs_of(record, row)]
        axes.plot(*zip(*pairs, strict=True), "o", color=f"C{number}", label=ROWS[row].what)
    axes.set(xlabel="cosine of features to their class's mean, held out", ylabel="accuracy held out, %")
    axes.legend(frameon=False, fontsize=8)


PAGE = Page(columns=COLUMNS, cells=cells, verdict=verdict, draw=draw)
