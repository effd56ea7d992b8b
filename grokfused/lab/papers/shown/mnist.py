"""What the page of `mnist` shows."""

from __future__ import annotations

from matplotlib.figure import Figure

from grokfused.lab.papers.cells import draw_curves, mean_of, table_of
from grokfused.lab.papers.frame import Page, Record, Verdict, rows_in, runs_of
from grokfused.lab.papers.mnist import ROWS


def verdict(record: Record) -> Verdict:
    """Returns where the factor comes from: means of the first crossings."""
    low, both, decay = (mean_of(record, row, "first") for row in ("low", "high-ema", "high"))
    least = "at least " if low == float("inf") else ""  # a run that has not arrived counts with its budget
    low = min(low, record["setting"]["steps"])
    firsts = {
        row: ", ".join(
            "none" if run["first"] is None else f"{run['first']:,}" for run in runs_of(record, row)
        )
        for row in ("low-ema", "high-beta1")
    }
    share = decay / both  # what the filter is worth where both are changed
    return Verdict(
        "no" if share < 1.5 else "in part" if share < 0.5 * low / both else "yes",
        f"{least}{low / both:.1f}x for decay and filter, {least}{low / decay:.1f}x for the decay alone",
        [
            "The published change of both, decay 0.01 to 2 and no filter to EMA(0.8, 0.1), is "
            f"{least}{low / both:.1f}x here ({low:,.0f} to {both:,.0f} steps on average). The decay alone is "
            f"{least}{low / decay:.1f}x ({decay:,.0f} steps), the filter's part {share:.2f}x.",
            f"First crossings at decay 0.01 with the filter: {firsts['low-ema'] or 'not run'}; at decay 2 "
            f"with beta1 raised in its place: {firsts['high-beta1'] or 'not run'}.",
            ("So here the factor is that of a change of weight decay" if share < 1.5 else "Both count here")
            + "; the paper changes both at once, and has no row that tells them apart.",
        ],
    )


def draw(record: Record, figure: Figure) -> None:
    """Draws accuracy over steps."""
    labels = {row: ROWS[row].what for row in rows_in(record)}
    draw_curves(record, figure, "accuracy", labels, xscale="log", ylim=(0, 1))


PAGE = Page(
    columns=("AdamW with", "first crossing", "stable crossing", "best accuracy"),
    cells=table_of(ROWS, {"first": 0, "stable": 0, "best": 3}),
    verdict=verdict,
    draw=draw,
)
