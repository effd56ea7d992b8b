"""What the page of `lstm` shows."""

from __future__ import annotations

from matplotlib.figure import Figure

from grokfused.lab.papers.cells import draw_curves, mean_of, table_of
from grokfused.lab.papers.frame import Page, Record, Verdict, rows_in
from grokfused.lab.papers.lstm import ROWS


def verdict(record: Record) -> Verdict:
    """Returns what came out: means over the seeds."""
    low, low_ema, high, high_ema = (100 * mean_of(record, row, "best") for row in ROWS)
    gain, share = high_ema - low, high - low
    better = high_ema - high
    holds = "yes" if better > 1 else "no" if gain <= 1 else "in part"
    return Verdict(
        holds,
        f"{gain:+.1f} points of accuracy, {better:+.1f} of them the filter's",
        [
            "From decay 0.1 without a filter to decay 1 with EMA(0.98, 2) the best accuracy changes by "
            f"{gain:+.1f} points on average ({low:.1f} to {high_ema:.1f} %); the paper has 84 to 90 %.",
            f"The decay alone gives {share:+.1f}, the filter at decay 1 {better:+.1f}, the filter at decay "
            f"0.1 {low_ema - low:+.1f} points.",
            "The best accuracy of a run is the largest of many looks at few reviews, and so too high for all "
            "rows alike; the column of the last step has no such choice.",
        ],
    )


def draw(record: Record, figure: Figure) -> None:
    """Draws accuracy over steps."""
    draw_curves(record, figure, "accuracy", {row: ROWS[row].what for row in rows_in(record)})


PAGE = Page(
    columns=("AdamW with", "best accuracy", "smallest loss", "accuracy at the end"),
    cells=table_of(ROWS, {"best": 3, "loss": 3, "last": 3}),
    verdict=verdict,
    draw=draw,
)
